import math

import numpy as np
import pytest

from npgpt import GPT, GPTConfig, UserError
from npgpt.backend import get_device
from npgpt.kernels import with_versions
from npgpt.layers import LAYERS, Key, Layer, dropout
from npgpt.models.generate import KVCache
from npgpt.models.gpt import gpt_backward, gpt_forward
from npgpt.optim import AdamW
from npgpt.training.step import train_step

SMALL = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
VARIANTS = [
    {}, {"tie_weights": False}, {"attn_bias": False}, {"head_bias": True},
    {"activation": "relu", "tie_weights": False, "attn_bias": False, "head_bias": True},
]


def model(dtype="float32", seed=1, **options):
    return GPT(GPTConfig(**SMALL | options), seed=seed, dtype=dtype)


def batch(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(11, size=(rows, 8)), rng.integers(11, size=(rows, 8))


def apart(a, b):
    """The largest difference, relative to the largest element."""
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_no_tokens_give_no_logits_a_loss_of_zero_and_gradients_of_zero(shape):
    gpt, none = model(), np.zeros(shape, int)
    assert gpt.logits(none).shape == (*shape, 11)
    loss, grads = gpt.loss_and_grads(none, none)
    assert loss == gpt.loss(none, none) == 0
    assert not grads.flat.any()


def test_future_token_leaves_past_logits_unchanged():
    gpt, (idx, _) = model(), batch()
    before = gpt.logits(idx)
    idx[:, 5] = (idx[:, 5] + 1) % 11
    after = gpt.logits(idx)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_loss_is_that_of_a_uniform_prediction(variant):
    gpt = GPT(GPTConfig(vocab_size=65, block_size=32, n_layer=4, n_head=4, n_embd=64, **variant))
    rng = np.random.default_rng(0)
    loss = gpt.loss(rng.integers(65, size=(32, 32)), rng.integers(65, size=(32, 32)))
    assert loss == pytest.approx(math.log(65), rel=0.02)


def train(gpt, steps, rate, idx, targets):
    optimizer, grads = AdamW(gpt.params, weight_decay=0.0), gpt.gradients()
    for _ in range(steps):
        train_step(gpt, optimizer, [(idx, targets)], grads, lr=rate)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_batch_is_memorised(variant):
    gpt, (idx, targets) = model(**variant, n_embd=32), batch()
    train(gpt, 150, 1e-2, idx, targets)
    assert gpt.loss(idx, targets) < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_changes_in_one_step(variant):
    gpt, (idx, targets) = model(**variant), batch()
    before = {name: array.copy() for name, array in gpt.params.items()}
    train(gpt, 1, 1e-2, idx, targets)
    assert [n for n in before if np.array_equal(before[n], gpt.params[n])] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_have_the_names_and_shapes_of_the_parameters(variant):
    gpt, (idx, targets) = model(**variant), batch()
    _, grads = gpt.loss_and_grads(idx, targets)
    assert {n: g.shape for n, g in grads.items()} == {n: w.shape for n, w in gpt.params.items()}
    assert gpt.config.shapes() == {n: w.shape for n, w in gpt.params.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_has_the_dtype_of_the_parameters(dtype):
    gpt, (idx, targets) = model(dtype, dropout=0.2), batch()
    loss, grads = gpt.loss_and_grads(idx, targets, Key(1, 2))
    assert {gpt.logits(idx).dtype, loss.dtype, grads.flat.dtype, gpt.params.flat.dtype} == {
        np.dtype(dtype)}


def test_evaluation_has_no_dropout():
    gpt, (idx, targets) = model(dropout=0.5), batch()
    without = GPT(GPTConfig(**SMALL), seed=1)
    assert gpt.loss(idx, targets) == gpt.loss(idx, targets) == without.loss(idx, targets)
    assert gpt.loss_and_grads(idx, targets, Key(1, 1))[0] != gpt.loss(idx, targets)


def test_same_key_gives_the_same_dropout_and_another_step_different_dropout():
    gpt, (idx, targets) = model(dropout=0.5), batch()
    first, again, other = (gpt.loss_and_grads(idx, targets, Key(1, step)) for step in (1, 1, 2))
    assert first[0] == again[0] and first[0] != other[0]
    np.testing.assert_array_equal(first[1].flat, again[1].flat)


def test_every_dropout_has_its_own_mask(monkeypatch):
    """One after the embeddings; in each block one for the attention and one per projection."""
    sites = []

    def watched(xp, key, p, shape, original=dropout.keep_mask):
        sites.append((key.site, shape))
        return original(xp, key, p, shape)

    monkeypatch.setattr(dropout, "keep_mask", watched)
    gpt, (idx, targets) = model(dropout=0.5), batch()
    gpt.loss_and_grads(idx, targets, Key(1, 2))
    assert len(set(sites)) == len(sites) == 1 + 3 * 2
    assert {site for site, _ in sites} == {       # part of the format: old runs are resumed
        (0,), (1, 0, 0), (1, 0, 1), (1, 1), (2, 0, 0), (2, 0, 1), (2, 1)}
    shapes = [shape for _, shape in sites]
    assert shapes.count((4, 2, 8, 8)) == 2 and shapes.count((4, 8, 16)) == 5


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
    gpt, (idx, targets) = model(**options), batch()
    gpt.loss_and_grads(idx, targets, Key(1, 2))
    expected = {(0,): embd, (1, 0, 0): attn, (1, 0, 1): resid, (1, 1): resid,
                (2, 0, 0): attn, (2, 0, 1): resid, (2, 1): resid}
    assert rates == {site: rate for site, rate in expected.items() if rate}


def test_eps_is_that_of_every_norm():
    used = []

    def watched(x, w, b, eps=1e-5):
        used.append(eps)
        return LAYERS["layernorm"].forward(x, w, b, eps)

    layers = with_versions({"layernorm": Layer(watched, LAYERS["layernorm"].backward)})
    gpt, (idx, _) = model(norm_eps=0.02), batch()
    logits, _ = gpt_forward(idx, gpt.params.tree, gpt.config, layers=layers)
    assert used == [0.02] * 5                              # two in each block, and the last one
    assert apart(logits, model().logits(idx)) > 1e-3


@pytest.mark.parametrize(("n_inner", "width"), [(None, 64), (24, 24), (1, 1)])
def test_mlp_has_the_given_width(n_inner, width):
    shapes = GPTConfig(**SMALL, n_inner=n_inner).shapes()
    assert shapes["h.1.mlp.c_fc.weight"] == (16, width) and shapes["h.1.mlp.c_fc.bias"] == (width,)
    assert shapes["h.1.mlp.c_proj.weight"] == (width, 16)
    assert shapes["h.1.mlp.c_proj.bias"] == (16,)
    assert model(n_inner=n_inner).logits(batch()[0]).shape == (4, 8, 11)


def test_gradient_passed_to_the_backward_is_not_modified():
    gpt, (idx, _) = model("float64"), batch()
    logits, cache = gpt_forward(idx, gpt.params.tree, gpt.config)
    dlogits = np.random.default_rng(0).standard_normal(logits.shape)
    kept = dlogits.copy()
    gpt_backward(dlogits, cache, gpt.gradients())
    np.testing.assert_array_equal(dlogits, kept)


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 1e-5)])
def test_gradients_of_parts_of_a_batch_sum_to_the_whole(parts, dtype, error):
    """With dropout, and with ignored targets spread unevenly over the parts."""
    gpt, (idx, targets) = model(dtype, dropout=0.3), batch(8)
    targets[:3, 2:] = -1
    count = (targets >= 0).sum()
    whole, expected = gpt.loss_and_grads(idx, targets, Key(1, 5))
    grads, rows, losses = gpt.gradients(), 8 // parts, []
    for row in range(0, 8, rows):
        part = slice(row, row + rows)
        loss, _ = gpt.loss_and_grads(idx[part], targets[part], Key(1, 5, row), count,
                                     into=grads)
        losses.append(loss)
    assert {loss.dtype for loss in losses} == {np.dtype(dtype)}
    assert sum(losses) == pytest.approx(whole, rel=error)
    assert apart(grads.flat, expected.flat) < error


