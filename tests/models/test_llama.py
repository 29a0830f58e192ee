import math

import numpy as np
import pytest

from npgpt import UserError
from npgpt.kernels import with_versions
from npgpt.layers import LAYERS, Key, Layer, dropout, rotation
from npgpt.models.generate import KVCache
from npgpt.models.llama import Llama, LlamaConfig, llama_backward, llama_forward

SMALL = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 4, "n_kv_head": 2,
         "n_embd": 16, "n_inner": 24}
VARIANTS = [
    {}, {"tie_weights": False}, {"attention_bias": True, "mlp_bias": True}, {"qk_norm": True},
    {"n_kv_head": None}, {"head_dim": 6}, {"tie_weights": False, "qk_norm": True, "head_dim": 2},
]
QWEN3 = {"vocab_size": 151936, "n_layer": 28, "n_head": 16, "n_kv_head": 8, "n_embd": 1024,
         "head_dim": 128, "n_inner": 3072, "qk_norm": True}


def model(dtype="float32", seed=1, **options):
    return Llama(LlamaConfig(**SMALL | options), seed=seed, dtype=dtype)


def batch(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(11, size=(rows, 8)), rng.integers(11, size=(rows, 8))


def test_future_token_leaves_past_logits_unchanged():
    llama, (idx, _) = model(), batch()
    before = llama.logits(idx)
    idx[:, 5] = (idx[:, 5] + 1) % 11
    after = llama.logits(idx)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


def test_order_of_the_past_matters():
    """There is no table of positions: only RoPE shows the order."""
    llama = model("float64")
    llama.params.flat[...] = np.random.default_rng(0).standard_normal(llama.params.flat.size)
    a, b = llama.logits([[1, 2, 3], [2, 1, 3]])
    assert not np.allclose(a[-1], b[-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_loss_is_that_of_a_uniform_prediction(variant):
    idx, targets = batch(64)
    assert model(**variant).loss(idx, targets) == pytest.approx(math.log(11), rel=0.02)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_have_the_names_and_shapes_of_the_parameters(variant):
    llama, (idx, targets) = model(**variant), batch()
    _, grads = llama.loss_and_grads(idx, targets)
    assert {n: g.shape for n, g in grads.items()} == {n: w.shape for n, w in llama.params.items()}
    assert all(np.asarray(g).any() for g in grads.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_has_the_dtype_of_the_parameters(dtype):
    llama, (idx, targets) = model(dtype, dropout=0.2), batch()
    loss, grads = llama.loss_and_grads(idx, targets, Key(1, 2))
    assert {llama.logits(idx).dtype, loss.dtype, grads.flat.dtype} == {np.dtype(dtype)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_with_the_cache_equal_those_of_the_full_forward(variant):
    llama, (idx, _) = model("float64", **variant), batch()
    llama.params.flat[...] = np.random.default_rng(0).standard_normal(llama.params.flat.size) * 0.4
    full = llama.logits(idx)
    for lengths in ([1] * 8, [3, 5], [5, 1, 2]):
        kv = KVCache(2, 8)
        parts = [llama.logits(part, kv) for part in np.split(idx, np.cumsum(lengths)[:-1], axis=1)]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=1e-12)


def test_theta_is_that_of_the_rotation():
    idx, _ = batch()
    logits = {theta: model("float64", rope_theta=theta).logits(idx) for theta in (1e2, 1e5)}
    np.testing.assert_array_equal(logits[1e5], model("float64").logits(idx))
    np.testing.assert_array_equal(logits[1e2][:, 0], logits[1e5][:, 0])
    assert not np.allclose(logits[1e2], logits[1e5], rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_have_the_precision_of_the_model(dtype):
    """Float32 angles would limit a float64 model to seven digits."""
    used = []

    def watched(x, cos, sin):
        used.append((cos, sin))
        return LAYERS["rope"].forward(x, cos, sin)

    llama, (idx, _) = model(dtype), batch()
    llama.layers = with_versions({"rope": Layer(watched, LAYERS["rope"].backward)})
    llama.logits(idx)
    assert len(used) == 4                            # q and k in each of two blocks
    for found in used:
        for angles, expected in zip(found, rotation(np, 8, 4, 1e5, dtype=dtype)):
            assert angles.dtype == dtype
            np.testing.assert_array_equal(angles, expected)


@pytest.mark.parametrize(("options", "count"), [({}, 5), ({"qk_norm": True}, 9)])
def test_eps_is_that_of_every_norm(options, count):
    used = []

    def watched(x, w, eps=1e-5):
        used.append(eps)
        return LAYERS["rmsnorm"].forward(x, w, eps)

    layers = with_versions({"rmsnorm": Layer(watched, LAYERS["rmsnorm"].backward)})
    llama, (idx, _) = model(norm_eps=0.02, **options), batch()
    llama_forward(idx, llama.params.tree, llama.config, layers=layers)
    assert used == [0.02] * count                    # in each block, and the last one


def test_every_dropout_has_its_own_mask_and_rate(monkeypatch):
    rates = {}

    def watched(xp, key, p, shape, original=dropout.keep_mask):
        assert key.site not in rates
        rates[key.site] = p
        return original(xp, key, p, shape)

    monkeypatch.setattr(dropout, "keep_mask", watched)
    idx, targets = batch()
    model(dropout=0.5, attn_dropout=0.25).loss_and_grads(idx, targets, Key(1, 2))
    assert rates == {(0,): 0.5, (1, 0, 0): 0.25, (1, 0, 1): 0.5, (1, 1): 0.5,
                     (2, 0, 0): 0.25, (2, 0, 1): 0.5, (2, 1): 0.5}
    rates.clear()
    model(dropout=0.5).loss_and_grads(idx, targets, Key(1, 2))
    assert set(rates.values()) == {0.5} and len(rates) == 7


def test_tied_head_is_the_embedding():
    llama, (idx, targets) = model("float64"), batch()
    assert "lm_head.weight" not in llama.params
    untied = Llama(LlamaConfig(**SMALL, tie_weights=False), dtype="float64", values=[
        *llama.params.items(), ("lm_head.weight", llama.params["embed_tokens.weight"])])
    loss, grads = llama.loss_and_grads(idx, targets)
    loss_apart, grads_apart = untied.loss_and_grads(idx, targets)
    assert loss == loss_apart
    both = grads_apart["embed_tokens.weight"] + grads_apart["lm_head.weight"]
    np.testing.assert_allclose(grads["embed_tokens.weight"], both, rtol=1e-12, atol=1e-16)


def test_gradient_passed_to_the_backward_is_not_modified():
    llama, (idx, _) = model("float64"), batch()
    logits, cache = llama_forward(idx, llama.params.tree, llama.config)
    dlogits = np.random.default_rng(0).standard_normal(logits.shape)
    kept = dlogits.copy()
    llama_backward(dlogits, cache, llama.gradients())
    np.testing.assert_array_equal(dlogits, kept)


def test_initial_weights_are_small_before_an_addition_and_norms_are_one():
    config = LlamaConfig(vocab_size=500, block_size=64, n_layer=8, n_head=4, n_kv_head=2,
                         n_embd=128, n_inner=128, qk_norm=True, attention_bias=True)
    for name, array in Llama(config).params.items():
        if name.endswith("norm.weight"):
            assert (array == 1).all()
        elif name.endswith("bias"):
            assert not array.any()
        else:
            added = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert array.std() == pytest.approx(0.02 / 4 if added else 0.02, rel=0.05)   # √(2 * 8)


def test_names_and_shapes_of_a_block():
    shapes = LlamaConfig(**SMALL, head_dim=6, qk_norm=True, attention_bias=True).shapes()
    assert {name.removeprefix("layers.1."): shape for name, shape in shapes.items()
            if name.startswith("layers.1.")} == {
        "input_layernorm.weight": (16,), "self_attn.qkv_proj.weight": (16, 48),
        "self_attn.qkv_proj.bias": (48,), "self_attn.q_norm.weight": (6,),
        "self_attn.k_norm.weight": (6,), "self_attn.o_proj.weight": (24, 16),
        "self_attn.o_proj.bias": (16,), "post_attention_layernorm.weight": (16,),
        "mlp.gate_up_proj.weight": (16, 48), "mlp.down_proj.weight": (24, 16)}
    shapes = LlamaConfig(**SMALL, mlp_bias=True, tie_weights=False).shapes()
    assert shapes["layers.0.mlp.gate_up_proj.bias"] == (48,)
    assert shapes["layers.0.mlp.down_proj.bias"] == (16,)
    assert shapes["embed_tokens.weight"] == shapes["lm_head.weight"] == (11, 16)
    assert shapes["norm.weight"] == (16,) and "layers.0.self_attn.qkv_proj.bias" not in shapes


def test_groups_and_matrices_side_by_side():
    """Muon updates each matrix by itself, AdamW the tables; norms and biases do not decay."""
    table = LlamaConfig(**SMALL, attention_bias=True, tie_weights=False).architecture()
    assert table["layers.0.self_attn.qkv_proj.weight"].widths == (16, 8, 8)
    assert table["layers.0.mlp.gate_up_proj.weight"].widths == (24, 24)
    assert table["layers.0.self_attn.o_proj.weight"].widths == (16,)
    assert {param.group for name, param in table.items() if "proj.weight" in name} == {"matrix"}
    assert table["embed_tokens.weight"].group == table["lm_head.weight"].group == "table"
    assert {param.group for name, param in table.items()
            if name.endswith(("norm.weight", "bias"))} == {"vector"}


@pytest.mark.parametrize(("options", "count"), [({}, 134_515_008), (QWEN3, 596_049_920)])
def test_number_of_parameters_of_smollm2_and_of_qwen3(options, count):
    shapes = LlamaConfig(**options).shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == count


def test_sizes_that_are_not_given_follow_from_the_others():
    config = LlamaConfig(**SMALL | {"n_kv_head": None, "n_inner": None, "dropout": 0.25})
    assert (config.groups, config.head_size, config.attention_dropout) == (4, 4, 0.25)
    widths = {C: LlamaConfig(n_embd=C, n_head=1, n_kv_head=1, n_inner=None).inner
              for C in (2, 12, 14, 96, 98, 4096)}
    assert widths == {2: 32, 12: 32, 14: 64, 96: 256, 98: 288, 4096: 10944}
    assert LlamaConfig(**SMALL, head_dim=6, attn_dropout=0.0).head_size == 6
    assert LlamaConfig(**SMALL, dropout=0.5, attn_dropout=0.0).attention_dropout == 0


@pytest.mark.parametrize(("option", "message"), [
    ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
    ({"n_embd": 15}, "n_embd must be a multiple of n_head, got 15 and 4; or give head_dim"),
    ({"n_embd": 12}, "a head must have an even number of channels, because RoPE rotates pairs, "
                     "got 3"),
    ({"head_dim": 5}, "even number of channels, because RoPE rotates pairs, got 5"),
    ({"n_kv_head": 3}, "n_head must be a multiple of n_kv_head, got 4 and 3"),
    ({"n_kv_head": 8}, "n_head must be a multiple of n_kv_head, got 4 and 8"),
    ({"qk_norm": True, "mlp_bias": True}, "qk_norm and mlp_bias are of different models"),
    ({"rope_theta": 0}, "rope_theta must be above 0, got 0"),
])
def test_invalid_architecture_is_refused(option, message):
    with pytest.raises(UserError, match=message):
        LlamaConfig(**SMALL | option)
    assert LlamaConfig(**SMALL | {"n_embd": 15, "head_dim": 4}).n_embd == 15
