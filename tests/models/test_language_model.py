"""What holds for every family of decoder-only models. test_gpt.py and test_llama.py have what is
special."""

import math

import numpy as np
import pytest

from npgpt import UserError
from npgpt.backend import get_device
from npgpt.kernels import with_versions
from npgpt.layers import LAYERS, Key, Layer, dropout
from npgpt.models import language_model
from npgpt.models.generate import KVCache
from npgpt.optim import AdamW
from npgpt.training.step import train_step
from tests.models.families import FAMILIES, VARIANTS, config_of, tiny

every_family = pytest.mark.parametrize("name", FAMILIES)
every_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)


def batch(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(11, size=(rows, 8)), rng.integers(11, size=(rows, 8))


def apart(a, b):
    """The largest difference, relative to the largest element."""
    return np.abs(a - b).max() / np.abs(b).max()


@every_family
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_no_tokens_give_no_logits_a_loss_of_zero_and_gradients_of_zero(shape, name):
    model, none = tiny(name), np.zeros(shape, int)
    assert model.logits(none).shape == (*shape, 11)
    loss, grads = model.loss_and_grads(none, none)
    assert loss == model.loss(none, none) == 0
    assert not grads.flat.any()


@every_variant
def test_future_token_leaves_past_logits_unchanged(name, variant):
    model, (idx, _) = tiny(name, **variant), batch()
    before = model.logits(idx)
    idx[:, 5] = (idx[:, 5] + 1) % 11
    after = model.logits(idx)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


@every_variant
def test_initial_loss_is_that_of_a_uniform_prediction(name, variant):
    model = tiny(name, seed=1337, **{"vocab_size": 65, "block_size": 32, "n_layer": 4, "n_head": 4,
                                     "n_embd": 64} | variant)
    rng = np.random.default_rng(0)
    loss = model.loss(rng.integers(65, size=(32, 32)), rng.integers(65, size=(32, 32)))
    assert loss == pytest.approx(math.log(65), rel=0.02)


def train(model, steps, rate, idx, targets):
    optimizer, grads = AdamW(model.params, weight_decay=0.0), model.gradients()
    for _ in range(steps):
        train_step(model, optimizer, [(idx, targets)], grads, lr=rate)


@every_variant
def test_one_batch_is_memorised(name, variant):
    model, (idx, targets) = tiny(name, **{"n_embd": 32} | variant), batch()
    train(model, 150, 1e-2, idx, targets)
    assert model.loss(idx, targets) < 0.05


@every_variant
def test_every_parameter_changes_in_one_step(name, variant):
    model, (idx, targets) = tiny(name, **variant), batch()
    before = {n: array.copy() for n, array in model.params.items()}
    train(model, 1, 1e-2, idx, targets)
    assert [n for n in before if np.array_equal(before[n], model.params[n])] == []


@every_variant
def test_gradients_have_the_names_and_shapes_of_the_parameters(name, variant):
    model, (idx, targets) = tiny(name, **variant), batch()
    _, grads = model.loss_and_grads(idx, targets)
    assert {n: g.shape for n, g in grads.items()} == {n: w.shape for n, w in model.params.items()}
    assert model.config.shapes() == {n: w.shape for n, w in model.params.items()}


@every_variant
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_has_the_dtype_of_the_parameters(dtype, name, variant):
    model, (idx, targets) = tiny(name, dtype, dropout=0.2, **variant), batch()
    loss, grads = model.loss_and_grads(idx, targets, Key(1, 2))
    assert {model.logits(idx).dtype, loss.dtype, grads.flat.dtype, model.params.flat.dtype} == {
        np.dtype(dtype)}


@every_family
def test_evaluation_has_no_dropout(name):
    model, (idx, targets) = tiny(name, dropout=0.5), batch()
    assert model.loss(idx, targets) == model.loss(idx, targets) == tiny(name).loss(idx, targets)
    assert model.loss_and_grads(idx, targets, Key(1, 1))[0] != model.loss(idx, targets)


@every_family
def test_same_key_gives_the_same_dropout_and_another_step_different_dropout(name):
    model, (idx, targets) = tiny(name, dropout=0.5), batch()
    first, again, other = (model.loss_and_grads(idx, targets, Key(1, step)) for step in (1, 1, 2))
    assert first[0] == again[0] and first[0] != other[0]
    np.testing.assert_array_equal(first[1].flat, again[1].flat)


@every_family
def test_every_dropout_has_its_own_mask(name, monkeypatch):
    """One after the embeddings; in each block one for the attention and one per projection."""
    sites = []

    def watched(xp, key, p, shape, original=dropout.keep_mask):
        sites.append((key.site, shape))
        return original(xp, key, p, shape)

    monkeypatch.setattr(dropout, "keep_mask", watched)
    model, (idx, targets) = tiny(name, dropout=0.5), batch()
    model.loss_and_grads(idx, targets, Key(1, 2))
    attention, rest = (4, model.config.n_head, 8, 8), (4, 8, 16)
    assert sorted(sites) == [                     # part of the format: old runs are resumed
        ((0,), rest),
        ((1, 0, 0), attention), ((1, 0, 1), rest), ((1, 1), rest),
        ((2, 0, 0), attention), ((2, 0, 1), rest), ((2, 1), rest)]


@pytest.mark.parametrize(("name", "options", "times"), [
    ("gpt", {}, 5), ("llama", {}, 5), ("llama", {"qk_norm": True}, 9),
])
def test_eps_is_that_of_every_norm(name, options, times):
    """Two in each block, and the last one; with qk_norm two more in each block."""
    norm, used = LAYERS[FAMILIES[name].norm], []

    def watched(*arguments):
        used.append(arguments[-1])
        return norm.forward(*arguments)

    model, (idx, _) = tiny(name, norm_eps=0.02, **options), batch()
    model.layers = with_versions({FAMILIES[name].norm: Layer(watched, norm.backward)})
    logits = model.logits(idx)
    assert used == [0.02] * times
    assert apart(logits, tiny(name, **options).logits(idx)) > 1e-3


@every_family
def test_gradient_passed_to_the_backward_is_not_modified(name):
    model, (idx, _) = tiny(name, "float64"), batch()
    logits, cache = model.forward(idx, model.params.tree, model.config)
    dlogits = np.random.default_rng(0).standard_normal(logits.shape)
    kept = dlogits.copy()
    model.backward(dlogits, cache, model.gradients())
    np.testing.assert_array_equal(dlogits, kept)


@every_family
@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 1e-5)])
def test_gradients_of_parts_of_a_batch_sum_to_the_whole(parts, dtype, error, name):
    """With dropout, and with ignored targets spread unevenly over the parts."""
    model, (idx, targets) = tiny(name, dtype, dropout=0.3), batch(8)
    targets[:3, 2:] = -1
    count = (targets >= 0).sum()
    whole, expected = model.loss_and_grads(idx, targets, Key(1, 5))
    grads, rows, losses = model.gradients(), 8 // parts, []
    for row in range(0, 8, rows):
        part = slice(row, row + rows)
        loss, _ = model.loss_and_grads(idx[part], targets[part], Key(1, 5, row), count,
                                       into=grads)
        losses.append(loss)
    assert {loss.dtype for loss in losses} == {np.dtype(dtype)}
    assert sum(losses) == pytest.approx(whole, rel=error)
    assert apart(grads.flat, expected.flat) < error


