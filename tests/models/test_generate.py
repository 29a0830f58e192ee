import inspect
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import GPT, GPTConfig, UserError
from npgpt.errors import RunError
from npgpt.models import generate as generation
from npgpt.models.generate import KVCache, steps, stream
from npgpt.models.sampling import Sampling, draw, penalized, probabilities
from tests.models.families import VARIANTS, tiny

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture(scope="module")
def gpt():
    return trained(GPT(CONFIG, dtype="float64"))


def trained(model):
    """The same model with parameters of a size as after training."""
    model.params.flat[...] = np.random.default_rng(0).standard_normal(model.params.flat.size) * 0.4
    return model


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_logits_with_the_cache_equal_those_of_the_full_forward(name, variant):
    model = trained(tiny(name, "float64", **variant))
    idx = np.random.default_rng(1).integers(11, size=(3, 8))
    full = model.logits(idx)
    for first in range(1, 8):
        kv = KVCache(model.config.n_layer, model.config.block_size)
        np.testing.assert_allclose(model.logits(idx[:, :first], kv), full[:, :first], atol=1e-12)
        for t in range(first, 8):
            new = model.logits(idx[:, t:t + 1], kv)
            np.testing.assert_allclose(new[:, 0], full[:, t], atol=1e-12)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
@pytest.mark.parametrize("length", [1, 5, 8, 12])     # of the prompt; the context holds 8
def test_text_equals_that_of_the_full_forward_beyond_the_context(name, variant, length):
    model = trained(tiny(name, "float64", **variant))
    prompt = np.random.default_rng(2).integers(11, size=(2, length))
    rngs = [np.random.default_rng([5, row]) for row in range(2)]
    idx = prompt
    for _ in range(20):
        probs = probabilities(model.logits(idx[:, -8:])[:, -1])
        new = draw(probs, np.array([rng.random() for rng in rngs]))
        idx = np.concatenate([idx, new[:, None]], axis=1)
    written = model.generate(prompt, 20, seed=5)
    assert written.tolist() == idx[:, length:].tolist()


def test_temperature_zero_selects_the_most_likely_token(gpt):
    idx = np.array([[1, 2, 3]])
    for token in gpt.generate(idx, 5, temperature=0)[0]:
        assert token == gpt.logits(idx[:, -8:])[0, -1].argmax()
        idx = np.append(idx, [[token]], axis=1)


def test_same_seed_gives_the_same_text_and_no_seed_a_random_one(gpt):
    idx = np.array([[1]])
    assert gpt.generate(idx, 30, seed=1).tolist() == gpt.generate(idx, 30, seed=1).tolist()
    assert gpt.generate(idx, 30, seed=1).tolist() != gpt.generate(idx, 30, seed=2).tolist()
    assert gpt.generate(idx, 30).tolist() != gpt.generate(idx, 30).tolist()


def test_row_does_not_depend_on_the_other_rows(gpt):
    two = gpt.generate(np.array([[1, 2], [3, 4]]), 20, seed=3)
    assert two[:1].tolist() == gpt.generate(np.array([[1, 2]]), 20, seed=3).tolist()
    same = gpt.generate(np.array([[1, 2], [1, 2]]), 20, seed=3)
    assert same[0].tolist() != same[1].tolist()


def test_stream_yields_token_by_token(gpt):
    steps = list(stream(gpt, [[1, 2]], Sampling(6, seed=4)))
    assert np.stack(steps, 1).tolist() == gpt.generate([[1, 2]], 6, seed=4).tolist()


def test_zero_new_tokens_give_an_empty_text(gpt):
    text = gpt.generate([[1, 2]], 0)
    assert text.shape == (1, 0) and text.dtype == np.int64


LOGITS = np.log(np.array([[0.1, 0.4, 0.2, 0.3]]))


