import numpy as np
import pytest

from npgpt.kernels import with_versions
from npgpt.layers import (
    LAYERS,
    Key,
    Layer,
    attention_forward,
    causal_mask,
    dropout_forward,
    rmsnorm_forward,
    rope_forward,
    rotation,
)
from npgpt.models.generate import LayerKV
from npgpt.models.llama import LlamaConfig
from npgpt.models.llama_blocks import (
    gated_mlp_backward,
    gated_mlp_forward,
    grouped_attention_backward,
    grouped_attention_forward,
    llama_block_forward,
)
from npgpt.models.parameters import nest
from tests.cases import parameters

H, G, D, T = 4, 2, 6, 5
ANGLES = rotation(np, T, D, dtype="float64")
MASK = causal_mask(np, T, T)
X = np.random.default_rng(1).standard_normal((2, T, 12))
KEY = Key(1, 1)


def block(**options):
    """-> parameters of a block of Llama."""
    config = LlamaConfig(vocab_size=3, block_size=T, n_layer=1, n_head=H, n_kv_head=G, n_embd=12,
                         head_dim=D, n_inner=3, **options)
    return nest(parameters(config.shapes(), np.random.default_rng(0).standard_normal))["layers"][0]


P = block()
VARIANTS = [{}, {"attention_bias": True}, {"qk_norm": True},
            {"qk_norm": True, "attention_bias": True}]


def linear(x, p, name):
    return x @ p[f"{name}.weight"] + p.get(f"{name}.bias", 0)


@pytest.mark.parametrize("options", [{}, {"mlp_bias": True}])
@pytest.mark.parametrize("key", [None, KEY])
def test_gated_mlp_is_two_projections_a_gate_and_a_third(options, key):
    """The gate is the first half."""
    p = block(**options)["mlp"]
    gate, up = np.split(linear(X, p, "gate_up_proj"), 2, axis=-1)
    y, cache = gated_mlp_forward(X, p, 0.4, key)
    expected = linear(gate / (1 + np.exp(-gate)) * up, p, "down_proj")
    np.testing.assert_allclose(y, dropout_forward(expected, 0.4, key)[0], rtol=1e-12)
    _, dp = gated_mlp_backward(y, cache)
    assert dp.keys() == p.keys()


