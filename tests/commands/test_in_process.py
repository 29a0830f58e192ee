"""`main(arguments)` in a program of one's own, as in a notebook: it returns the exit status, also
after --help, and leaves the process as it was."""

import io
import os
import signal
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import npgpt
import sample as sample_script
import train as train_script
from npgpt import __main__ as module
from npgpt.explain import command as explain
from npgpt.report import losses as report
from npgpt.training import ranks_command as ranks
from tests.commands.tiny import TINY

MAINS = {"train.py": train_script.main, "sample.py": sample_script.main,
         "npgpt explain": explain.main, "npgpt report": report.main, "npgpt ranks": ranks.main,
         "npgpt": module.main}
NAMES = [*MAINS]


def surroundings():
    """What a command could change in the process that calls it."""
    signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
    threads = {info["filepath"]: info["num_threads"] for info in threadpool_info()}
    streams = [(stream, stream.errors, stream.encoding) for stream in (sys.stdout, sys.stderr)]
    return {"signals": signals, "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, []),
            "threads of BLAS": threads, "streams": streams, "errors of NumPy": np.geterr(),
            "environment": dict(os.environ), "directory": os.getcwd(), "arguments": [*sys.argv],
            "open files": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
            "modules' path": [*sys.path], "umask": os.umask(os.umask(0))}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc here")
@pytest.mark.parametrize(("status", "name", "words"), [
    (0, "train.py", [*TINY, "--max-iters=2", "--workers=1"]),
    (0, "train.py", [*TINY, "--max-iters=2", "--workers=2"]),
    (0, "npgpt", ["train", *TINY, "--max-iters=2", "--workers=2"]),
    (3, "train.py", [*TINY, "--max-iters=60", "--learning-rate=100", "--min-lr=100",
                     "--weight-decay=100", "--warmup-iters=0", "--grad-clip=0", "--workers=2"]),
    (2, "train.py", ["--data=nothing.txt"]),
    (0, "sample.py", ["--out-dir=run", "--max-new-tokens=5"]),
    (2, "sample.py", ["--out-dir=run", "--prompt=é"]),
    (0, "npgpt explain", ["relu"]),
    (2, "npgpt explain", ["rleu"]),
    (0, "npgpt ranks", ["--data=fox.txt"]),
    (2, "npgpt ranks", ["--mb=-1"]),
    (2, "npgpt report", ["run", "loss.xyz"]),
    *((0, name, ["--help"]) for name in NAMES),
])
def test_command_leaves_the_process_as_it_was(run, train, status, name, words):
    train("--max-iters=5", "--out-dir=run")
    with threadpool_limits(2):                    # another number than a command would choose
        before = surroundings()
        assert run(MAINS[name], *words).status == status
        after = surroundings()
    assert {what: after[what] for what in after if after[what] != before[what]} == {}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc here")
@pytest.mark.parametrize("workers", [1, 2])
def test_command_that_is_stopped_leaves_the_process_as_it_was(run, monkeypatch, workers):
    original = train_script.evaluate

    def evaluate(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(train_script, "evaluate", evaluate)
    with threadpool_limits(2):
        before = surroundings()
        assert run(train_script.main, *TINY, f"--workers={workers}").status == 143
        after = surroundings()
    assert {what: after[what] for what in after if after[what] != before[what]} == {}


@pytest.mark.parametrize("word", ["--version", "--help"])
@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_those_of_the_program_if_none_are_given(name, word, run, monkeypatch):
    expected = run(MAINS[name], word)
    monkeypatch.setattr(sys, "argv", ["program", word])
    assert run(lambda words: MAINS[name]()) == expected
    assert word == "--help" or expected == (0, f"npgpt {npgpt.__version__}\n", "")


@pytest.mark.parametrize("name", NAMES)
def test_help_returns_status_0(name, run):
    result = run(MAINS[name], "--help")
    assert (result.status, result.err) == (0, "") and result.out.startswith(f"usage: {name}")


def test_output_without_an_encoding_is_written_to(monkeypatch):
    """As in a notebook, whose streams cannot be reconfigured."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert explain.main(["relu"]) == 0 and "Every gradient is right." in stream.getvalue()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert module.main(["nothing"]) == 2
    assert stream.getvalue().startswith("npgpt: unknown command 'nothing'")
