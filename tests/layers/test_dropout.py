import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.layers import Key, dropout_backward, dropout_forward
from npgpt.layers.dropout import keep_mask, keep_tile

KEY = Key(seed=1, step=2, site=(3,))


def mask(key, p=0.5, shape=(4, 1000)):
    return keep_mask(np, key, p, shape)


@pytest.mark.parametrize(("p", "key"), [(0.5, None), (0.0, KEY), (0, KEY)])
def test_without_a_key_or_a_probability_nothing_is_dropped(p, key):
    x = np.ones((2, 3))
    y, cache = dropout_forward(x, p, key)
    assert y is x
    assert dropout_backward(x, cache) is x


def test_kept_elements_are_scaled_up_and_the_others_are_zero():
    y, cache = dropout_forward(np.ones((8, 1000)), 0.2, KEY)
    assert sorted(set(y.ravel())) == [0.0, 1.25]
    np.testing.assert_array_equal(dropout_backward(np.ones((8, 1000)), cache), y)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_fraction_dropped_is_p(p):
    n = 2_000_000
    dropped = n - mask(KEY, p, (20, n // 20)).sum()
    assert abs(dropped - n * p) < 5 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("other", [
    KEY._replace(seed=2), KEY._replace(seed=1 + 2**32), KEY._replace(step=3), KEY._replace(row=4),
    KEY.at(0), KEY._replace(site=(4,)), KEY._replace(site=()),
])
def test_each_part_of_the_key_changes_the_mask(other):
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


@given(data=st.data(), p=st.floats(0.1, 0.9), row=st.integers(0, 9),
       shape=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_tile_of_a_mask_is_what_the_whole_mask_has_there(data, p, row, shape):
    tile = tuple(slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))))
                 for n in shape)
    key = KEY._replace(row=row)
    found = keep_tile(np, key, p, tuple(shape), tile)
    expected = mask(key, p, tuple(shape))[tile]
    assert found.dtype == bool and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def scrambled(z, salt=0):
    """lowbias32 with Python integers."""
    z ^= z >> 16
    z = z * 0x7FEB352D + salt & 0xFFFFFFFF
    z ^= z >> 15
    z = z * 0x846CA68B & 0xFFFFFFFF
    return z ^ z >> 16


def bits(key, row, element):
    """The hash that decides whether an element is dropped, with Python integers."""
    words = [0x9E3779B9, 0x85EBCA6B]
    for part in (key.seed % 2**32, key.seed // 2**32, key.step, *key.site):
        words = [scrambled(word ^ part) for word in words]
    first, second = (scrambled(key.row + row ^ word) for word in words)
    return scrambled(element ^ first, second)


@pytest.mark.parametrize("key", [
    Key(1337, 10, 1, (2, 0, 1)), Key(2**40 + 7, 0), Key(0, 2**32 - 1, 5, (3,)),
])
def test_mask_follows_the_documented_hash(key):
    """With another hash, resumed runs would differ from uninterrupted ones."""
    expected = [[bits(key, row, element) for element in range(12)] for row in range(3)]
    for p in (0.5, 0.1):
        kept = mask(key, p, (3, 3, 4)).reshape(3, 12)
        np.testing.assert_array_equal(kept, np.array(expected) >= p * 2**32)
    exactly = expected[1][5] / 2**32          # an element at the threshold is kept
    assert mask(key, exactly, (3, 3, 4))[1, 1, 1]
    assert not mask(key, exactly + 2**-32, (3, 3, 4))[1, 1, 1]