def attended(x, p, rates, key, eps=1e-5, mask=None):
    """grouped_attention by its parts, with a copy of the keys for each head of queries."""
    q, k, v = np.split(linear(x, p, "qkv_proj"), [H * D, (H + G) * D], axis=-1)
    q, k, v = (a.reshape(2, T, -1, D).swapaxes(1, 2) for a in (q, k, v))
    if "q_norm.weight" in p:
        q = rmsnorm_forward(q, p["q_norm.weight"], eps)[0]
        k = rmsnorm_forward(k, p["k_norm.weight"], eps)[0]
    q, k = (rope_forward(a, *ANGLES)[0] for a in (q, k))
    k, v = (a.repeat(H // G, axis=1) for a in (k, v))
    heads, _ = attention_forward(q, k, v, mask, rates[0], key and key.at(0))
    y = linear(heads.swapaxes(1, 2).reshape(2, T, H * D), p, "o_proj")
    return dropout_forward(y, rates[1], key and key.at(1))[0]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_grouped_attention_is_composed_of_its_parts(options, mask):
    p = block(**options)["self_attn"]
    y, cache = grouped_attention_forward(X, p, H, G, ANGLES, mask, eps=0.1)
    np.testing.assert_allclose(y, attended(X, p, (0, 0), None, 0.1, mask), rtol=1e-10)
    _, dp = grouped_attention_backward(y, cache)
    assert dp.keys() == p.keys()


@pytest.mark.parametrize(("forward", "p"), [(grouped_attention_forward, P["self_attn"]),
                                            (llama_block_forward, P)])
def test_causal_is_the_causal_mask_and_not_the_default(forward, p):
    past, all_tokens = (forward(X, p, H, G, ANGLES, mask)[0] for mask in (MASK, None))
    np.testing.assert_allclose(forward(X, p, H, G, ANGLES, causal=True)[0], past, atol=1e-13)
    np.testing.assert_array_equal(forward(X, p, H, G, ANGLES)[0], all_tokens)
    assert not np.isclose(past[:, 0], all_tokens[:, 0]).all(axis=-1).any()


@pytest.mark.parametrize("rates", [(0.0, 0.5), (0.5, 0.0), (0.3, 0.6), (None, 0.3)])
def test_weights_of_attention_have_a_dropout_of_their_own(rates):
    """Compared with the parts, each with its rate and its key."""
    p, (attn_rate, rate) = P["self_attn"], rates
    y, _ = grouped_attention_forward(X, p, H, G, ANGLES, None, rate, KEY, attn_dropout=attn_rate)
    attn_rate = rate if attn_rate is None else attn_rate
    np.testing.assert_allclose(y, attended(X, p, (attn_rate, rate), KEY), rtol=1e-10, atol=1e-14)
    own, _ = llama_block_forward(X, P, H, G, ANGLES, None, rate, KEY, attn_dropout=attn_rate)
    one, _ = llama_block_forward(X, P, H, G, ANGLES, None, rate, KEY)
    assert (attn_rate == rate) == np.array_equal(own, one)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
def test_block_adds_the_two_parts_to_what_it_gets(options):
    p, eps, mask = block(**options), 0.1, MASK
    y, _ = llama_block_forward(X, p, H, G, ANGLES, mask, 0.3, KEY, eps=eps)
    h, _ = rmsnorm_forward(X, p["input_layernorm.weight"], eps)
    x = X + attended(h, p["self_attn"], (0.3, 0.3), KEY.at(0), eps, mask)
    h, _ = rmsnorm_forward(x, p["post_attention_layernorm.weight"], eps)
    expected = x + gated_mlp_forward(h, p["mlp"], 0.3, KEY.at(1))[0]
    np.testing.assert_allclose(y, expected, rtol=1e-10)


@pytest.mark.parametrize(("forward", "p", "given", "explicit"), [
    (gated_mlp_forward, P["mlp"], (), {"dropout": 0.0}),
    (grouped_attention_forward, block(qk_norm=True)["self_attn"], (H, G, ANGLES),
     {"mask": None, "dropout": 0.0, "attn_dropout": 0.0, "eps": 1e-5}),
    (llama_block_forward, block(qk_norm=True), (H, G, ANGLES),
     {"mask": None, "dropout": 0.0, "attn_dropout": 0.0, "eps": 1e-5}),
])
def test_defaults_are_no_mask_no_dropout_and_an_eps_of_1e_5(forward, p, given, explicit):
    left_out, _ = forward(X, p, *given, key=KEY)
    said, _ = forward(X, p, *given, **explicit, key=None)
    np.testing.assert_array_equal(left_out, said)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
def test_tokens_one_by_one_with_a_cache_equal_the_whole_sequence(options):
    """The cache has G heads, and the keys in it are already rotated."""
    p, kv = block(**options), LayerKV(T)
    whole, _ = llama_block_forward(X, p, H, G, ANGLES, MASK)
    for t in range(T):
        angles = rotation(np, 1, D, start=t, dtype="float64")
        y, _ = llama_block_forward(X[:, t:t + 1], p, H, G, angles, kv=kv)
        np.testing.assert_allclose(y[:, 0], whole[:, t], rtol=1e-10)
    assert kv.k.shape == kv.v.shape == (2, G, T, D)


def test_parts_compute_with_the_layers_they_are_given():
    def doubled(name):
        def forward(*inputs):
            y, cache = LAYERS[name].forward(*inputs)
            return 2 * y, cache
        return with_versions({name: Layer(forward, LAYERS[name].backward)})

    plain, _ = llama_block_forward(X, P, H, G, ANGLES)
    for name in ("linear", "swiglu", "rope", "attention", "rmsnorm"):
        other, _ = llama_block_forward(X, P, H, G, ANGLES, layers=doubled(name))
        assert not np.allclose(other, plain), name