@every_family
def test_into_adds_to_existing_gradients(name):
    model, (idx, targets) = tiny(name, "float64"), batch()
    _, once = model.loss_and_grads(idx, targets)
    twice = model.params.gradients(once.flat.copy())
    _, same = model.loss_and_grads(idx, targets, into=twice)
    assert same is twice
    assert apart(twice.flat, 2 * once.flat) < 1e-14


@every_family
def test_tied_head_is_the_embedding(name):
    model, (idx, targets) = tiny(name, "float64"), batch()
    family, table = FAMILIES[name], FAMILIES[name].embedding
    assert "lm_head.weight" not in model.params
    untied = family.model(config_of(name, tie_weights=False), dtype="float64",
                          values=[*model.params.items(), ("lm_head.weight", model.params[table])])
    loss, grads = model.loss_and_grads(idx, targets)
    loss_apart, grads_apart = untied.loss_and_grads(idx, targets)
    assert loss == loss_apart
    both = grads_apart[table] + grads_apart["lm_head.weight"]
    assert apart(grads[table], both) < 1e-14
    assert all(np.abs(grads_apart[n]).max() > 1e-3 for n in (table, "lm_head.weight"))


@every_family
def test_initial_weights_depend_only_on_the_seed(name):
    family = FAMILIES[name]
    assert np.array_equal(tiny(name).params.flat, tiny(name).params.flat)
    assert np.array_equal(family.model(config_of(name)).params.flat,
                          tiny(name, seed=1337).params.flat)
    assert not np.array_equal(tiny(name).params.flat, tiny(name, seed=2).params.flat)
    tied, other = tiny(name), tiny(name, tie_weights=False, **family.biases)
    assert all(np.array_equal(tied.params[n], other.params[n]) for n in tied.params)