def test_default_distribution_is_that_of_the_model(gpt):
    assert Sampling() == Sampling(500, 1.0, None, None, None)
    defaults = inspect.signature(GPT.generate).parameters
    assert [defaults[name].default for name in ("temperature", "top_k", "top_p", "seed")] == [
        1.0, None, None, None]


def test_low_temperature_sharpens():
    np.testing.assert_allclose(probabilities(LOGITS), [[0.1, 0.4, 0.2, 0.3]])
    squares = np.array([[0.01, 0.16, 0.04, 0.09]])
    np.testing.assert_allclose(probabilities(LOGITS, 0.5), squares / squares.sum())


def test_tiny_temperature_is_finite():
    assert probabilities(LOGITS * 1e12, 1e-300).tolist() == [[0, 1, 0, 0]]


def test_top_k_keeps_the_k_most_likely():
    np.testing.assert_allclose(probabilities(LOGITS, top_k=2), [[0, 4 / 7, 0, 3 / 7]])
    np.testing.assert_allclose(probabilities(LOGITS, top_k=4), [[0.1, 0.4, 0.2, 0.3]])
    np.testing.assert_allclose(probabilities(LOGITS, top_k=99), [[0.1, 0.4, 0.2, 0.3]])


def test_top_k_keeps_tokens_as_likely_as_the_last():
    logits = np.log(np.array([[1, 4, 2, 2, 2, 8], [5, 4, 4, 1, 1, 1]]))
    assert [np.flatnonzero(row).tolist() for row in probabilities(logits, top_k=3)] == [
        [1, 2, 3, 4, 5], [0, 1, 2]]


def test_top_p_keeps_the_higher_of_equal_tokens():
    weights = np.tile([1.0, 3.0], 512)              # each of the odd ids has 3/2048
    kept = probabilities(np.log(weights)[None], top_p=256.5 * 3 / 2048)
    assert np.flatnonzero(kept).tolist() == list(range(511, 1024, 2))


def test_min_p_keeps_tokens_relative_to_the_likeliest():
    np.testing.assert_allclose(probabilities(LOGITS, min_p=0.5), [[0, 4 / 9, 2 / 9, 3 / 9]])
    np.testing.assert_allclose(probabilities(LOGITS, min_p=1.0), [[0, 1, 0, 0]])
    np.testing.assert_allclose(probabilities(LOGITS, top_k=2, min_p=0.2), [[0, 4 / 7, 0, 3 / 7]])


def test_repetition_penalty_lowers_the_logits_of_seen_tokens():
    logits = np.array([[2.0, -2.0, 0.0, 4.0], [2.0, -2.0, 0.0, 4.0]])
    seen = np.array([[True, True, True, False], [False, False, False, True]])
    assert penalized(logits, seen, 2.0).tolist() == [[1, -4, 0, 4], [2, -2, 0, 2]]
    assert penalized(logits, seen, 1.0).tolist() == logits.tolist()


def test_generation_penalises_the_whole_prompt_and_what_it_has_generated(gpt):
    """Followed by hand, beyond the context of 8."""
    prompt = np.array([[12, 1, 2, 3, 1, 2, 3, 1, 2, 3], [4, 4, 4, 4, 4, 4, 4, 4, 4, 4]])
    ids = prompt
    for _ in range(12):
        logits = gpt.logits(ids[:, -8:])[:, -1]
        for row, known in enumerate(ids):
            for i in set(known.tolist()):
                logits[row, i] *= 3.0 if logits[row, i] < 0 else 1 / 3.0
        ids = np.concatenate([ids, logits.argmax(1)[:, None]], axis=1)
    found = gpt.generate(prompt, 12, temperature=0, repetition_penalty=3.0)
    assert found.tolist() == ids[:, 10:].tolist()


def test_unknown_id_before_the_context_is_refused_too(gpt):
    with pytest.raises(UserError, match="token ids from 0 to 12, got 13"):
        gpt.generate([[13, *range(10)]], 1)


