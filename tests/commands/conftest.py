"""The commands in this process: `main(arguments)` in a working directory with a small text."""

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import NamedTuple

import pytest

import train as train_script
from npgpt.training import evaluation
from tests.commands.tiny import ENVIRONMENT, ROOT, SAMPLED, TEXT, TINY


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The working directory, with a small text and without a network."""
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture(autouse=True)
def signals_arrive():
    """If the tests are started in the background of a shell, or by nohup, they and their child
    processes ignore Ctrl-C or a closed terminal; this undoes it."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """Whole ones, which tests/training/test_evaluation.py has, take most of a tiny run's time."""
    monkeypatch.setattr(evaluation, "SAMPLE_TOKENS", SAMPLED)


@pytest.fixture
def mpiexec(launcher):
    """-> function: words after mpiexec -> the ended process, in the working directory. `npgpt`,
    `python` and the scripts are those that are tested."""
    programs = {"npgpt": [sys.executable, "-m", "npgpt"], "python": [sys.executable],
                "train.py": [str(ROOT / "train.py")]}

    def call(*words):
        words = [part for word in words for part in programs.get(word, [word])]
        return subprocess.run([launcher, *words], env=ENVIRONMENT, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
    return call


@pytest.fixture
def run(capsys):
    """-> function: the main of a command, words -> exit status, stdout, stderr."""
    def call(main, *words):
        capsys.readouterr()
        return Result(main(list(words)), *capsys.readouterr())
    return call


@pytest.fixture
def train(run):
    """-> function: words -> the output of a tiny run that succeeds."""
    def call(*words):
        result = run(train_script.main, *TINY, *words)
        assert (result.status, result.err) == (0, "")
        return result.out
    return call
