"""train.py under mpiexec: the same run on any number of ranks. tests/reliability/test_ranks.py has
what can go wrong."""

import numpy as np
import pytest

import train as train_script
from tests.commands.tiny import TINY, metrics, state, weights
from tests.parallel.launcher import train

pytestmark = pytest.mark.usefixtures("mpi")
LONG = [*TINY, "--dtype=float64", "--device=cpu", "--batch-size=6", "--grad-accum=2",
        "--dropout=0.2", "--max-iters=100", "--eval-interval=50", "--log-interval=1"]
KINDS = {"AdamW": ["--optimizer=adamw"], "Muon": ["--optimizer=muon"],
         "Llama": ["--optimizer=muon", "--family=llama", "--n-kv-head=1", "--n-layer=2"]}


def test_ranks_start_from_a_model_and_its_tokenizer(run, home):
    """The first rank reads them; the others start from its parameters."""
    assert run(train_script.main, *TINY, "--max-iters=2", "--workers=1", "--out-dir=first"
               ).status == 0
    words = ["--data=fox.txt", "--init-from=first", "--max-iters=3", "--eval-iters=1",
             "--batch-size=4", "--dtype=float64", "--device=cpu"]
    assert run(train_script.main, *words, "--workers=1", "--out-dir=alone").status == 0
    done = train(3, *words, "--out-dir=together")
    assert (done.returncode, done.stderr) == (0, "")
    found, expected = weights("together/checkpoint-3"), weights("alone/checkpoint-3")
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_job_that_is_resumed_ends_with_the_bits_of_an_uninterrupted_one(kind, home):
    words = [*TINY, *KINDS[kind], "--dropout=0.2", "--batch-size=3", "--lr-decay-iters=9",
             "--warmup-iters=0"]
    assert train(2, *words, "--max-iters=9", "--out-dir=whole").returncode == 0
    assert train(2, *words, "--max-iters=4", "--out-dir=run").returncode == 0
    done = train(2, "--resume", "--max-iters=9", "--out-dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("model.safetensors", "training.safetensors"):
        found, expected = (home / folder / "checkpoint-9" / name for folder in ("run", "whole"))
        assert found.read_bytes() == expected.read_bytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_run_is_the_same_on_any_number_of_ranks(kind, run):
    """100 steps with dropout, accumulation and 6 rows for 4 ranks: losses, parameters, moments."""
    words = [*LONG, *KINDS[kind]]
    assert run(train_script.main, *words, "--workers=1", "--out-dir=alone").status == 0
    expected = metrics("alone")
    for n in (1, 2, 4):
        folder = f"on-{n}"
        done = train(n, *words, f"--out-dir={folder}")
        assert (done.returncode, done.stderr) == (0, ""), n
        assert f", {n} MPI rank{'s' * (n > 1)}\n" in done.stdout
        for found, line in zip(metrics(folder), expected, strict=True):
            assert found.keys() == line.keys()
            for key in line.keys() - {"seconds", "tokens_per_second"}:
                assert found[key] == pytest.approx(line[key], rel=1e-10), (n, key)
        for arrays in (weights, state):
            found, there = arrays(f"{folder}/checkpoint-100"), arrays("alone/checkpoint-100")
            for name in there:
                np.testing.assert_allclose(found[name], there[name], atol=1e-9, err_msg=name)