def test_generation_uses_min_p(gpt):
    greedy = gpt.generate([[1, 2]], 20, temperature=0).tolist()
    assert gpt.generate([[1, 2]], 20, min_p=1.0, seed=1).tolist() == greedy


def test_row_that_has_ended_stays_ended_and_the_others_go_on(gpt):
    free = gpt.generate(np.array([[1, 2], [3, 4], [5, 6]]), 40, seed=3)
    end = free[0, 3]
    first = [row.tolist().index(end) if end in row else 99 for row in free]
    found = gpt.generate(np.array([[1, 2], [3, 4], [5, 6]]), 40, seed=3, end=end)
    assert found.shape[1] == min(40, max(first) + 1)
    for row, at, all_of_it in zip(found, first, free):
        assert row[:at + 1].tolist() == all_of_it[:at + 1].tolist()[:len(row)]
        assert (row[at:] == end).all()


def test_step_has_the_models_own_probability_of_its_token(gpt):
    found = list(steps(gpt, [[1, 2]], Sampling(5, temperature=0.1, top_k=3, seed=1)))
    ids = [1, 2]
    for step in found:
        logits = gpt.logits(np.array([ids[-8:]]))[0, -1]
        expected = np.exp(logits[step.tokens[0]]) / np.exp(logits).sum()
        np.testing.assert_allclose(step.probabilities, [expected])
        ids.append(int(step.tokens[0]))


@pytest.mark.parametrize("options", [
    {}, {"temperature": 0}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.35},
])
def test_rows_have_their_own_distributions(options):
    logits = np.array([[0.0, 1, 2], [5000, 5001, 5000]])
    alone = [probabilities(row[None], **options)[0] for row in logits]
    np.testing.assert_array_equal(probabilities(logits, **options), alone)
    np.testing.assert_allclose(np.sum(alone, 1), 1)


def test_generation_uses_top_k_and_top_p(gpt):
    greedy = gpt.generate([[1, 2]], 20, temperature=0).tolist()
    assert gpt.generate([[1, 2]], 20, seed=0).tolist() != greedy
    assert gpt.generate([[1, 2]], 20, top_k=1).tolist() == greedy
    assert gpt.generate([[1, 2]], 20, top_p=1e-9).tolist() == greedy


@pytest.mark.parametrize(("name", "options", "heads"), [
    ("gpt", {}, (2, 8)), ("llama", {}, (2, 4)), ("llama", {"n_kv_head": 1}, (1, 4)),
    ("llama", {"head_dim": 6}, (2, 6)),
])
def test_cache_has_the_dtype_of_the_model_and_only_heads_of_keys_and_values(name, options, heads):
    model, kv = tiny(name, "float32", **options), KVCache(2, 8)
    model.logits([[1, 2]], kv)
    for array in (kv.layers[1].k, kv.layers[1].v):
        assert (array.dtype, array.shape) == (np.float32, (1, heads[0], 8, heads[1]))


def test_model_that_has_diverged_is_refused():
    model = GPT(CONFIG)
    model.params.flat[...] = np.nan
    message = "^the model's logits are not finite; its training has diverged$"
    with pytest.raises(RunError, match=message):
        model.generate([[1, 2]], 1)


@pytest.mark.parametrize(("p", "kept"), [
    (0.05, [1]), (0.39, [1]), (0.5, [1, 3]), (0.75, [1, 2, 3]), (0.95, [0, 1, 2, 3]),
    (1.0, [0, 1, 2, 3]),
])
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    probs = probabilities(LOGITS, top_p=p)
    assert np.flatnonzero(probs).tolist() == kept
    assert probs.sum() == pytest.approx(1)


def test_top_p_may_be_reached_exactly():
    halves = np.log(np.array([[0.5, 0.25, 0.25]]))
    assert probabilities(halves, top_p=0.5).tolist() == [[1, 0, 0]]


def test_top_k_is_applied_before_top_p():
    # Of the two likeliest, 4/7 and 3/7, the first alone reaches 0.5.
    assert probabilities(LOGITS, top_k=2, top_p=0.5).tolist() == [[0, 1, 0, 0]]


