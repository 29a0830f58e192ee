import math

import numpy as np
import pytest

from npgpt import UserError
from npgpt.layers import Key, dropout
from npgpt.models.blocks import attention_weights, cross_attention_forward
from npgpt.models.parameters import nest
from npgpt.models.postnorm import decoder_block_forward, encoder_block_forward
from npgpt.models.stacks import PAD, embed_forward, encoder_forward, sinusoid
from npgpt.models.transformer import (
    END,
    START,
    Transformer,
    TransformerConfig,
    teacher_forced,
    transformer_backward,
    transformer_forward,
)
from npgpt.optim import AdamW
from npgpt.training.step import train_step
from tests.cases import parameters

SMALL = {"source_vocab_size": 13, "target_vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 16,
         "dropout": 0.0}
VARIANTS = [{}, {"tie_weights": False}]


def model(dtype="float64", seed=1, **options):
    return Transformer(TransformerConfig(**SMALL | options), seed=seed, dtype=dtype)


def batch(rows=4, S=9, T=7, seed=0):
    """Full sequences, with no padding."""
    rng = np.random.default_rng(seed)
    return (rng.integers(3, 13, (rows, S)), rng.integers(3, 11, (rows, T)),
            rng.integers(3, 11, (rows, T)))


def wider(idx, columns, fill):
    return np.pad(idx, ((0, 0), (0, columns)), constant_values=fill)


def test_padding_changes_no_logits():
    m, (source, idx, _) = model(), batch()
    alone = m.logits(source, idx)
    padded = m.logits(wider(source, 3, PAD), wider(idx, 2, PAD))
    np.testing.assert_allclose(padded[:, :7], alone, rtol=0, atol=1e-12)


def test_padding_changes_no_gradient():
    m, (source, idx, targets) = model(), batch()
    loss, grads = m.loss_and_grads(source, idx, targets)
    padded, more = m.loss_and_grads(wider(source, 3, PAD), wider(idx, 2, PAD),
                                    wider(targets, 2, -1))
    assert padded == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(more.flat, grads.flat, rtol=0, atol=1e-12)


def test_embedding_of_padding_has_no_influence():
    m, (source, idx, _) = model(tie_weights=False), batch()
    source[1, 6:] = idx[2, 4:] = PAD
    before = m.logits(source, idx)
    for name in ("encoder.wte.weight", "decoder.wte.weight"):
        m.params[name][PAD] += 5
    after = m.logits(source, idx)
    np.testing.assert_array_equal(after[idx != PAD], before[idx != PAD])
    assert (after[idx == PAD] != before[idx == PAD]).any()


def test_padding_at_the_start_is_masked_too():
    m, (source, idx, _) = model(tie_weights=False), batch()
    idx[:, :2] = PAD
    before = m.logits(source, idx)
    m.params["decoder.wte.weight"][PAD] += 5
    np.testing.assert_array_equal(m.logits(source, idx)[:, 2:], before[:, 2:])


def test_source_of_only_padding_gives_finite_gradients():
    m, (source, idx, targets) = model(), batch()
    source[1] = PAD
    loss, grads = m.loss_and_grads(source, idx, targets)
    assert np.isfinite(loss) and np.isfinite(grads.flat).all()


def test_future_target_token_leaves_past_logits_unchanged():
    m, (source, idx, _) = model(), batch()
    before = m.logits(source, idx)
    idx[:, 4] = 3 + (idx[:, 4] - 2) % 8
    after = m.logits(source, idx)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()


def test_every_source_token_influences_every_target_position():
    m, (source, idx, _) = model(), batch()
    before = m.logits(source, idx)
    for place in range(source.shape[1]):
        other = source.copy()
        other[:, place] = 3 + (other[:, place] - 2) % 10
        assert (m.logits(other, idx) != before).any(-1).all()


def test_rows_of_the_batch_are_independent():
    m, (source, idx, _) = model(), batch()
    np.testing.assert_allclose(m.logits(source[1:2], idx[1:2]), m.logits(source, idx)[1:2],
                               rtol=0, atol=1e-12)


def test_encoder_without_positions_is_permutation_equivariant(monkeypatch):
    m, (source, _, _) = model(), batch()
    source[:, 2] = PAD
    order = np.random.default_rng(0).permutation(source.shape[1])

    def memory(source):
        return encoder_forward(source, m.params.tree["encoder"], m.config)[0]

    assert np.abs(memory(source[:, order]) - memory(source)[:, order]).max() > 0.1
    monkeypatch.setattr("npgpt.models.stacks.sinusoid", lambda xp, T, C: xp.zeros((T, C)))
    np.testing.assert_allclose(memory(source[:, order]), memory(source)[:, order], rtol=0,
                               atol=1e-12)