def test_into_adds_to_existing_gradients():
    gpt, (idx, targets) = model("float64"), batch()
    _, once = gpt.loss_and_grads(idx, targets)
    twice = gpt.params.gradients(once.flat.copy())
    _, same = gpt.loss_and_grads(idx, targets, into=twice)
    assert same is twice
    assert apart(twice.flat, 2 * once.flat) < 1e-14


def test_tied_head_is_the_embedding():
    gpt, (idx, targets) = model("float64"), batch()
    assert "lm_head.weight" not in gpt.params
    untied = GPT(GPTConfig(**SMALL, tie_weights=False), dtype="float64",
                 values=[*gpt.params.items(), ("lm_head.weight", gpt.params["wte.weight"])])
    loss, grads = gpt.loss_and_grads(idx, targets)
    loss_apart, grads_apart = untied.loss_and_grads(idx, targets)
    assert loss == loss_apart
    both = grads_apart["wte.weight"] + grads_apart["lm_head.weight"]
    assert apart(grads["wte.weight"], both) < 1e-14
    assert all(np.abs(grads_apart[n]).max() > 1e-3 for n in ("wte.weight", "lm_head.weight"))


def test_initial_weights_depend_only_on_the_seed():
    assert np.array_equal(model().params.flat, model().params.flat)
    assert np.array_equal(GPT(GPTConfig(**SMALL)).params.flat, model(seed=1337).params.flat)
    assert not np.array_equal(model().params.flat, model(seed=2).params.flat)
    tied, untied = model(), model(tie_weights=False, head_bias=True)
    assert all(np.array_equal(tied.params[n], untied.params[n]) for n in tied.params)


