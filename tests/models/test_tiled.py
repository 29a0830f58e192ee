"""A model with tiled attention computes what a model with plain attention does."""

import tracemalloc

import numpy as np
import pytest

from npgpt import GPT, Llama, UserError
from npgpt.layers import Key
from npgpt.models.generate import KVCache
from npgpt.models.transformer import Transformer
from tests.models.families import SIZES, config_of
from tests.models.test_recompute import ARCHITECTURES, IDS, MODELS, loss_and_grads

FAMILIES = {name: ARCHITECTURES[name] for name in ("gpt", "llama")}
DECODERS = pytest.mark.parametrize(("model", "config"), FAMILIES.values(), ids=FAMILIES)


def pair(model, config):
    """-> the same model with plain and with tiled attention."""
    return [model(config, dtype="float64", attention=kind) for kind in ("plain", "tiled")]


def is_tiled(model):
    return model.layers.attention_forward is model.layers.tiled_attention_forward


@MODELS
def test_loss_and_gradients_are_those_of_plain_attention(model, config):
    loss, grads = loss_and_grads(model, config, dtype="float64", attention="plain")
    found, others = loss_and_grads(model, config, dtype="float64", attention="tiled")
    assert found == pytest.approx(float(loss), rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(others[name], grad, rtol=0, atol=1e-12 * np.abs(grad).max())


@DECODERS
def test_logits_are_those_of_plain_attention(model, config):
    plain, tiled = pair(model, config)
    np.testing.assert_allclose(tiled.logits(IDS), plain.logits(IDS), rtol=0, atol=1e-12)


def test_translations_and_cross_attention_are_those_of_plain_attention():
    plain, tiled = pair(*ARCHITECTURES["transformer"])
    np.testing.assert_array_equal(tiled.translate(IDS, 6), plain.translate(IDS, 6))
    for maps in zip(tiled.cross_attention(IDS, IDS), plain.cross_attention(IDS, IDS), strict=True):
        np.testing.assert_allclose(*maps, rtol=0, atol=1e-12)
    assert is_tiled(tiled) and not is_tiled(plain)


@DECODERS
def test_generation_with_a_cache_is_that_of_plain_attention(model, config):
    """A prompt, several tokens at once, and one: the queries are the last of the positions."""
    logits = []
    for built in pair(model, config):
        kv = KVCache(config.n_layer, config.block_size)
        parts = [built.forward(IDS[:, part], built.params.tree, config, kv=kv,
                               layers=built.layers)[0]
                 for part in (slice(0, 4), slice(4, 7), slice(7, 8))]
        logits.append(np.concatenate(parts, axis=1))
        np.testing.assert_allclose(logits[-1], built.logits(IDS), rtol=0, atol=1e-12)
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", [GPT, Llama])
@pytest.mark.parametrize(("context", "tiled"), [(8, False), (511, False), (512, True)])
def test_attention_is_tiled_for_contexts_from_512_on(model, context, tiled):
    config = config_of(model.__name__.lower(), block_size=context)
    assert is_tiled(model(config)) == is_tiled(model(config, attention="auto")) == tiled
    assert is_tiled(model(config, attention="tiled"))
    assert not is_tiled(model(config, attention="plain"))


def test_transformer_has_plain_attention_unless_asked():
    """It has no limit of the context."""
    model, config = ARCHITECTURES["transformer"]
    assert model is Transformer
    assert not is_tiled(model(config)) and is_tiled(model(config, attention="tiled"))


def test_on_a_gpu_attention_is_plain_unless_asked(device):
    config = config_of("gpt", block_size=1024)
    assert not is_tiled(GPT(config, device=device))
    assert is_tiled(GPT(config, device=device, attention="tiled"))


@pytest.mark.parametrize("model", [GPT, Llama])
@pytest.mark.parametrize("wrong", ["flash", "", None, True])
def test_unknown_attention_is_refused(model, wrong):
    with pytest.raises(UserError) as error:
        model(config_of(model.__name__.lower()), attention=wrong)
    assert str(error.value) == f"attention must be one of auto, plain, tiled, got {wrong!r}"


def test_step_of_a_tiled_model_has_no_array_of_all_scores(request):
    """Neither a mask nor the weights: the largest arrays are those of the tokens."""
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the memory of the host is traced, and the layers compute elsewhere")
    T = 2048
    model = GPT(config_of("gpt", block_size=T, n_layer=1), attention="tiled")
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (1, T))
    grads = model.gradients()
    tracemalloc.start()
    try:
        model.loss_and_grads(ids, ids, Key(1, 1), into=grads)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < T * T * 2 * 4 / 2          # half of the scores of two heads
