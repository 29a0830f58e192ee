"""A backward frees what it uses: the arrays of the size tokens times vocabulary go first."""

import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from npgpt import layers
from npgpt.models.transformer import Transformer, TransformerConfig, teacher_forced
from tests.models.families import tiny

V, B, T, C = 4000, 4, 32, 16
IDS = np.random.default_rng(0).integers(3, V, (B, T))
TRANSFORMER = Transformer(TransformerConfig(
    source_vocab_size=V, target_vocab_size=V, n_layer=1, n_head=2, n_embd=C, dropout=0.0))
CASES = {       # model, tokens, the layer whose backward is the first one of a block
    **{name: (tiny(name, vocab_size=V, block_size=T, n_embd=C), (IDS, IDS), first)
       for name, first in (("gpt", "gelu"), ("llama", "swiglu"))},
    "transformer": (TRANSFORMER, (IDS, *teacher_forced(IDS)), "relu"),
}


def largest_arrays():
    """-> bytes of the arrays that are alive, the largest first."""
    only_arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    snapshot = tracemalloc.take_snapshot().filter_traces([only_arrays])
    return sorted((trace.size for trace in snapshot.traces), reverse=True)


@pytest.mark.parametrize(("model", "batch", "name"), CASES.values(), ids=CASES)
def test_no_array_of_tokens_times_vocabulary_is_alive_in_the_blocks_backward(model, batch, name,
                                                                             request):
    if request.config.getoption("--device") == "gpu":
        pytest.skip("the memory of the host is traced, and the layers compute on the GPU")
    alive = {}

    def watched(name):
        def function(*arguments):
            alive.setdefault(name, largest_arrays())
            return getattr(layers, name)(*arguments)
        return function

    first_of_a_block = f"{name}_backward"
    names = ("linear_cross_entropy_backward", first_of_a_block)
    model.layers = SimpleNamespace(**vars(layers) | {way: watched(way) for way in names})
    model.layers.LAYERS = layers.LAYERS | {
        name: layers.Layer(layers.LAYERS[name].forward, watched(first_of_a_block))}
    grads = model.gradients()
    tracemalloc.start()
    try:
        model.loss_and_grads(*batch, into=grads)
    finally:
        tracemalloc.stop()
        model.layers = layers
    assert alive["linear_cross_entropy_backward"][0] >= C * V * 4        # the test sees arrays
    assert alive[first_of_a_block][0] < B * T * V * 4 / 4


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_no_gradient_of_the_head_is_alive_in_the_backward_of_the_embeddings(name, request):
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the layers are replaced, and keep arrays of the host")
    model, batch, _ = CASES[name]
    alive = []

    def backward_of_the_head(dloss, cache):
        dx, dw, db = layers.linear_cross_entropy_backward(dloss, cache)
        alive.append(weakref.ref(dx))
        return dx, dw, db

    def backward_of_the_embeddings(dy, cache):
        assert alive[0]() is None
        alive.append("checked")
        return layers.embedding_backward(dy, cache)

    model.layers = SimpleNamespace(**vars(layers) | {
        "linear_cross_entropy_backward": backward_of_the_head,
        "embedding_backward": backward_of_the_embeddings})
    try:
        model.loss_and_grads(*batch)
    finally:
        model.layers = layers
    assert alive[-1] == "checked"
