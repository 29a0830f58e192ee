"""Ctrl-C and SIGTERM: the run is saved and can be resumed. tests/commands/test_processes.py sends
them to several processes."""

import json
import signal

import pytest

import train as train_script
from tests.commands.tiny import TINY, metrics


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
    state = json.loads((home / "run/checkpoint-3/training.json").read_text())
    assert state["step"] == 3 and state["best_val_loss"] is None          # not measured yet
    assert run(train_script.main, "--resume", "--out-dir=run").status == 0
    assert (home / "run/latest").read_text() == "checkpoint-20\n"


def test_second_signal_stops_at_once_and_the_steps_after_the_checkpoint_are_repeated(
        run, home, monkeypatch):
    def twice():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    at_step(13, monkeypatch, twice)
    words = ["--workers=1", "--max-iters=20", "--log-interval=1", "--out-dir=run"]
    result = run(train_script.main, *TINY, *words)
    assert (result.status, result.err) == (130, "") and "stopped" not in result.out
    assert (home / "run/latest").read_text() == "checkpoint-10\n"
    assert [line["step"] for line in metrics("run") if "loss" in line] == list(range(1, 13))
    assert run(train_script.main, "--resume", "--out-dir=run").status == 0
    assert [line["step"] for line in metrics("run") if "loss" in line] == list(range(1, 21))


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
    assert (home / "run/latest").read_text() == "checkpoint-10\n"


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
