"""An evaluation is part of the run: it can be stopped, and a resumed run makes up for it."""

import json
import re
import signal
import subprocess

import numpy as np
import pytest

import train as train_script
from npgpt.parallel import Processes, Single, can_fork
from npgpt.training import monitor
from npgpt.training.evaluation import Interrupted, evaluate, mean_loss
from tests.commands.tiny import ENVIRONMENT, SIZES, TINY, command, metrics
from tests.training.test_evaluation import data, model  # noqa: F401

LOSSES = "train_loss", "val_loss", "whole_val_loss"
WORDS = [*TINY, "--max-iters=20", "--log-interval=1"]
MORE = "; to continue: npgpt train --resume --out-dir run\n"


def timeless(folder):
    return [{name: value for name, value in line.items()
             if name not in ("seconds", "tokens_per_second")} for line in metrics(folder)]


def interrupting(monkeypatch, act, evaluation_number):
    """Call act() after the first batch of an evaluation of a split, counted from 1."""
    original, seen = monitor.Monitor.after_batch, []

    def after_batch(self, done, total):
        if done == 1:
            seen.append(total)
            if len(seen) == evaluation_number:
                act()
        return original(self, done, total)

    monkeypatch.setattr(monitor.Monitor, "after_batch", after_batch)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.skipif(
    not can_fork(), reason="needs processes"))])
@pytest.mark.parametrize(("number", "where"), [
    (3, "at step 10"), (4, "at step 10"), (5, "in the last evaluation, after all steps"),
    (7, "in the last evaluation, after all steps")])
def test_ctrl_c_in_an_evaluation_stops_it_and_a_resumed_run_makes_it(
        run, home, monkeypatch, workers, number, where):
    (home / "fox.txt").write_text((home / "fox.txt").read_text() * 4)
    words = [*WORDS, "--eval-iters=4", f"--workers={workers}"]
    assert run(train_script.main, *words, "--out-dir=whole").status == 0
    with monkeypatch.context() as patch:
        interrupting(patch, lambda: signal.raise_signal(signal.SIGINT), number)
        stopped = run(train_script.main, *words, "--out-dir=run")
    assert (stopped.status, stopped.err) == (130, "")
    assert stopped.out.endswith(f"\nstopped {where}{MORE}")
    assert len(timeless("run")) < len(timeless("whole"))
    resumed = run(train_script.main, "--resume", "--out-dir=run")
    assert (resumed.status, resumed.err) == (0, "")
    assert timeless("run") == timeless("whole")
    for name in ("model.safetensors", "training.safetensors"):
        found, expected = ((home / folder / (home / folder / "latest").read_text().strip() / name)
                           .read_bytes() for folder in ("run", "whole"))
        assert found == expected
    again = run(train_script.main, "--resume", "--out-dir=run")
    assert again.status == 2 and "has finished its 20 steps" in again.err


def test_run_that_is_killed_in_the_last_evaluation_is_finished_by_resume(run, home, monkeypatch):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    assert run(train_script.main, *WORDS, "--workers=1", "--out-dir=whole").status == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupting(patch, kill, 7)
        run(train_script.main, *WORDS, "--workers=1", "--out-dir=run")
    assert "whole_val_loss" not in metrics("run")[-1]
    result = run(train_script.main, "--resume", "--out-dir=run")
    assert (result.status, result.err) == (0, "")
    assert "over the whole split" in result.out
    assert timeless("run") == timeless("whole")


def test_ctrl_c_in_the_first_evaluation_leaves_nothing(run, home, monkeypatch):
    interrupting(monkeypatch, lambda: signal.raise_signal(signal.SIGINT), 1)
    result = run(train_script.main, *WORDS, "--eval-iters=4", "--workers=1", "--out-dir=run")
    assert result.status == 130 and not (home / "run").exists()
    assert result.out.endswith("\nstopped before the first step; nothing was saved\n")


