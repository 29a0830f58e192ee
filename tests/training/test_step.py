"""A step of training from Python. tests/commands/test_reference.py follows whole runs."""

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.layers import Key
from npgpt.optim import AdamW
from npgpt.training.step import train_step


@pytest.fixture
def gpt():
    config = GPTConfig(vocab_size=7, block_size=6, n_layer=1, n_head=2, n_embd=8)
    return GPT(config, dtype="float64")


@pytest.mark.parametrize(("options", "limit"), [
    ({}, np.inf), ({"grad_clip": 0.0}, np.inf), ({"grad_clip": 0.5}, 0.5), ({"grad_clip": 99}, 99)])
def test_step_limits_the_norm_of_the_gradients_only_if_it_is_asked_to(gpt, options, limit):
    idx, targets = np.random.default_rng(0).integers(7, size=(2, 4, 6))
    gpt.params.flat[...] *= 10
    expected_loss, grads = gpt.loss_and_grads(idx, targets)
    norm, expected = np.linalg.norm(grads.flat), grads.flat.copy()
    assert 1 < norm < 99
    optimizer = AdamW(gpt.params, beta1=0.75)
    loss, found_norm = train_step(gpt, optimizer, [(idx, targets, Key(1, 1))], gpt.gradients(),
                                  lr=1e-3, **options)
    assert loss == expected_loss and found_norm == pytest.approx(norm, rel=1e-12)
    np.testing.assert_allclose(optimizer.m, 0.25 * expected * min(1, limit / norm), rtol=1e-5)
