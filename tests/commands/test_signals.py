"""Ctrl-C, SIGTERM and SIGKILL: the run is saved and can be resumed, and no process stays."""

import os
import re
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

import train as train_script
from npgpt.parallel import can_fork
from tests.commands.tiny import ENVIRONMENT, TINY, command, metrics
from tests.parallel.test_processes import gone

pytestmark = pytest.mark.skipif(not can_fork(), reason="there is no /proc here")


def at_step(step, monkeypatch, act):
    """Call act() during a step, counted from 1 in this run."""
    original, steps = train_script.train_step, []

    def train_step(*arguments, **options):
        steps.append(1)
        if len(steps) == step:
            act()
        return original(*arguments, **options)

    monkeypatch.setattr(train_script, "train_step", train_step)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_step_saves_and_says_how_to_continue(run, home, monkeypatch, number,
                                                            status):
    at_step(3, monkeypatch, lambda: signal.raise_signal(number))
    result = run(train_script.main, *TINY, "--workers=1", "--max-iters=20", "--out-dir=run")
    assert (result.status, result.err) == (status, "")
    assert result.out.endswith("\nstopped at step 3; to continue: npgpt train --resume "
                               "--out-dir run\n")
    assert (home / "run/latest").read_text() == (home / "run/best").read_text() == "checkpoint-3\n"
    assert run(train_script.main, "--resume", "--out-dir=run").status == 0
    assert (home / "run/latest").read_text() == "checkpoint-20\n"


def test_second_signal_stops_at_once_and_keeps_the_checkpoint(run, home, monkeypatch):
    def twice():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    at_step(13, monkeypatch, twice)
    result = run(train_script.main, *TINY, "--workers=1", "--max-iters=20", "--out-dir=run")
    assert (result.status, result.err) == (130, "") and "stopped" not in result.out
    assert (home / "run/latest").read_text() == "checkpoint-10\n"
    assert run(train_script.main, "--resume", "--out-dir=run").status == 0
    steps = [line["step"] for line in metrics("run") if "loss" in line]
    assert steps == [5, 10, 15, 20]


def test_signal_after_a_checkpoint_does_not_write_it_again(run, home, monkeypatch):
    saves = []
    original = train_script.save

    def save(run, val_loss):
        original(run, val_loss)
        saves.append((home / "run/checkpoint-10").stat().st_ino)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_script, "save", save)
    result = run(train_script.main, *TINY, "--workers=1", "--max-iters=20", "--out-dir=run")
    assert result.status == 130 and "stopped at step 10; " in result.out
    assert [(home / "run/checkpoint-10").stat().st_ino] == saves


def test_signal_before_the_first_step_leaves_nothing(run, home, monkeypatch):
    original = train_script.evaluate

    def evaluate(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(train_script, "evaluate", evaluate)
    result = run(train_script.main, *TINY, "--workers=1", "--max-iters=20", "--out-dir=run")
    assert (result.status, result.err) == (143, "")
    assert result.out.endswith("\nstopped before the first step; nothing was saved\n")
    assert not (home / "run").exists()


def test_ignored_signal_stays_ignored(run, home, monkeypatch):
    """As under nohup or in the background of a shell."""
    at_step(3, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run(train_script.main, *TINY, "--workers=1", "--max-iters=5").status == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


# --- in processes --------------------------------------------------------------------------------

@contextmanager
def training_processes(workers):
    """An endless run, in its own process group -> process, its workers' pids."""
    words = [*TINY, "--max-iters=1000000", "--eval-interval=20", "--warmup-iters=2",
             "--out-dir=run", f"--workers={workers}"]
    with subprocess.Popen(command(*words), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, start_new_session=True) as running:
        while not Path("run/latest").exists():
            assert running.poll() is None
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
        pids = list(map(int, children.split()))
        assert len(pids) == workers - 1
        yield running, pids
        assert gone(pids)


@pytest.mark.parametrize(("workers", "number", "status"), [(1, signal.SIGTERM, 143),
                                                           (3, signal.SIGINT, 130)])
def test_signal_reaches_every_process_and_stops_the_run_once(run, workers, number, status):
    """As Ctrl-C in a terminal does."""
    with training_processes(workers) as (running, _):
        os.killpg(running.pid, number)
        output, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (status, "")
    [step] = map(int, re.findall(r"stopped at step (\d+); to continue: npgpt train --resume "
                                 r"--out-dir run\n", output))
    assert Path("run/latest").read_text() == f"checkpoint-{step}\n"
    resumed = run(train_script.main, "--resume", "--out-dir=run", f"--max-iters={step + 3}")
    assert resumed.status == 0
    assert Path("run/latest").read_text() == f"checkpoint-{step + 3}\n"


def test_killed_worker_ends_the_run_and_the_checkpoint_is_complete(run):
    with training_processes(3) as (running, pids):
        os.kill(pids[1], signal.SIGKILL)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert re.fullmatch(r"train.py: worker 2 of 3 was killed by signal 9; run/checkpoint-\d+ is "
                        r"complete\n", errors)
    step = int(Path("run/latest").read_text().split("-")[1])
    assert run(train_script.main, "--resume", "--out-dir=run", "--workers=1",
               f"--max-iters={step + 1}").status == 0


def test_workers_end_if_the_first_process_is_killed():
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with training_processes(3) as (running, _):
        running.kill()
        running.communicate(timeout=60)
    assert not os.path.isdir("/dev/shm") or set(os.listdir("/dev/shm")) <= shared
