"""Steps whose gradients are not finite leave the parameters alone; ten in a row end training, also
where little is logged, and so do fewer if a run has no others."""

import re

import numpy as np
import pytest

import train as train_script
from tests.commands.tiny import SIZES

INF, ONE = np.float64("inf"), np.float64(1)
RARELY = [*SIZES, "--log-interval=1000", "--eval-interval=1000", "--workers=1"]


def norms_of_steps(norms, monkeypatch):
    """Let the gradients of the steps have these norms, and then their own."""
    original, norms = train_script.train_step, list(norms)

    def train_step(*arguments, **options):
        loss, norm = original(*arguments, **options)
        return loss, norms.pop(0) if norms else norm

    monkeypatch.setattr(train_script, "train_step", train_step)


@pytest.mark.parametrize(("norms", "step"), [
    ([INF] * 40, 10), ([ONE] * 3 + [INF] * 40, 20), ([ONE] * 3 + [INF] * 11 + [ONE] * 20, 20),
    ([ONE] * 30 + [INF] * 11, 40),
])
def test_ten_in_a_row_end_training_within_ten_steps(run, monkeypatch, norms, step):
    norms_of_steps(norms, monkeypatch)
    result = run(train_script.main, *RARELY, "--max-iters=50", "--out-dir=run")
    assert result.status == 3
    assert re.fullmatch(rf"train\.py: by step {step} the gradients of 1\d steps in a row were not "
                        r"finite; there is no checkpoint yet\. Try a lower --learning-rate\n",
                        result.err)


def test_ten_at_the_end_are_noticed(run, monkeypatch):
    norms_of_steps([ONE] * 3 + [INF] * 10, monkeypatch)
    result = run(train_script.main, *RARELY, "--max-iters=13", "--out-dir=run")
    assert result.status == 3 and "by step 13 the gradients of 10 steps" in result.err


def test_run_of_a_few_steps_without_a_usable_one_fails(run, monkeypatch):
    norms_of_steps([INF] * 3, monkeypatch)
    result = run(train_script.main, *RARELY, "--max-iters=3", "--out-dir=run")
    assert result.status == 3 and "by step 3 the gradients of 3 steps in a row" in result.err


@pytest.mark.parametrize("norms", [[INF] * 9 + [ONE] + [INF] * 9, [INF] * 2 + [ONE]])
def test_fewer_are_skipped(run, monkeypatch, norms):
    norms_of_steps(norms, monkeypatch)
    result = run(train_script.main, *RARELY, f"--max-iters={len(norms)}", "--out-dir=run")
    assert (result.status, result.err) == (0, "")