def test_samples_follow_the_probabilities():
    probs = np.repeat([[0.1, 0.0, 0.6, 0.3]], 20_000, axis=0)
    drawn = draw(probs, np.random.default_rng(0).random(20_000))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, probs[0], atol=0.015)
    assert draw(probs[:2], np.array([0.0, 1 - 2**-53])).tolist() == [0, 3]


@pytest.mark.parametrize(("option", "message"), [
    ({"temperature": -1}, "temperature must be at least 0, got -1"),
    ({"temperature": float("nan")}, "temperature must be a finite number"),
    ({"top_k": 0}, "top_k must be at least 1, got 0"),
    ({"top_p": 0.0}, "top_p must be above 0, got 0"),
    ({"top_p": 1.1}, "top_p must be"), ({"min_p": 0}, "min_p must be above 0, got 0"),
    ({"min_p": 1.1}, "min_p must be at most 1, got 1.1"),
    ({"repetition_penalty": 0}, "repetition_penalty must be at least 0.01, got 0"),
    ({"repetition_penalty": 101}, "repetition_penalty must be at most 100, got 101"),
    ({"max_new_tokens": -1}, "max_new_tokens must be"),
])
def test_invalid_sampling_options_are_refused(gpt, option, message):
    with pytest.raises(UserError, match=message):
        gpt.generate([[1]], **{"max_new_tokens": 1} | option)


@pytest.mark.parametrize("idx", [[[]], [1, 2]])
def test_prompt_without_tokens_is_refused(gpt, idx):
    with pytest.raises(UserError, match="at least one token"):
        gpt.generate(np.array(idx, int), 3)


def test_probabilities_are_computed_in_double_precision():
    """In float32 the many rare tokens would be lost in the sum."""
    logits = np.array([[0.0] + [-20.0] * 50_000], np.float32)
    probs = probabilities(logits, top_p=1.0)
    assert probs.dtype == np.float64
    expected = np.exp(logits[0].astype(float)) / (1 + 50_000 * np.exp(-20.0))
    np.testing.assert_allclose(probs[0], expected, rtol=1e-12)


@pytest.mark.parametrize(("probs", "threshold", "token"), [
    ([3, 1, 0], 0.7, 0), ([3, 1, 0], 0.8, 1), ([0.1, 0.1, 0], 0.4, 0), ([0.1, 0.1, 0], 0.99, 1),
    ([0, 5, 0], 0.0, 1),
])
def test_weights_to_draw_from_need_not_sum_to_one(probs, threshold, token):
    assert draw(np.array([probs], float), np.array([threshold])).tolist() == [token]


def test_seed_zero_is_a_seed(gpt):
    idx = np.array([[1]])
    assert gpt.generate(idx, 30, seed=0).tolist() == gpt.generate(idx, 30, seed=0).tolist()
    assert gpt.generate(idx, 30, seed=0).tolist() != gpt.generate(idx, 30, seed=1).tolist()


NEVER_REACHED = st.integers(0, 98).map(lambda n: (n + 0.3217) / 100)     # by sums of small ratios


def by_definition(weights, top_k, top_p, min_p):
    """Weights of the tokens -> their exact probabilities."""
    kept = {i: Fraction(w) for i, w in enumerate(weights)}
    if top_k is not None:
        last = sorted(weights, reverse=True)[:top_k][-1]
        kept = {i: w for i, w in kept.items() if w >= last}
    if top_p is not None:
        whole, reached, rest = sum(kept.values()), 0, kept
        kept = {}
        for i in sorted(rest, key=lambda i: (rest[i], i), reverse=True):
            if reached / whole < Fraction(top_p):
                kept[i] = rest[i]
                reached += rest[i]
    if min_p is not None:
        kept = {i: w for i, w in kept.items() if w >= Fraction(min_p) * max(kept.values())}
    return [kept.get(i, 0) / sum(kept.values()) for i in range(len(weights))]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.none() | st.integers(1, 10),
       st.none() | NEVER_REACHED, st.none() | NEVER_REACHED, st.sampled_from([1, 2]))
