"""What is special about Llama. test_language_model.py has what holds for every family."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from npgpt import LlamaConfig, UserError, layers
from npgpt.kernels import with_versions
from npgpt.layers import Key, Layer, dropout
from tests.models.families import config_of, tiny
from tests.models.test_language_model import apart, batch

QWEN3 = {"vocab_size": 151936, "n_layer": 28, "n_head": 16, "n_kv_head": 8, "n_embd": 1024,
         "head_dim": 128, "n_inner": 3072, "qk_norm": True}


@pytest.mark.parametrize(("options", "number"), [
    ({"n_kv_head": 3}, 134_515_008),                       # SmolLM2-135M
    (QWEN3, 596_049_920),                                  # Qwen3-0.6B
])
def test_number_of_parameters_is_that_of_the_published_models(options, number):
    shapes = LlamaConfig(**options).shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == number


@pytest.mark.parametrize(("options", "expected"), [
    ({}, {"n_kv_head": 4, "head_dim": 6, "n_inner": 64}),
    ({"n_embd": 576, "n_head": 9}, {"n_kv_head": 9, "head_dim": 64, "n_inner": 1536}),
    ({"n_embd": 40}, {"n_kv_head": 4, "head_dim": 10, "n_inner": 128}),
    ({"n_kv_head": 1, "head_dim": 2, "n_inner": 5}, {"n_kv_head": 1, "head_dim": 2, "n_inner": 5}),
])
def test_sizes_follow_from_the_others_if_they_are_not_given(options, expected):
    config = config_of("llama", **{"n_embd": 24, "n_kv_head": None} | options)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(("option", "message"), [
    ({"n_kv_head": 3}, "n_head must be a multiple of n_kv_head, got 4 and 3"),
    ({"n_kv_head": 8}, "n_head must be a multiple of n_kv_head, got 4 and 8"),
    ({"n_kv_head": 0}, "n_kv_head must be at least 1, got 0"),
    ({"head_dim": 5}, "head_dim must be even, because RoPE rotates pairs of channels, got 5"),
    ({"n_embd": 12}, "head_dim must be even, because RoPE rotates pairs of channels, got 3"),
    ({"n_embd": 18, "head_dim": 4}, "n_embd must be a multiple of n_head, got 18 and 4"),
    ({"n_embd": 18, "qk_norm": True}, "n_embd must be a multiple of n_head, got 18 and 4"),
    ({"rope_theta": 0}, "rope_theta must be at least 1, got 0"),
    ({"rope_theta": None}, "rope_theta must be a number, got None"),
    ({"qk_norm": True, "mlp_bias": True}, "qk_norm and mlp_bias are of different models, Qwen3 "
                                          "and Llama; choose one"),
    ({"qk_norm": 1}, "qk_norm must be true or false, got 1"),
])
def test_invalid_architecture_is_refused(option, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        config_of("llama", **option)


BLOCK = "layers.1."


@pytest.mark.parametrize(("options", "name", "there"), [
    ({}, "self_attn.qkv_proj.bias", False), ({}, "self_attn.o_proj.bias", False),
    ({"attention_bias": True}, "self_attn.qkv_proj.bias", True),
    ({"attention_bias": True}, "self_attn.o_proj.bias", True),
    ({"attention_bias": True}, "mlp.gate_up_proj.bias", False),
    ({"mlp_bias": True}, "mlp.gate_up_proj.bias", True),
    ({"mlp_bias": True}, "mlp.down_proj.bias", True),
    ({"mlp_bias": True}, "self_attn.o_proj.bias", False),
    ({}, "self_attn.q_norm.weight", False), ({}, "self_attn.k_norm.weight", False),
    ({"qk_norm": True}, "self_attn.q_norm.weight", True),
    ({"qk_norm": True}, "self_attn.k_norm.weight", True),
])
def test_options_of_the_architecture_add_parameters(options, name, there):
    assert (BLOCK + name in config_of("llama", **options).architecture()) == there


def test_parameters_have_the_shapes_of_their_heads():
    """4 heads of queries, 2 of keys and values, with 6 channels each; the token has 16."""
    architecture = config_of("llama", qk_norm=True, head_dim=6, n_inner=10,
                             attention_bias=True).architecture()
    found = {name.removeprefix(BLOCK): (param.shape, param.widths)
             for name, param in architecture.items() if name.startswith(BLOCK)}
    assert found == {
        "input_layernorm.weight": ((16,), (16,)),
        "self_attn.qkv_proj.weight": ((16, 48), (24, 12, 12)),
        "self_attn.qkv_proj.bias": ((48,), (24, 12, 12)),
        "self_attn.q_norm.weight": ((6,), (6,)), "self_attn.k_norm.weight": ((6,), (6,)),
        "self_attn.o_proj.weight": ((24, 16), (16,)), "self_attn.o_proj.bias": ((16,), (16,)),
        "post_attention_layernorm.weight": ((16,), (16,)),
        "mlp.gate_up_proj.weight": ((16, 20), (10, 10)),
        "mlp.down_proj.weight": ((10, 16), (16,)),
    }


@pytest.mark.parametrize(("options", "attn", "rest"), [
    ({"dropout": 0.5}, 0.5, 0.5), ({"dropout": 0.5, "attn_dropout": 0.25}, 0.25, 0.5),
    ({"dropout": 0.5, "attn_dropout": 0.0}, 0, 0.5), ({"attn_dropout": 0.75}, 0.75, 0),
])
def test_attention_may_have_a_dropout_of_its_own(options, attn, rest, monkeypatch):
    rates = {}

    def watched(xp, key, p, shape, original=dropout.keep_mask):
        rates[key.site] = p
        return original(xp, key, p, shape)

    monkeypatch.setattr(dropout, "keep_mask", watched)
    model, (idx, targets) = tiny("llama", **options), batch()
    model.loss_and_grads(idx, targets, Key(1, 2))
    expected = {(0,): rest, (1, 0, 0): attn, (1, 0, 1): rest, (1, 1): rest,
                (2, 0, 0): attn, (2, 0, 1): rest, (2, 1): rest}
    assert rates == {site: rate for site, rate in expected.items() if rate}


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
def test_heads_that_share_keys_equal_heads_with_copies_of_them(options):
    """The gradient of a shared head is the sum of those of its copies."""
    grouped, (idx, targets) = tiny("llama", "float64", **options), batch()
    whole = tiny("llama", "float64", n_kv_head=4, **options)
    for name, w in grouped.params.items():
        whole.params[name] = _copied(w) if "qkv_proj" in name else w
    loss, grads = grouped.loss_and_grads(idx, targets)
    same, of_copies = whole.loss_and_grads(idx, targets)
    assert loss == pytest.approx(same, rel=1e-13)
    for name, g in of_copies.items():
        assert apart(grads[name], _summed(g) if "qkv_proj" in name else g) < 1e-12, name


def _copied(w):
    """(16, 32), 4 heads of q, 2 of k and 2 of v with 4 channels -> (16, 48), 4 heads of each."""
    q, k, v = np.split(w, [16, 24], axis=1)
    k, v = (part.reshape(16, 2, 4).repeat(2, axis=1).reshape(16, 16) for part in (k, v))
    return np.concatenate([q, k, v], axis=1)


def _summed(g):
    """The other way round: the gradients of the two copies, added."""
    q, k, v = np.split(g, 3, axis=1)
    k, v = (part.reshape(16, 2, 2, 4).sum(2).reshape(16, 8) for part in (k, v))
    return np.concatenate([q, k, v], axis=1)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
def test_order_of_the_tokens_matters_through_the_rotation_alone(options):
    """There is no table of positions: with angles of 0 the last token sees a set of tokens."""
    idx, _ = batch()
    swapped = idx.copy()
    swapped[:, [1, 2]] = idx[:, [2, 1]]
    model = tiny("llama", "float64", n_layer=1, **options)
    model.params.flat[...] = np.random.default_rng(0).standard_normal(model.params.flat.size) * 0.4
    assert apart(model.logits(idx)[:, -1], model.logits(swapped)[:, -1]) > 1e-3
    model.layers = SimpleNamespace(**vars(layers) | {"rotation": still})
    assert apart(model.logits(idx)[:, -1], model.logits(swapped)[:, -1]) < 1e-12


def still(xp, T, D, *given):
    return xp.ones((T, D // 2)), xp.zeros((T, D // 2))


def test_base_of_the_angles_changes_the_logits():
    """But not those of the first position, whose angles are 0."""
    idx, _ = batch()
    logits, other = (tiny("llama", rope_theta=base).logits(idx) for base in (10_000.0, 10.0))
    np.testing.assert_array_equal(logits, tiny("llama").logits(idx))
    np.testing.assert_array_equal(logits[:, 0], other[:, 0])
    assert apart(other, logits) > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_have_the_precision_of_the_model(dtype):
    """Float32 angles would limit a float64 model to seven digits."""
    rope, used = layers.LAYERS["rope"], []

    def watched(x, cos, sin):
        used.append((cos, sin))
        return rope.forward(x, cos, sin)

    model, (idx, _) = tiny("llama", dtype), batch()
    model.layers = with_versions({"rope": Layer(watched, rope.backward)})
    model.logits(idx)
    assert len(used) == 4                            # q and k in each of two blocks
    for found in used:
        for angles, expected in zip(found, layers.rotation(np, 8, 4, 1e4, dtype=dtype)):
            assert angles.dtype == dtype
            np.testing.assert_array_equal(angles, expected)


def test_matrices_and_tables_decay_and_norms_and_biases_do_not():
    table = config_of("llama", attention_bias=True, qk_norm=True, tie_weights=False).architecture()
    assert {param.group for name, param in table.items() if "proj.weight" in name} == {"matrix"}
    assert table["embed_tokens.weight"].group == table["lm_head.weight"].group == "table"
    assert {param.group for name, param in table.items()
            if name.endswith(("norm.weight", "bias"))} == {"vector"}


def test_width_of_the_mlp_is_by_default_a_multiple_of_32():
    widths = {C: LlamaConfig(n_embd=C, n_head=1).n_inner for C in (2, 12, 14, 96, 98, 4096)}
    assert widths == {2: 32, 12: 32, 14: 64, 96: 256, 98: 288, 4096: 10944}