def test_cross_attention_does_not_depend_on_the_order_of_the_memory():
    p = decoder_block()["crossattention"]
    x, memory = (np.random.default_rng(1).standard_normal((2, T, 16)) for T in (5, 7))
    order = np.random.default_rng(2).permutation(7)
    np.testing.assert_allclose(cross_attention_forward(x, memory[:, order], p, 2)[0],
                               cross_attention_forward(x, memory, p, 2)[0], rtol=0, atol=1e-12)


def decoder_block():
    """-> the parameters of a decoder block."""
    shapes = TransformerConfig(**SMALL).shapes()
    return nest(parameters(shapes, np.random.default_rng(0).standard_normal))["decoder"]["h"][0]


@pytest.mark.parametrize(("forward", "p"), [
    (cross_attention_forward, decoder_block()["crossattention"]),
    (decoder_block_forward, decoder_block()),
    (lambda x, memory, *rest, **options: encoder_block_forward(x, *rest, **options),
     decoder_block()),
])
def test_defaults_are_no_mask_and_no_dropout(forward, p):
    x, memory = (np.random.default_rng(1).standard_normal((2, T, 16)) for T in (5, 7))
    left_out, _ = forward(x, memory, p, 2, key=Key(1, 1))
    said, _ = forward(x, memory, p, 2, mask=None, dropout=0.0, key=None)
    np.testing.assert_array_equal(left_out, said)


def test_model_is_of_float32_and_seed_1337_by_default():
    m = Transformer(TransformerConfig(**SMALL))
    assert np.array_equal(m.params.flat, model("float32", seed=1337).params.flat)
    assert m.params.flat.dtype == np.float32


def test_position_table_has_the_sines_and_cosines_of_the_paper():
    table = sinusoid(np, 101, 6)
    assert table.shape == (101, 6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    turns = [1, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]           # 0.046416, 0.0021544
    expected = [f(100 * turn) for turn in turns for f in (math.sin, math.cos)]
    np.testing.assert_allclose(table[100], expected, rtol=1e-12)
    np.testing.assert_allclose(table[1, :4], [0.841471, 0.540302, 0.046399, 0.998923], atol=5e-7)


def test_embedding_is_scaled_and_its_position_added():
    w = np.random.default_rng(0).standard_normal((5, 9))
    x, _ = embed_forward(np.array([[3, 3]]), w, 0.0, Key(1, 1))
    np.testing.assert_allclose(x[0], w[[3, 3]] * 3 + sinusoid(np, 2, 9), rtol=1e-12)


def test_position_table_of_an_odd_width_is_that_of_the_next_width_without_its_last_column():
    assert sinusoid(np, 5, 3).shape == (5, 3)
    assert sinusoid(np, 5, 1)[:, 0] == pytest.approx(np.sin(np.arange(5)))


def test_one_linear_map_shifts_every_position_by_three():
    table = sinusoid(np, 50, 8)
    onward, *_ = np.linalg.lstsq(table[:20], table[3:23], rcond=None)
    np.testing.assert_allclose(table[:47] @ onward, table[3:], atol=1e-9)


def train(m, steps, rate, source, idx, targets):
    optimizer, grads = AdamW(m.params, weight_decay=0.0), m.gradients()
    for _ in range(steps):
        train_step(m, optimizer, [(source, idx, targets)], grads, lr=rate)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_batch_is_memorised_and_then_translated(variant):
    m, (source, answers, _) = model("float32", **variant, n_embd=32), batch()
    source[2, 5:] = PAD
    answers[:, -1] = END
    answers[1, 3:] = END, PAD, PAD, PAD
    train(m, 150, 3e-3, source, *teacher_forced(answers))
    assert m.loss(source, *teacher_forced(answers)) < 0.05
    np.testing.assert_array_equal(m.translate(source, 20), answers)
    np.testing.assert_array_equal(m.translate(source[1:2], 20), answers[1:2, :4])
    np.testing.assert_array_equal(m.translate(source, 2), answers[:, :2])


def test_padding_of_the_source_does_not_change_the_translation():
    m, (source, _, _) = model(seed=3), batch(rows=20)
    m.params["encoder.wte.weight"][PAD] += 5
    np.testing.assert_array_equal(m.translate(wider(source, 9, PAD), 8), m.translate(source, 8))


def test_translation_selects_the_most_likely_token():
    m, (source, _, _) = model(seed=3), batch()
    found = m.translate(source, 6)
    idx = np.concatenate([np.full((4, 1), START), found[:, :-1]], axis=1)
    likeliest = m.logits(source, idx).argmax(-1)
    going_on = np.isin(found, (PAD, END)).cumsum(1) - np.isin(found, (PAD, END)) == 0
    np.testing.assert_array_equal(found[going_on], likeliest[going_on])
    assert (found[~going_on] == PAD).all()


def test_translation_of_an_empty_batch_is_empty():
    assert model().translate(np.empty((0, 4), int), 5).shape == (0, 0)
    assert model().translate([[3, 4]], 0).shape == (1, 0)


def test_teacher_forcing_shifts_the_answer_by_one_position():
    idx, targets = teacher_forced([[5, 6, END], [7, END, PAD]])
    assert idx.tolist() == [[START, 5, 6], [START, 7, END]]
    assert targets.tolist() == [[5, 6, END], [7, END, -1]]


def test_attention_weights_are_the_softmax_of_the_scores():
    rng = np.random.default_rng(0)
    q, k, mask = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 6, 5)), np.ones(6)
    mask[4] = 0
    weights = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(5)) * mask
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(attention_weights(q, k, mask > 0), weights, rtol=1e-12)


