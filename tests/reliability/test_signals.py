"""Signals wherever they arrive: in the imports, in an evaluation, in the middle of a line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sample as sample_script
import train as train_script
from npgpt.models import generate
from npgpt.parallel import can_fork
from tests.commands.test_signals import at_step
from tests.commands.tiny import ENVIRONMENT, ROOT, TINY, command

INTERRUPTING = "import os, signal\nos.kill(os.getpid(), signal.{})\n"


@pytest.mark.parametrize("words", [
    [ROOT / "train.py"], [ROOT / "sample.py"], ["-m", "npgpt", "train"], ["-m", "npgpt.report"],
], ids=["train.py", "sample.py", "npgpt", "npgpt.report"])
def test_ctrl_c_in_the_imports_is_silent(words, home):
    """safetensors is replaced by a module that interrupts the program which imports it."""
    (home / "safetensors.py").write_text(INTERRUPTING.format("SIGINT"))
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(home), str(ROOT)])}
    done = subprocess.run([sys.executable, *map(str, words)], env=environment, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode in (-signal.SIGINT, 130)      # to a shell both are 130
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("words", [[ROOT / "train.py"], ["-m", "npgpt", "train"]])
def test_ctrl_c_that_is_ignored_stays_so_in_the_imports(words, home):
    """As in the background of a shell. The imports go on, until something is not there."""
    (home / "threadpoolctl.py").write_text(INTERRUPTING.format("SIGINT"))
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(home), str(ROOT)])}
    done = subprocess.run([sys.executable, *map(str, words)], env=environment, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert done.returncode == 1 and "cannot import name 'threadpool" in done.stderr


def test_importing_npgpt_leaves_ctrl_c_alone():
    code = ("import signal; before = signal.getsignal(signal.SIGINT); import npgpt, train, sample; "
            "assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler")
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, cwd=ROOT, check=True)


def test_closed_terminal_saves_as_sigterm_does(run, home, monkeypatch):
    at_step(3, monkeypatch, lambda: signal.raise_signal(signal.SIGHUP))
    result = run(train_script.main, *TINY, "--workers=1", "--max-iters=20", "--out-dir=run")
    assert (result.status, result.err) == (129, "")
    assert (home / "run/latest").read_text() == "checkpoint-3\n"


def test_program_that_ignores_a_closed_terminal_goes_on(run, home, monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(3, monkeypatch, lambda: signal.raise_signal(signal.SIGHUP))
        result = run(train_script.main, *TINY, "--workers=1", "--max-iters=5", "--out-dir=run")
        assert result.status == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not can_fork(), reason="needs processes")
@pytest.mark.parametrize(("number", "status"), [
    (signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_all_processes_saves(home, number, status):
    """A closed terminal and Ctrl-C reach the workers as well."""
    words = [*TINY, "--max-iters=100000", "--workers=2", "--out-dir=run"]
    with subprocess.Popen(command(*words), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                          start_new_session=True) as running:
        while "step 10/" not in running.stdout.readline():
            assert running.poll() is None
        os.killpg(running.pid, number)
        out, err = running.communicate()
    assert (running.returncode, err) == (status, "")
    assert "stopped at step " in out
    assert (home / "run/latest").is_file()


@pytest.mark.skipif(not can_fork(), reason="needs a terminal")
@pytest.mark.parametrize("workers", [1, 2])
def test_terminal_that_is_closed_takes_nothing_with_it(home, workers):
    """It sends SIGHUP, and from then on every write to it fails."""
    import pty  # not on Windows

    words = command(*TINY, "--max-iters=100000", f"--workers={workers}", "--out-dir=run")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(words[0], words, ENVIRONMENT | {"TERM": "xterm"})
    shown = b""
    while b"step 10/" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert int((home / "run/latest").read_text().removeprefix("checkpoint-")) >= 10


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_output_that_cannot_be_written_is_named(home):
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(*TINY, "--max-iters=10", "--out-dir=run"), stdout=full,
                              stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (
        3, "train.py: the output: No space left on device\n")


def test_ctrl_c_in_a_sample_ends_the_line(run, home, monkeypatch):
    assert run(train_script.main, *TINY, "--max-iters=1", "--out-dir=run").status == 0
    original = generate.steps

    def steps(*arguments, **options):
        yield next(original(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_script, "steps", steps)
    result = run(sample_script.main, "--out-dir=run", "--prompt=fox")
    assert result.status == 130 and "Traceback" not in result.err
    assert len(result.out) >= len("fox?\n") and result.out.endswith("\n")
