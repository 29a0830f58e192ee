import numpy as np
import pytest

from npgpt.layers import Key, dropout_backward, dropout_forward
from npgpt.layers.dropout import keep_mask

KEY = Key(seed=1, step=2, site=(3,))


def mask(key, p=0.5, shape=(4, 1000)):
    return keep_mask(np, key, p, shape)


def test_without_a_key_nothing_is_dropped():
    x = np.ones((2, 3))
    y, cache = dropout_forward(x, 0.5, None)
    assert y is x
    assert dropout_backward(x, cache) is x


def test_what_is_kept_is_scaled_up_and_the_rest_is_zero():
    y, cache = dropout_forward(np.ones((8, 1000)), 0.2, KEY)
    assert sorted(set(y.ravel())) == [0.0, 1.25]
    np.testing.assert_array_equal(dropout_backward(np.ones((8, 1000)), cache), y)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_share_dropped_is_p(p):
    n = 2_000_000
    dropped = n - mask(KEY, p, (20, n // 20)).sum()
    assert abs(dropped - n * p) < 5 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("other", [
    KEY._replace(seed=2), KEY._replace(seed=1 + 2**32), KEY._replace(step=3), KEY._replace(row=4),
    KEY.at(0), KEY._replace(site=(4,)), KEY._replace(site=()),
])
def test_each_part_of_the_key_makes_another_mask(other):
    agree = (mask(KEY) == mask(other)).mean()
    assert abs(agree - 0.5) < 5 * 0.5 / 4000**0.5


def test_rows_and_elements_are_independent_of_each_other():
    kept = mask(KEY, 0.5, (64, 4096)).astype(float) - 0.5
    np.fill_diagonal(rows := np.corrcoef(kept), 0)
    assert np.abs(rows).max() < 6 / 4096**0.5
    for lag in (1, 2, 3, 64, 256):
        along = (kept[:, lag:] * kept[:, :-lag]).mean() * 4
        assert abs(along) < 5 / kept.size**0.5


def test_a_part_of_the_batch_gets_its_part_of_the_mask():
    whole = mask(KEY, 0.3, (6, 5, 7))
    np.testing.assert_array_equal(mask(KEY._replace(row=2), 0.3, (3, 5, 7)), whole[2:5])


def test_the_hash_stays_what_it_is():
    """Computed once with Python's integers. With another, no old run could be resumed."""
    words = np.packbits(mask(Key(seed=1337, step=10, row=1, site=(2, 0, 1)), 0.5, (2, 32)))
    assert words.tolist() == [73, 222, 181, 122, 66, 137, 88, 214]

