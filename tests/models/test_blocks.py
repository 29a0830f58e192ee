import numpy as np
import pytest

from npgpt import GPTConfig
from npgpt.layers import Key, attention_forward, causal_mask, dropout_forward, linear_forward
from npgpt.models.blocks import (
    attention_weights,
    block_forward,
    cross_attention_forward,
    merge_heads,
    mlp_forward,
    self_attention_forward,
    split_heads,
)
from npgpt.models.parameters import nest
from tests.cases import parameters

CONFIG = GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=2, n_embd=6)
P = nest(parameters(CONFIG.shapes(), np.random.default_rng(0).standard_normal))["h"][0]
X = np.random.default_rng(1).standard_normal((2, 5, 6))


@pytest.mark.parametrize(("forward", "p", "given", "explicit"), [
    (mlp_forward, P["mlp"], (), {"activation": "gelu", "dropout": 0.0}),
    (self_attention_forward, P["attn"], (2,), {"mask": None, "dropout": 0.0,
                                                 "attn_dropout": 0.0}),
    (block_forward, P, (2,), {"mask": None, "activation": "gelu", "dropout": 0.0,
                              "attn_dropout": 0.0, "eps": 1e-5}),
])
def test_defaults_are_gelu_no_mask_and_no_dropout(forward, p, given, explicit):
    left_out, _ = forward(X, p, *given, key=Key(1, 1))
    said, _ = forward(X, p, *given, **explicit, key=None)
    np.testing.assert_array_equal(left_out, said)


@pytest.mark.parametrize("rates", [(0.0, 0.5), (0.5, 0.0), (0.3, 0.6), (0.3, None)])
def test_weights_of_attention_have_a_dropout_of_their_own(rates):
    """Compared with the parts, each with its rate and its key."""
    rate, attn_rate = rates
    y, _ = self_attention_forward(X, P["attn"], 2, None, rate, Key(1, 1), attn_dropout=attn_rate)
    attn_rate = rate if attn_rate is None else attn_rate
    qkv, _ = linear_forward(X, P["attn"]["c_attn.weight"], P["attn"]["c_attn.bias"])
    heads, _ = attention_forward(*split_heads(qkv, 3, 2), None, attn_rate, Key(1, 1).at(0))
    projected, _ = linear_forward(merge_heads(heads), P["attn"]["c_proj.weight"],
                                  P["attn"]["c_proj.bias"])
    np.testing.assert_allclose(y, dropout_forward(projected, rate, Key(1, 1).at(1))[0])
    block, _ = block_forward(X, P, 2, None, "gelu", rate, Key(1, 1), attn_dropout=attn_rate)
    whole, _ = block_forward(X, P, 2, None, "gelu", rate, Key(1, 1))
    assert (attn_rate == rate) == np.array_equal(block, whole)


@pytest.mark.parametrize(("forward", "p"), [(self_attention_forward, P["attn"]),
                                            (block_forward, P)])
def test_causal_is_the_causal_mask_and_not_the_default(forward, p):
    past, all_tokens = (forward(X, p, 2, mask)[0] for mask in (causal_mask(np, 5, 5), None))
    np.testing.assert_allclose(forward(X, p, 2, causal=True)[0], past, atol=1e-14)
    np.testing.assert_array_equal(forward(X, p, 2)[0], all_tokens)
    assert not np.isclose(past[:, 0], all_tokens[:, 0]).any()
    seen = np.arange(5) != 1                             # both masks hide what they hide
    both = forward(X, p, 2, seen, causal=True)[0]
    np.testing.assert_allclose(both, forward(X, p, 2, causal_mask(np, 5, 5) & seen)[0], atol=1e-14)
    assert not np.isclose(both[:, 2], past[:, 2]).any()


def test_eps_is_that_of_both_norms_of_a_block():
    """Large enough, it makes the norms return their biases."""
    bias = {"ln_1.weight": P["ln_1.weight"] * 0, "ln_2.weight": P["ln_2.weight"] * 0}
    found, _ = block_forward(X, P, 2, eps=1e20)
    np.testing.assert_allclose(found, block_forward(X, P | bias, 2)[0], atol=1e-7)


def test_heads_are_contiguous_channels():
    q, k, v = split_heads(np.arange(2 * 5 * 18.0).reshape(2, 5, 18), 3, 2)
    assert q.shape == k.shape == v.shape == (2, 2, 5, 3)
    assert q[0, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert k[0, :, 0].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert v[1, 1, 4].tolist() == [90 + 4 * 18 + 15, 90 + 4 * 18 + 16, 90 + 4 * 18 + 17]


def test_merging_undoes_splitting():
    x = np.random.default_rng(0).standard_normal((2, 5, 18))
    np.testing.assert_array_equal(merge_heads(*split_heads(x, 3, 2)), x)
    np.testing.assert_array_equal(merge_heads(*split_heads(x, 1, 3)), x)


@pytest.mark.parametrize("key", [None, Key(1, 2)])
def test_cross_attention_attends_to_the_memory(key):
    rng = np.random.default_rng(0)
    x, memory = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 5, 6))
    p = {name: rng.standard_normal(shape) for name, shape in {
        "q_attn.weight": (8, 8), "q_attn.bias": (8,), "c_attn.weight": (6, 16),
        "c_attn.bias": (16,), "c_proj.weight": (8, 8), "c_proj.bias": (8,)}.items()}
    mask = rng.random((2, 1, 1, 5)) < 0.6
    mask[..., 0] = True
    maps = []
    y, _ = cross_attention_forward(x, memory, p, 2, mask, 0.4, key, maps)

    def linear(h, name):
        return h @ p[f"{name}.weight"] + p[f"{name}.bias"]
    (q,) = split_heads(linear(x, "q_attn"), 1, 2)
    k, v = split_heads(linear(memory, "c_attn"), 2, 2)
    heads, _ = attention_forward(q, k, v, mask, 0.4, key and key.at(0))
    expected, _ = dropout_forward(linear(merge_heads(heads), "c_proj"), 0.4,
                                  key and key.at(1))
    np.testing.assert_allclose(y, expected, rtol=1e-12)

    scores = np.where(mask, q @ k.swapaxes(-1, -2) / 2, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(maps[0], weights, rtol=1e-12)        # no dropout in a plot
    q, k = q.astype("float32"), k.astype("float32")
    assert attention_weights(q, k).dtype == np.float32


def test_cross_attention_has_no_dropout_by_default():
    rng = np.random.default_rng(0)
    x, memory = rng.standard_normal((50, 9, 8)), rng.standard_normal((50, 9, 8))
    p = {name: rng.standard_normal(shape) for name, shape in {
        "q_attn.weight": (8, 8), "q_attn.bias": (8,), "c_attn.weight": (8, 16),
        "c_attn.bias": (16,), "c_proj.weight": (8, 8), "c_proj.bias": (8,)}.items()}
    np.testing.assert_array_equal(cross_attention_forward(x, memory, p, 2, key=Key(1, 1))[0],
                                  cross_attention_forward(x, memory, p, 2)[0])
