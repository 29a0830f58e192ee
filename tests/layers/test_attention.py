import numpy as np
import pytest

from npgpt.layers import Key, attention_backward, attention_forward, causal_mask
from npgpt.layers.dropout import keep_mask


def heads(seed=0, B=2, H=3, Tq=4, Tk=6, D=5):
    n = np.random.default_rng(seed).standard_normal
    return n((B, H, Tq, D)), n((B, H, Tk, D)), n((B, H, Tk, D))


def plainly(q, k, v, mask):
    """Attention by its definition, one query at a time."""
    y = np.zeros_like(q)
    for b, h, i in np.ndindex(q.shape[:3]):
        scores = np.array([q[b, h, i] @ key / len(key) ** 0.5 for key in k[b, h]])
        weights = np.exp(scores) * mask[i]
        y[b, h, i] = (weights / weights.sum()) @ v[b, h]
    return y


def test_matches_the_definition():
    q, k, v = heads()
    mask = causal_mask(np, 4, 6)
    np.testing.assert_allclose(attention_forward(q, k, v, mask)[0], plainly(q, k, v, mask))


def test_causal_mask_aligns_queries_with_the_last_keys():
    assert causal_mask(np, 2, 4).astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal_mask(np, 3, 3).tolist() == np.tri(3, dtype=bool).tolist()


@pytest.mark.parametrize(("Tq", "Tk", "masked"), [
    (Tq, Tk, masked) for Tq, Tk in [(6, 6), (4, 6), (2, 2), (1, 6), (1, 1), (6, 4)]
    for masked in (False, True)])
def test_causal_attention_is_attention_with_a_causal_mask(Tq, Tk, masked):
    """Beside a mask, both hide keys."""
    q, k, v = heads(Tq=Tq, Tk=Tk)
    mask = np.random.default_rng(1).random((2, 1, 1, Tk)) < 0.5 if masked else True
    y, cache = attention_forward(q, k, v, mask if masked else None, causal=True)
    expected, masked_cache = attention_forward(q, k, v, causal_mask(np, Tq, Tk) & mask)
    np.testing.assert_array_equal(y, expected)
    for d, other in zip(attention_backward(q, cache), attention_backward(q, masked_cache)):
        np.testing.assert_array_equal(d, other)


def test_masked_key_has_no_influence():
    q, k, v = heads(Tq=6)
    mask = causal_mask(np, 6, 6)
    before, _ = attention_forward(q, k, v, mask)
    k[:, :, 4:], v[:, :, 4:] = 1e4, -1e4
    after, _ = attention_forward(q, k, v, mask)
    np.testing.assert_array_equal(before[:, :, :4], after[:, :, :4])
    assert not np.array_equal(before[:, :, 4:], after[:, :, 4:])


def test_fully_masked_query_gives_zero_and_no_gradient():
    q, k, v = heads()
    mask = np.ones((4, 6), bool)
    mask[1] = False
    y, cache = attention_forward(q, k, v, mask)
    assert not y[:, :, 1].any() and np.isfinite(y).all()
    dq, dk, dv = attention_backward(np.ones_like(y), cache)
    assert not dq[:, :, 1].any()
    assert np.isfinite(dk).all() and np.isfinite(dv).all()


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_scores_do_not_overflow(size):
    q, k, v = (x.astype(np.float32) for x in heads())
    y, cache = attention_forward(q * size, k * size, v, causal_mask(np, 4, 6))
    assert all(np.isfinite(d).all() for d in (y, *attention_backward(np.ones_like(y), cache)))


def test_scores_of_zero_are_not_treated_as_masked():
    _, k, v = heads(Tq=6)
    y, _ = attention_forward(np.zeros_like(k), k, v, causal_mask(np, 6, 6))
    np.testing.assert_allclose(y[:, :, 3], v[:, :, :4].mean(2))


def test_heads_and_sequences_are_independent():
    q, k, v = heads()
    y, _ = attention_forward(q, k, v)
    alone, _ = attention_forward(q[1:, 2:], k[1:, 2:], v[1:, 2:])
    np.testing.assert_allclose(y[1:, 2:], alone)


