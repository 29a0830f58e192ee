"""A model that computes its blocks again has the same bits, and less memory before the backward."""

import dataclasses
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from npgpt import GPT, Llama, layers
from npgpt.layers import Key
from npgpt.models.recompute import recomputed
from npgpt.models.transformer import Transformer, TransformerConfig, teacher_forced
from tests.models.families import config_of

IDS = np.random.default_rng(0).integers(3, 11, (2, 8))
ARCHITECTURES = {
    "gpt": (GPT, config_of("gpt", dropout=0.3)),
    "llama": (Llama, config_of("llama", dropout=0.3)),
    "transformer": (Transformer, TransformerConfig(
        source_vocab_size=11, target_vocab_size=11, n_layer=2, n_head=2, n_embd=16, dropout=0.3)),
}
MODELS = pytest.mark.parametrize(("model", "config"), ARCHITECTURES.values(), ids=ARCHITECTURES)


def batch(model, ids=IDS):
    return (ids, *teacher_forced(ids)) if model is Transformer else (ids, np.roll(ids, -1, 1))


def loss_and_grads(model, config, **options):
    built = model(config, **options)
    loss, grads = built.loss_and_grads(*batch(model), key=Key(seed=5, step=2))
    return loss, dict(grads)


@MODELS
@pytest.mark.parametrize("attention", ["plain", "tiled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_and_gradients_have_the_same_bits(model, config, attention, dtype):
    loss, grads = loss_and_grads(model, config, attention=attention, dtype=dtype)
    found, others = loss_and_grads(model, config, attention=attention, dtype=dtype, recompute=True)
    assert found == loss and others.keys() == grads.keys()
    for name, grad in grads.items():
        assert grad.any() and others[name].tobytes() == grad.tobytes(), name


@MODELS
def test_memory_of_the_backward_is_lower(model, config, request):
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the memory of the host is traced, and the layers compute elsewhere")
    ids = np.random.default_rng(0).integers(3, 11, (16, 8))
    config = dataclasses.replace(config, n_layer=8)
    peaks = {}
    for recompute in (False, True):
        built = model(config, recompute=recompute)
        grads = built.gradients()
        tracemalloc.start()
        try:
            built.loss_and_grads(*batch(model, ids), into=grads)
            peaks[recompute] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peaks[True] < peaks[False] / 2


@MODELS
@pytest.mark.parametrize("options", [{}, {"recompute": True}])
def test_blocks_are_computed_again_only_if_asked(model, config, options):
    """The family's functions; the dropout of the embeddings is no block's."""
    calls = []

    def counted(x, rate, key):
        calls.append(key)
        return layers.dropout_forward(x, rate, key)

    built = model(config)
    tokens = batch(model)[:-1]
    y, cache = model.forward(*tokens, built.params.tree, config, Key(5, 2), **options,
                             layers=SimpleNamespace(**vars(layers) | {"dropout_forward": counted}))
    before = len(calls)
    model.backward(np.ones_like(y), cache, built.gradients())
    stacks = 2 if model is Transformer else 1
    assert len(calls) - before == (before - stacks if options else 0)


def test_block_is_computed_in_the_forward_and_again_in_the_backward():
    calls = []

    def forward(x, factor, *, shift=0):
        calls.append("forward")
        return x * factor + shift, (x, factor)

    def backward(dy, cache):
        calls.append("backward")
        x, factor = cache
        return dy * factor, dy * x

    block_forward, block_backward = recomputed((forward, backward))
    y, cache = block_forward(3, 5, shift=1)
    assert y == 16 and calls == ["forward"] and cache == ((3, 5), {"shift": 1})
    assert block_backward(2, cache) == (10, 6)
    assert calls == ["forward", "forward", "backward"]