def test_probabilities_equal_the_exact_ones(weights, top_k, top_p, min_p, power):
    logits = np.log(np.array([weights], float))
    expected = by_definition([w**power for w in weights], top_k, top_p, min_p)
    found = probabilities(logits, 1 / power, top_k, top_p, min_p)[0]
    assert (found == 0).tolist() == [p == 0 for p in expected]
    np.testing.assert_allclose(found, np.array(expected, float), rtol=1e-12)


def test_pairs_of_tokens_have_their_exact_probabilities(gpt):
    """5,000 rows of one batch, with all options. Prompt and output are penalised, in each row its
    own, and also before the context of 8."""
    options = {"temperature": 0.8, "top_k": 9, "top_p": 0.95, "min_p": 0.04,
               "repetition_penalty": 1.7}
    prompt = [12, 1, 2, 4, 5, 1, 2, 4, 5, 1]
    rows = gpt.generate(np.repeat([prompt], 5000, axis=0), 2, seed=0, **options)

    def distribution(tokens):
        logits = gpt.logits([tokens[-8:]])[0, -1].tolist()
        lower = {i: x / 1.7 if x > 0 else x * 1.7 for i, x in enumerate(logits) if i in tokens}
        weights = [math.exp(lower.get(i, x) / 0.8) for i, x in enumerate(logits)]
        return np.array(by_definition(weights, 9, 0.95, 0.04), float)

    first = distribution(prompt)
    expected = np.array([first[i] * distribution([*prompt, i]) for i in range(13)])
    found = np.zeros((13, 13))
    np.add.at(found, (rows[:, 0], rows[:, 1]), 1 / len(rows))
    assert 20 < np.count_nonzero(expected) < 150 and not found[expected == 0].any()
    np.testing.assert_array_less(abs(found - expected), 1e-9 + 5 * np.sqrt(expected / len(rows)))


def test_largest_penalties_do_not_overflow():
    """In float32 they would."""
    logits = np.array([[1e38, -1e38, 1.0]], np.float32)
    seen = np.array([[True, True, False]])
    for penalty in (0.01, 100):
        assert np.isfinite(penalized(logits, seen, penalty)).all()


def test_prompt_may_contain_the_end(gpt):
    assert gpt.generate([[7]], 5, seed=1, end=7).tolist() == [
        gpt.generate([[7]], 5, seed=1)[0].tolist()]


@pytest.mark.parametrize("wrong", [-1, 13])
def test_invalid_tokens_are_refused_also_before_the_context(gpt, wrong):
    with pytest.raises(UserError, match=f"idx must be token ids from 0 to 12, got {wrong}"):
        gpt.generate([[wrong, *range(12)]], 1)


@pytest.mark.parametrize("length", [1, 3, 6, 7, 8, 11])
def test_long_prompt_is_read_in_parts_and_continues_the_same(gpt, length, monkeypatch):
    prompt = np.arange(2 * length).reshape(2, length) % 13
    whole = list(steps(gpt, prompt, Sampling(5, temperature=0)))
    monkeypatch.setattr("npgpt.models.generate.READ", 3)
    parts, lengths, logits = [], [], GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, idx, *args, **kw: lengths.append(idx.shape[1])
                        or logits(self, idx, *args, **kw))
    parts = list(steps(gpt, prompt, Sampling(5, temperature=0)))
    assert max(lengths) == min(length, 3)
    for one, other in zip(whole, parts, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-6, atol=1e-6)


def test_reading_keeps_no_caches_for_a_backward(gpt):
    kv = KVCache(CONFIG.n_layer, CONFIG.block_size)
    logits, cache = GPT.forward(np.array([[1, 2, 3]]), gpt.params.tree, gpt.config, kv=kv,
                                last=True)
    assert logits.shape == (1, 1, 13)
    assert [part for part in cache if isinstance(part, list)] == [[]]
    np.testing.assert_allclose(logits, gpt.logits([[1, 2, 3]])[:, -1:])