@pytest.mark.parametrize("G", [1, 2, 3, 6])
def test_a_shared_head_of_keys_equals_a_copy_for_each_head_of_queries(G):
    """Its gradient is the sum of the gradients of the copies."""
    q, _, _ = heads(H=6)
    _, k, v = heads(seed=1, H=G)
    mask, p, key = causal_mask(np, 4, 6), 0.4, Key(1, 1)
    y, cache = attention_forward(q, k, v, mask, p, key)
    copies = [x.repeat(6 // G, axis=1) for x in (k, v)]
    expected, copies_cache = attention_forward(q, *copies, mask, p, key)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    dq, dk, dv = attention_backward(dy, cache)
    expected, *of_copies = attention_backward(dy, copies_cache)
    np.testing.assert_allclose(dq, expected, rtol=1e-10, atol=1e-14)
    for found, each in zip((dk, dv), of_copies):
        summed = each.reshape(2, G, 6 // G, 6, 5).sum(2)
        np.testing.assert_allclose(found, summed, rtol=1e-10, atol=1e-14)


def test_shared_keys_and_values_are_not_copied(request):
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the arguments are copied to the GPU")
    q, _, _ = heads(H=6)
    _, k, v = heads(H=2)
    _, cache = attention_forward(q, k, v)
    arrays = [x for x in cache if isinstance(x, np.ndarray)]
    for given in (k, v):
        assert any(np.shares_memory(given, x) for x in arrays)
    assert sum(x.shape[-2:] == (6, 5) for x in arrays) == 2       # (Tk, D): the given ones alone


def test_without_a_probability_nothing_is_dropped():
    q, k, v = heads()
    np.testing.assert_array_equal(attention_forward(q, k, v, key=Key(1, 1))[0],
                                  attention_forward(q, k, v)[0])


def test_dropout_drops_the_probabilities_not_the_values():
    q, k, _ = heads(Tk=50)
    p, key = 0.5, Key(1, 1)
    values = np.broadcast_to(np.eye(50), (2, 3, 50, 50))     # the output is then the probabilities
    att, _ = attention_forward(q, k, values)
    kept, _ = attention_forward(q, k, values, None, p, key)
    np.testing.assert_allclose(kept, att * keep_mask(np, key, p, att.shape) / (1 - p), rtol=1e-12)


def test_without_keys_the_output_and_the_gradients_are_zero():
    q, k, v = heads(Tk=0)
    y, cache = attention_forward(q, k, v, causal_mask(np, 4, 0))
    assert y.shape == (2, 3, 4, 5) and not y.any()
    dq, dk, dv = attention_backward(np.ones_like(y), cache)
    assert dq.shape == q.shape and not dq.any()
    assert dk.shape == dv.shape == k.shape


@pytest.mark.parametrize("Tk", [0, 3])
def test_without_queries_the_output_is_empty_and_the_gradients_are_zero(Tk):
    q, k, v = heads(Tq=0, Tk=Tk)
    y, cache = attention_forward(q, k, v)
    assert y.shape == q.shape
    dq, dk, dv = attention_backward(y, cache)
    assert dq.shape == q.shape
    assert dk.shape == dv.shape == k.shape and not dk.any() and not dv.any()


@pytest.mark.parametrize("seed", range(10))
def test_saturated_scores_leave_only_roundings_of_a_gradient_of_zero(seed):
    """sum(dy * y) and datt are the same number, rounded differently: at most D roundings each."""
    q, k, v = (x.astype(np.float32) for x in heads(seed))
    q *= np.float32(1e4)
    y, cache = attention_forward(q, k, v)
    assert all((row == v[b, h]).all(1).any() for b, h in np.ndindex(2, 3) for row in y[b, h])
    dy = np.random.default_rng(seed).standard_normal(y.shape).astype(np.float32)
    dq, dk, _ = attention_backward(dy, cache)
    D, rounding = 5, np.finfo(np.float32).eps / 2
    dscores = 2 * D * rounding * np.abs(dy * y).sum(-1, keepdims=True)     # (B, H, Tq, 1), at most
    assert (np.abs(dq) <= dscores * np.abs(k).max() / D**0.5).all()
    assert (np.abs(dk) <= (dscores * np.abs(q) / D**0.5).sum(2, keepdims=True)).all()