@every_family
def test_initial_weights_follow_gpt2(name):
    family = FAMILIES[name]
    p = tiny(name, vocab_size=500, block_size=64, n_layer=8, n_head=4, n_embd=128,
             **family.biases).params
    for n, array in p.items():
        if n.endswith("bias"):
            assert not array.any()
        elif array.ndim == 1:
            assert (array == 1).all()
        else:
            std = 0.02 / 4 if n.endswith(family.last) else 0.02           # √(2 * 8) = 4
            assert array.std() == pytest.approx(std, rel=0.05)
            assert abs(array.mean()) < 5 * std / array.size**0.5


@every_family
def test_lists_are_accepted_as_token_ids(name):
    assert tiny(name).logits([[1, 2, 3]]).shape == (1, 3, 11)


@every_family
@pytest.mark.parametrize(("idx", "message"), [
    ([[0, 11]], "token ids from 0 to 10, got 11"), ([[-1, 3]], "got -1"),
    ([[0.5]], "whole numbers"), ([1, 2, 3], "whole numbers"),
    ([[0] * 9], "9 tokens do not fit into the context of 8"),
])
def test_invalid_token_ids_are_refused(idx, message, name):
    with pytest.raises(UserError, match=message):
        tiny(name).logits(idx)


@every_family
def test_too_many_tokens_are_refused_with_a_cache_too(name):
    model, kv = tiny(name), KVCache(2, 8)
    model.logits([[1] * 6], kv)
    with pytest.raises(UserError, match="9 tokens do not fit into the context of 8"):
        model.logits([[1] * 3], kv)
    assert model.logits([[1] * 2], kv).shape == (1, 2, 11)


@every_family
@pytest.mark.parametrize("targets", [[[1, 2], [3, 4], [5, 6]], [[1]], [[1, 2, 3]]])
def test_targets_of_another_shape_are_refused(targets, name):
    for method in (tiny(name).loss, tiny(name).loss_and_grads):
        with pytest.raises(UserError, match="must have the same shape"):
            method([[1, 2, 3], [4, 5, 6]], targets)