@pytest.mark.skipif(not can_fork(), reason="needs processes")
def test_evaluation_of_several_processes_stops_when_one_is_told(model, data):  # noqa: F811
    """Whichever it is. All of them leave it together, and each has done only a part."""
    for told in range(3):
        comm = Processes(3)
        done = comm.share(np.zeros(3))

        def work(comm=comm, done=done, told=told):
            def after_batch(number, total):
                done[comm.rank] = number
                while number == 1 and comm.rank != told and not comm.any_so_far(False):
                    pass                         # until the other one is told
                return comm.rank == told and number == 1

            with pytest.raises(Interrupted):
                mean_loss(model, data, data.train, CONFIG, comm, None, after_batch)
            return 0

        assert comm.launch(work) == 0
        assert done.max() <= 2


class CONFIG:
    batch_size, eval_iters = 2, 3


def test_last_evaluation_takes_a_bounded_number_of_windows_and_says_so(run, home, monkeypatch):
    text = (home / "fox.txt").read_text()
    windows = (len(text) - len(text) * 9 // 10 - 1) // 16
    for limit, over in ((windows, "the whole split"), (4, f"4 of the split's {windows} windows")):
        result = run(train_script.main, *WORDS, f"--final-windows={limit}", "--overwrite",
                     "--out-dir=run")
        assert f"over {over}, after " in result.out
    last = metrics("run")[-1]
    assert last["windows"] == 4 and "whole_val_loss" not in last and last["final_val_loss"] > 0
    assert "has finished" in run(train_script.main, "--resume", "--out-dir=run").err


def test_batches_of_an_evaluation_are_counted(model, data):  # noqa: F811
    seen = []
    evaluate(model, data, CONFIG, Single(), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


@pytest.mark.skipif(not can_fork(), reason="needs processes")
def test_each_process_counts_its_own_batches(model, data):  # noqa: F811
    comm = Processes(2)
    totals = comm.share(np.zeros(2))

    def work():
        def after_batch(done, total):
            totals[comm.rank] = total
            return False

        mean_loss(model, data, data.train, CONFIG, comm, 10, after_batch)
        return 0

    assert comm.launch(work) == 0
    assert sorted(totals) == [2, 3]


def test_bar_moves_in_the_last_evaluation(home):
    """`script` runs a command in a pseudo-terminal."""
    (home / "fox.txt").write_text((home / "fox.txt").read_text() * 400)
    words = " ".join(command(*SIZES, "--max-iters=2", "--batch-size=1", "--workers=1"))
    done = subprocess.run(["script", "-qec", words, "/dev/null"], capture_output=True, text=True,
                          env=ENVIRONMENT | {"TERM": "xterm-256color"}, stdin=subprocess.DEVNULL)
    shown = re.findall(r"evaluation, batch ([\d,]+) of 4,399", done.stdout)
    assert done.returncode == 0 and len(set(shown)) > 2


def test_last_evaluation_is_in_the_time_that_the_header_states(run, home, monkeypatch):
    (home / "fox.txt").write_text((home / "fox.txt").read_text() * 400)
    monkeypatch.setattr("npgpt.training.estimate.step_seconds", lambda *arguments: 0.3)
    with monkeypatch.context() as patch:
        interrupting(patch, lambda: signal.raise_signal(signal.SIGINT), 1)
        result = run(train_script.main, *WORDS, "--max-iters=1", "--eval-iters=1", "--workers=1",
                     "--batch-size=1")
    seconds = 0.3 * (1 + (2 + 4399) / 3)
    about = re.search(r"time +at least (\d+) min (\d+) s", result.out)
    assert int(about[1]) * 60 + int(about[2]) == pytest.approx(seconds, abs=1)


def test_checkpoint_says_which_evaluation_was_the_latest(run, home, monkeypatch):
    interrupting(monkeypatch, lambda: signal.raise_signal(signal.SIGINT), 3)
    run(train_script.main, *WORDS, "--eval-iters=4", "--workers=1", "--out-dir=run")
    state = json.loads((home / "run/checkpoint-10/training.json").read_text())
    assert (state["step"], state["evaluated_step"]) == (10, 0)