def test_cross_attention_returns_a_distribution_over_the_source_for_every_block():
    m, (source, idx, _) = model(), batch()
    source[1, 6:] = PAD
    maps = m.cross_attention(source, idx)
    assert [att.shape for att in maps] == [(4, 2, 7, 9)] * 2
    for att in maps:
        np.testing.assert_allclose(att.sum(-1), 1, rtol=1e-12)
        assert not att[1, :, :, 6:].any() and att[0].all()
    assert np.abs(maps[0] - maps[1]).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_changes_in_one_step(variant):
    m = model(**variant)
    before = {name: array.copy() for name, array in m.params.items()}
    train(m, 1, 1e-2, *batch())
    assert [n for n in before if np.array_equal(before[n], m.params[n])] == []


def test_gradient_passed_to_the_backward_is_not_modified():
    m, (source, idx, _) = model(), batch()
    logits, cache = transformer_forward(source, idx, m.params.tree, m.config)
    dlogits = np.random.default_rng(0).standard_normal(logits.shape)
    kept = dlogits.copy()
    transformer_backward(dlogits, cache, m.gradients())
    np.testing.assert_array_equal(dlogits, kept)


def test_tied_head_is_the_embedding_of_the_decoder():
    m, (source, idx, targets) = model(), batch()
    untied = model(tie_weights=False)
    for name, array in m.params.items():
        untied.params[name] = array
    untied.params["lm_head.weight"] = m.params["decoder.wte.weight"]
    loss, grads = m.loss_and_grads(source, idx, targets)
    loss_apart, apart = untied.loss_and_grads(source, idx, targets)
    assert loss == loss_apart
    np.testing.assert_allclose(grads["decoder.wte.weight"],
                               apart["decoder.wte.weight"] + apart["lm_head.weight"], atol=1e-14)


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_of_parts_of_a_batch_sum_to_the_whole(parts):
    m, (source, idx, targets) = model(dropout=0.3), batch()
    targets[:2, 3:] = -1
    count = (targets >= 0).sum()
    whole, expected = m.loss_and_grads(source, idx, targets, Key(1, 5))
    grads, rows, losses = m.gradients(), 4 // parts, []
    for row in range(0, 4, rows):
        part = slice(row, row + rows)
        loss, same = m.loss_and_grads(source[part], idx[part], targets[part], Key(1, 5, row),
                                      count, into=grads)
        assert same is grads
        losses.append(loss)
    assert sum(losses) == pytest.approx(whole, rel=1e-12)
    np.testing.assert_allclose(grads.flat, expected.flat, rtol=0, atol=1e-12)


def test_every_dropout_has_its_own_mask(monkeypatch):
    """In each stack one after the embeddings, one per attention and one per projection."""
    sites = []

    def watched(xp, key, p, shape, original=dropout.keep_mask):
        sites.append((key.site, shape))
        return original(xp, key, p, shape)

    monkeypatch.setattr(dropout, "keep_mask", watched)
    model(dropout=0.5).loss_and_grads(*batch(), Key(1, 2))
    encoder = {(0, 0), *((0, block, *site) for block in (1, 2) for site in ((0, 0), (0, 1), (1,)))}
    decoder = {(1, 0), *((1, block, *site) for block in (1, 2)
                         for site in ((0, 0), (0, 1), (1, 0), (1, 1), (2,)))}
    assert len(sites) == len(encoder | decoder) == 7 + 11
    assert {site for site, _ in sites} == encoder | decoder
    assert dict(sites)[1, 2, 1, 0] == (4, 2, 7, 9) and dict(sites)[1, 2, 1, 1] == (4, 7, 16)