@pytest.mark.parametrize(("name", "values", "message"), [
    ("gpt", ("wte.weight", (11, 16)), r"values for h\.0\.attn\.c_attn\.bias, h\.0\.attn"),
    ("gpt", ("wte.weight", (3,)), r"this architecture has no parameter wte\.weight \(3,\)"),
    ("gpt", ("h.9", (1,)), r"this architecture has no parameter h\.9 \(1,\)"),
    ("llama", ("embed_tokens.weight", (11, 16)), r"values for layers\.0\.input_layernorm\.weight"),
    ("llama", ("norm.bias", (16,)), r"this architecture has no parameter norm\.bias \(16,\)"),
    ("llama", ("layers.0.self_attn.qkv_proj.weight", (16, 48)),
     r"this architecture has no parameter layers\.0\.self_attn\.qkv_proj\.weight \(16, 48\)"),
])
def test_missing_or_mismatched_parameters_are_refused(name, values, message):
    with pytest.raises(UserError, match=message):
        FAMILIES[name].model(config_of(name), values=[(values[0], np.zeros(values[1]))])


@every_family
def test_target_of_minus_two_is_refused(name):
    with pytest.raises(UserError, match="targets must be token ids from -1 to 10, got -2"):
        tiny(name).loss([[1]], [[-2]])


@every_family
@pytest.mark.parametrize(("option", "message"), [
    ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
    ({"n_layer": 1.5}, "n_layer must be a whole number"),
    ({"n_layer": True}, "n_layer must be a whole number"),
    ({"n_embd": 15}, "n_embd must be a multiple of n_head, got 15 and "),
    ({"dropout": 1.0}, "dropout must be below 1, got 1"),
    ({"dropout": math.nan}, "dropout must be a finite number"),
    ({"attn_dropout": -0.1}, "attn_dropout must be at least 0, got -0.1"),
    ({"n_inner": 0}, "n_inner must be at least 1, got 0"),
    ({"norm_eps": 0}, "norm_eps must be above 0, got 0"),
    ({"norm_eps": None}, "norm_eps must be a number, got None"),
])
def test_invalid_architecture_is_refused(option, message, name):
    with pytest.raises(UserError, match=f"^{message}"):
        config_of(name, **option)


@every_family
def test_unknown_dtype_is_refused(name):
    with pytest.raises(UserError, match="dtype must be one of float32, float64 on CPU"):
        tiny(name, "float16")


@every_family
def test_empty_batch_has_no_logits(name):
    model = tiny(name)
    assert model.logits(np.empty((0, 4), int)).shape == (0, 4, 11)
    assert model.device is get_device("cpu")


@every_family
def test_repr_says_what_the_model_is(name):
    model = tiny(name, n_layer=1)
    family = type(model).__name__
    assert repr(model).startswith(f"{family}({family}Config(vocab_size=11, block_size=8, n_layer=1")
    assert repr(model).endswith(f", {model.params.flat.size:,} parameters, float32 on cpu)")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 3, 4, 8])
def test_loss_of_a_long_sequence_is_read_in_parts_and_the_same(family, length, monkeypatch):
    model, (idx, targets) = tiny(family, "float64"), batch()
    idx, targets = idx[:, :length], targets[:, :length]
    targets[0, 0] = -1
    whole = model.loss(idx, targets)
    monkeypatch.setattr(language_model, "LONG", 2)
    monkeypatch.setattr(language_model, "READ", 3)
    lengths, forward = [], type(model).forward
    monkeypatch.setattr(type(model), "forward", staticmethod(
        lambda idx, *given, **options: lengths.append(idx.shape[1]) or forward(
            idx, *given, **options)))
    assert model.loss(idx, targets) == pytest.approx(whole, rel=1e-12)
    assert lengths == {1: [1], 3: [3], 4: [3, 1], 8: [3, 3, 2]}[length]
    assert model.loss(idx, np.full_like(targets, -1)) == 0


@every_family
def test_parameters_are_in_the_buffer_that_share_returns(name):
    """With the values that they would have elsewhere."""
    buffers = []

    def share(buffer):
        buffers.append(np.full_like(buffer, np.nan))
        return buffers[-1]

    model = FAMILIES[name].model(config_of(name), seed=1, share=share)
    assert [model.params.flat is buffer for buffer in buffers] == [True]
    np.testing.assert_array_equal(model.params.flat, tiny(name).params.flat)
