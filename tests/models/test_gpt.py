"""What is special about GPT. test_language_model.py has what holds for every family."""

import math

import numpy as np
import pytest

from npgpt import GPTConfig, UserError
from npgpt.layers import Key, dropout
from tests.models.families import config_of, tiny
from tests.models.test_language_model import batch


@pytest.mark.parametrize(("options", "embd", "attn", "resid"), [
    ({"dropout": 0.5}, 0.5, 0.5, 0.5),
    ({"dropout": 0.5, "embd_dropout": 0.25}, 0.25, 0.5, 0.5),
    ({"dropout": 0.5, "attn_dropout": 0.25}, 0.5, 0.25, 0.5),
    ({"dropout": 0.5, "embd_dropout": 0.0, "attn_dropout": 0.0}, 0, 0, 0.5),
    ({"embd_dropout": 0.25, "attn_dropout": 0.75}, 0.25, 0.75, 0),
])
def test_three_dropouts_may_have_rates_of_their_own(options, embd, attn, resid, monkeypatch):
    rates = {}

    def watched(xp, key, p, shape, original=dropout.keep_mask):
        rates[key.site] = p
        return original(xp, key, p, shape)

    monkeypatch.setattr(dropout, "keep_mask", watched)
    gpt, (idx, targets) = tiny("gpt", **options), batch()
    gpt.loss_and_grads(idx, targets, Key(1, 2))
    expected = {(0,): embd, (1, 0, 0): attn, (1, 0, 1): resid, (1, 1): resid,
                (2, 0, 0): attn, (2, 0, 1): resid, (2, 1): resid}
    assert rates == {site: rate for site, rate in expected.items() if rate}


@pytest.mark.parametrize(("n_inner", "width"), [(None, 64), (24, 24), (1, 1)])
def test_mlp_has_the_given_width(n_inner, width):
    shapes = config_of("gpt", n_inner=n_inner).shapes()
    assert shapes["h.1.mlp.c_fc.weight"] == (16, width) and shapes["h.1.mlp.c_fc.bias"] == (width,)
    assert shapes["h.1.mlp.c_proj.weight"] == (width, 16)
    assert shapes["h.1.mlp.c_proj.bias"] == (16,)
    assert tiny("gpt", n_inner=n_inner).logits(batch()[0]).shape == (4, 8, 11)


def test_number_of_parameters_of_gpt2():
    shapes = GPTConfig().shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == 124_439_808


@pytest.mark.parametrize(("options", "name", "there"), [
    ({}, "h.1.attn.c_attn.bias", True), ({"attn_bias": False}, "h.1.attn.c_attn.bias", False),
    ({"attn_bias": False}, "h.1.attn.c_proj.bias", True), ({}, "lm_head.bias", False),
    ({"head_bias": True}, "lm_head.bias", True), ({}, "lm_head.weight", False),
    ({"tie_weights": False}, "lm_head.weight", True),
])
def test_options_of_the_architecture_add_and_remove_parameters(options, name, there):
    assert (name in config_of("gpt", **options).architecture()) == there


@pytest.mark.parametrize(("option", "message"), [
    ({"embd_dropout": 1.0}, "embd_dropout must be below 1, got 1"),
    ({"activation": "tanh"}, "activation must be gelu or relu, got .tanh."),
])
def test_invalid_architecture_is_refused(option, message):
    with pytest.raises(UserError, match=message):
        config_of("gpt", **option)


def test_bias_of_the_head_is_added_to_the_logits():
    model = tiny("gpt", head_bias=True)
    idx = batch()[0]
    before = model.logits(idx)
    bias = np.random.default_rng(0).standard_normal(11)
    model.params["lm_head.bias"] = bias
    np.testing.assert_allclose(model.logits(idx), before + bias, atol=1e-5)