def test_evaluation_has_no_dropout():
    m, without = model(dropout=0.5), model()
    assert m.loss(*batch()) == without.loss(*batch()) == m.loss_and_grads(*batch())[0]
    assert m.loss_and_grads(*batch(), Key(1, 1))[0] != m.loss(*batch())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_has_the_dtype_of_the_parameters(dtype):
    m, (source, idx, targets) = model(dtype, dropout=0.2), batch()
    loss, grads = m.loss_and_grads(source, idx, targets, Key(1, 2))
    maps = m.cross_attention(source, idx)
    assert {m.logits(source, idx).dtype, loss.dtype, grads.flat.dtype, maps[0].dtype} == {
        np.dtype(dtype)}


def test_embeddings_decay_with_the_matrices_and_vectors_do_not():
    p = model(tie_weights=False).params
    tables = {"encoder.wte.weight", "decoder.wte.weight", "lm_head.weight"}
    p.flat[...] = 0
    p.flat[:p.n_matrices] = 1
    p.flat[p.n_matrices:p.n_decayed] = 2
    groups = {name: set(np.unique(array)) for name, array in p.items()}
    assert {name for name, group in groups.items() if group == {2}} == tables
    assert all(group == {1.0 if p[name].ndim == 2 else 0.0}
               for name, group in groups.items() if name not in tables)


def test_initial_weights_keep_the_scale_of_activations():
    p = model("float32", n_embd=256, source_vocab_size=500, target_vocab_size=300).params
    stds = {"encoder.wte.weight": 1 / 16, "decoder.wte.weight": 1 / 16,
            "encoder.h.0.mlp.c_fc.weight": 1 / 16, "encoder.h.0.mlp.c_proj.weight": 1 / 32,
            "decoder.h.1.crossattention.c_attn.weight": 1 / 16}
    assert {name: p[name].std() for name in stds} == pytest.approx(stds, rel=0.02)
    assert not p["decoder.h.1.crossattention.c_attn.bias"].any()
    assert (p["decoder.h.0.ln_cross_attn.weight"] == 1).all()
    again = model("float32", n_embd=256, source_vocab_size=500, target_vocab_size=300)
    assert np.array_equal(again.params.flat, p.flat)


def test_number_of_parameters_is_that_of_the_base_model():
    """Counted by hand: 82 million, 19 million of them in the second vocabulary's table."""
    attention, mlp, norm = 4 * 512 * 513, 513 * 2048 + 2049 * 512, 2 * 512
    blocks = 6 * (attention + mlp + 2 * norm) + 6 * (2 * attention + mlp + 3 * norm)
    shapes = TransformerConfig().shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == blocks + 2 * 37000 * 512


@pytest.mark.parametrize(("source", "idx", "message"), [
    ([[13]], [[1]], "from 0 to 12, got 13"), ([[3]], [[11]], "from 0 to 10, got 11"),
    ([[3]], [[-1]], "from 0 to 10, got -1"), ([[0.5]], [[1]], "whole numbers"),
    ([1, 2], [[1]], "whole numbers"), (np.zeros((1, 0), int), [[1]], "at least one token"),
    ([[3], [3]], [[1]], "same number of rows, got 2 and 1"),
])
def test_invalid_token_ids_are_refused(source, idx, message):
    with pytest.raises(UserError, match=message):
        model().logits(source, idx)


@pytest.mark.parametrize(("targets", "message"), [
    ([[1]], r"must have the same shape, got \(1, 2\) and \(1, 1\)"),
    ([[1, -2]], "targets must be token ids from -1 to 10, got -2"),
])
def test_invalid_targets_are_refused(targets, message):
    for method in (model().loss, model().loss_and_grads):
        with pytest.raises(UserError, match=message):
            method([[3, 4, 5]], [[1, 2]], targets)


@pytest.mark.parametrize(("option", "message"), [
    ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
    ({"n_embd": 15}, "n_embd must be a multiple of n_head, got 15 and 2"),
    ({"source_vocab_size": 2}, "source_vocab_size must be at least 3, got 2"),
    ({"dropout": 1.0}, "dropout must be below 1, got 1"),
])
def test_invalid_architecture_is_refused(option, message):
    with pytest.raises(UserError, match=message):
        TransformerConfig(**SMALL | option)


def test_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="dtype must be one of float32, float64 on CPU"):
        model("float16")
