"""Ranks train adapters as one process does."""

import numpy as np
import pytest

from npgpt.parallel import Processes, Single, can_fork
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training.config import TrainingConfig
from npgpt.training.setup import distribute
from npgpt.training.step import batches_of_step, train_step
from tests.models.adapted import adapted
from tests.models.families import FAMILIES

STEPS = 4      # with Muon, rounding grows tenfold with each step of adapters
CLOSE = {"adamw": 1e-10, "muon": 1e-7}      # Muon divides by singular values, which may be small


def after_steps(comm, name, options, optimizer):
    """-> losses and norms, and the parameters of a model after some steps of the ranks."""
    model = adapted(name, {"dropout": 0.2, "vocab_size": 7}, **options)
    data = Dataset(TokenSource.from_text("abcdefg" * 40), model.config.block_size)
    config = TrainingConfig(batch_size=5, grad_accum=2, optimizer=optimizer, seed=3)
    found = comm.share(np.zeros((STEPS, 2)))
    model.params = model.params.on(comm.share(model.params.flat))
    built, buffers = distribute(model, config, comm)
    assert {buffer.size for buffer in buffers} == {model.params.n_trainable}

    def work():
        built.set_rank(comm.rank, comm.size, comm.ranges(model.params))
        grads = model.gradients(buffers[comm.rank])
        for step in range(STEPS):
            figures = train_step(model, built, batches_of_step(data, config, step, comm), grads,
                                 comm, lr=1e-2, grad_clip=0.5)
            if comm.is_first:
                found[step] = figures

    comm.launch(work)
    return found, model.params


@pytest.mark.skipif(not can_fork(), reason="processes cannot share memory here")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 0, "freeze": "embeddings"}],
                         ids=["adapters", "frozen embeddings"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_train_as_one(name, options, optimizer):
    expected, alone = after_steps(Single(), name, options, optimizer)
    found, together = after_steps(Processes(2), name, options, optimizer)
    np.testing.assert_allclose(found, expected, rtol=CLOSE[optimizer])
    np.testing.assert_allclose(together.flat, alone.flat, rtol=0, atol=CLOSE[optimizer])
    n = alone.n_trainable
    before = adapted(name, {"dropout": 0.2, "vocab_size": 7}, **options).params
    assert 0 < n < before.flat.size
    assert np.array_equal(together.flat[n:], before.flat[n:])
    assert np.abs(together.flat[:n] - before.flat[:n]).max() > 1e-3
