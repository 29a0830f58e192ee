"""A step of training from Python. tests/commands/test_reference.py follows whole runs."""

import numpy as np
import pytest

from npgpt.layers import Key
from npgpt.optim import AdamW, Muon
from npgpt.parallel import Processes, can_fork
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training.config import TrainingConfig
from npgpt.training.step import batches_of_step, train_step
from tests.models.families import FAMILIES, tiny
from tests.training.two_ranks import TwoRanks


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny(request.param, "float64", vocab_size=7, block_size=6, n_layer=1, n_embd=8)


@pytest.mark.parametrize(("options", "limit"), [
    ({}, np.inf), ({"grad_clip": 0.0}, np.inf), ({"grad_clip": 0.5}, 0.5), ({"grad_clip": 99}, 99)])
def test_step_limits_the_norm_of_the_gradients_only_if_it_is_asked_to(model, options, limit):
    idx, targets = np.random.default_rng(0).integers(7, size=(2, 4, 6))
    model.params.flat[...] *= 10
    expected_loss, grads = model.loss_and_grads(idx, targets)
    norm, expected = np.linalg.norm(grads.flat), grads.flat.copy()
    assert 1 < norm < 99
    optimizer = AdamW(model.params, beta1=0.75)
    loss, found_norm = train_step(model, optimizer, [(idx, targets, Key(1, 1))], model.gradients(),
                                  lr=1e-3, **options)
    assert loss == expected_loss and found_norm == pytest.approx(norm, rel=1e-12)
    np.testing.assert_allclose(optimizer.m, 0.25 * expected * min(1, limit / norm), rtol=1e-5)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_step_updates_the_ranks_shard_and_gathers_the_others(model, kind):
    idx = np.random.default_rng(0).integers(7, size=(4, 6))
    optimizer, before = kind(model.params), model.params.flat.copy()
    optimizer.set_rank(0, 2)
    train_step(model, optimizer, [(idx, idx, Key(1, 1))], model.gradients(), TwoRanks(), lr=1e-3)
    moved = np.abs(model.params.flat - before)
    assert 0 < max(moved[own].max() for own in optimizer.shards[0]) < 0.01
    assert optimizer.shards[1] and all((model.params.flat[s] == 7).all()
                                       for s in optimizer.shards[1])


def test_communicator_knows_the_shards_and_the_number_of_passes_before_the_first_one(model):
    """With them, the sum of a bucket begins during the last backward."""
    begun = []

    class Early(TwoRanks):
        def begin(self, grads, shards, passes):
            super().begin(grads, shards, passes)
            begun.append((grads, shards, passes))

    idx = np.random.default_rng(0).integers(7, size=(4, 6))
    optimizer, grads = AdamW(model.params), model.gradients()
    optimizer.set_rank(0, 2)
    train_step(model, optimizer, [(idx, idx, Key(1, part)) for part in range(3)], grads, Early(),
               lr=1e-3)
    assert begun == [(grads, optimizer.shards, 3)] and len(optimizer.shards) == 2


@pytest.mark.skipif(not can_fork(), reason="processes cannot share memory here")
def test_ranks_that_compute_get_the_rows_of_a_step_once_and_others_none():
    data = Dataset(TokenSource.from_text("abcdefg" * 40), 6)
    c, comm, found = TrainingConfig(batch_size=5, grad_accum=2, seed=3), Processes(4, 2), []
    for comm.rank in range(4):
        found.append([(idx, targets, key, count)
                      for idx, targets, key, count in batches_of_step(data, c, 8, comm)])
    assert [len(of_rank) for of_rank in found] == [2, 2, 0, 0]
    assert [[key for _, _, key, _ in of_rank] for of_rank in found[:2]] == [
        [Key(3, 8, 0), Key(3, 8, 5)], [Key(3, 8, 2), Key(3, 8, 7)]]
    assert {count for of_rank in found for *_, count in of_rank} == {10 * 6}
    whole = data.batch(3, 8, 10)
    for which in range(2):
        parts = [found[rank][part][which] for part in range(2) for rank in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[which])