def test_initial_weights_follow_gpt2():
    p = GPT(GPTConfig(vocab_size=500, block_size=64, n_layer=8, n_head=4, n_embd=128)).params
    for name, array in p.items():
        if name.endswith("bias"):
            assert not array.any()
        elif array.ndim == 1:
            assert (array == 1).all()
        else:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02     # √(2 * 8) = 4
            assert array.std() == pytest.approx(std, rel=0.05)
            assert abs(array.mean()) < 5 * std / array.size**0.5


def test_number_of_parameters_of_gpt2():
    shapes = GPTConfig().shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == 124_439_808


def test_lists_are_accepted_as_token_ids():
    assert model().logits([[1, 2, 3]]).shape == (1, 3, 11)


@pytest.mark.parametrize(("idx", "message"), [
    ([[0, 11]], "token ids from 0 to 10, got 11"), ([[-1, 3]], "got -1"),
    ([[0.5]], "whole numbers"), ([1, 2, 3], "whole numbers"),
    ([[0] * 9], "9 tokens do not fit into the context of 8"),
])
def test_invalid_token_ids_are_refused(idx, message):
    with pytest.raises(UserError, match=message):
        model().logits(idx)


def test_too_many_tokens_are_refused_with_a_cache_too():
    gpt, kv = model(), KVCache(2, 8)
    gpt.logits([[1] * 6], kv)
    with pytest.raises(UserError, match="9 tokens do not fit into the context of 8"):
        gpt.logits([[1] * 3], kv)
    assert gpt.logits([[1] * 2], kv).shape == (1, 2, 11)


@pytest.mark.parametrize("targets", [[[1, 2], [3, 4], [5, 6]], [[1]], [[1, 2, 3]]])
def test_targets_of_another_shape_are_refused(targets):
    for method in (model().loss, model().loss_and_grads):
        with pytest.raises(UserError, match="must have the same shape"):
            method([[1, 2, 3], [4, 5, 6]], targets)


@pytest.mark.parametrize(("values", "message"), [
    ([("wte.weight", np.zeros((11, 16)))], r"values for h\.0\.attn\.c_attn\.bias, h\.0\.attn"),
    ([("wte.weight", np.zeros((3,)))], r"this architecture has no parameter wte\.weight \(3,\)"),
    ([("h.9", np.zeros(1))], r"this architecture has no parameter h\.9 \(1,\)"),
])
def test_missing_or_mismatched_parameters_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        GPT(GPTConfig(**SMALL), values=values)


def test_target_of_minus_two_is_refused():
    with pytest.raises(UserError, match="targets must be token ids from -1 to 10, got -2"):
        model().loss([[1]], [[-2]])


@pytest.mark.parametrize(("option", "message"), [
    ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
    ({"n_layer": 1.5}, "n_layer must be a whole number"),
    ({"n_layer": True}, "n_layer must be a whole number"),
    ({"n_embd": 15}, "n_embd must be a multiple of n_head"),
    ({"dropout": 1.0}, "dropout must be below 1, got 1"),
    ({"dropout": math.nan}, "dropout must be a finite number"),
    ({"embd_dropout": 1.0}, "embd_dropout must be below 1, got 1"),
    ({"attn_dropout": -0.1}, "attn_dropout must be at least 0, got -0.1"),
    ({"n_inner": 0}, "n_inner must be at least 1, got 0"),
    ({"norm_eps": 0}, "norm_eps must be above 0, got 0"),
    ({"norm_eps": None}, "norm_eps must be a number, got None"),
    ({"activation": "tanh"}, "activation must be gelu or relu, got .tanh."),
])
def test_invalid_architecture_is_refused(option, message):
    with pytest.raises(UserError, match=message):
        GPTConfig(**SMALL | option)


def test_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="dtype must be one of float32, float64 on CPU"):
        model("float16")


def test_empty_batch_has_no_logits():
    gpt = model()
    assert gpt.logits(np.empty((0, 4), int)).shape == (0, 4, 11)
    assert gpt.device is get_device("cpu")


def test_repr_says_what_the_model_is():
    assert repr(model(n_layer=1)).startswith("GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1")
    assert repr(model()).endswith(f", {model().params.flat.size:,} parameters, float32 on cpu)")


@pytest.mark.parametrize(("options", "name", "there"), [
    ({}, "h.1.attn.c_attn.bias", True), ({"attn_bias": False}, "h.1.attn.c_attn.bias", False),
    ({"attn_bias": False}, "h.1.attn.c_proj.bias", True), ({}, "lm_head.bias", False),
    ({"head_bias": True}, "lm_head.bias", True), ({}, "lm_head.weight", False),
    ({"tie_weights": False}, "lm_head.weight", True),
])
def test_options_of_the_architecture_add_and_remove_parameters(options, name, there):
    assert (name in GPTConfig(**SMALL | options).architecture()) == there