@pytest.mark.parametrize("second", [
    [1, 2, 3, 4, 5, 6], [1, 2, 9], [1, 2, 3], [7, 2, 3], [1], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
])
def test_cache_of_an_earlier_text_changes_nothing_but_the_time(gpt, second, monkeypatch):
    kv, greedy = KVCache(CONFIG.n_layer, CONFIG.block_size), Sampling(4, temperature=0)
    list(steps(gpt, [[1, 2, 3]], Sampling(1, temperature=0), kv=kv))
    expected = list(steps(gpt, [second], greedy))
    lengths, logits = [], GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, idx, *args, **kw: lengths.append(idx.shape[1])
                        or logits(self, idx, *args, **kw))
    found = list(steps(gpt, [second], greedy, kv=kv))
    for one, other in zip(expected, found, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-6, atol=1e-6)
    common = next((i for i, (a, b) in enumerate(zip([1, 2, 3], second)) if a != b),
                  min(3, len(second) - 1)) if len(second) <= CONFIG.block_size else 0
    assert lengths[0] == min(len(second), CONFIG.block_size) - common


def test_cache_of_another_number_of_texts_is_read_anew(gpt):
    kv = KVCache(CONFIG.n_layer, CONFIG.block_size)
    gpt_of = partial(steps, gpt, sampling=Sampling(3, temperature=0))
    list(gpt_of([[1, 2, 3]], kv=kv))
    rows = [[1, 2, 3], [4, 5, 6]]
    assert [s.tokens.tolist() for s in gpt_of(rows, kv=kv)] == [
        s.tokens.tolist() for s in gpt_of(rows)]


def test_interrupted_reading_leaves_a_cache_that_can_be_used(gpt, monkeypatch):
    kv, prompt = KVCache(CONFIG.n_layer, CONFIG.block_size), [[1, 2, 3, 4]]
    list(steps(gpt, [[1, 2]], Sampling(1), kv=kv))
    extend, calls = generation.LayerKV.extend, []

    def interrupted(self, k, v):
        calls.append(1)
        if len(calls) == 2:                              # after the first layer
            raise KeyboardInterrupt
        return extend(self, k, v)

    monkeypatch.setattr(generation.LayerKV, "extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(steps(gpt, prompt, Sampling(1), kv=kv))
    found = list(steps(gpt, prompt, Sampling(2, temperature=0), kv=kv))
    for one, other in zip(found, steps(gpt, prompt, Sampling(2, temperature=0)), strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-6, atol=1e-6)


def test_buffers_grow_with_the_text_and_not_beyond_the_context(monkeypatch):
    monkeypatch.setattr(generation, "SMALLEST", 2)
    cache, sizes = generation.LayerKV(10), []
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, 3, 2, 10, 4))
    for start, stop in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 9), (9, 10)):
        k, v = cache.extend(keys[:, :, start:stop], values[:, :, start:stop])
        np.testing.assert_array_equal(k, keys[:, :, :stop])
        np.testing.assert_array_equal(v, values[:, :, :stop])
        sizes.append(cache.k.shape[2])
    assert sizes == [2, 2, 4, 4, 9, 10]


def test_cache_is_kept_as_far_as_all_rows_begin_the_same(gpt, monkeypatch):
    kv = KVCache(CONFIG.n_layer, CONFIG.block_size)
    assert kv.tokens is None
    generation.read(gpt, np.array([[1, 2, 3], [1, 2, 3]]), kv)
    assert kv.tokens.tolist() == [[1, 2, 3]] * 2
    second = np.array([[1, 2, 4, 5], [1, 6, 3, 5]])
    assert kv.rewind(second).tolist() == [[2, 4, 5], [6, 3, 5]] and kv.length == 1
