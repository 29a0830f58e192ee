import numpy as np
import pytest

from npgpt.layers.rows import row_max, row_sum, sum_rows
from tests import double


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 1), (1, 7), (0, 3), (3, 2, 2, 5)])
def test_sums_and_the_largest_of_rows_are_numpys(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_allclose(row_sum(x), x.sum(-1, keepdims=True), atol=1e-14)
    np.testing.assert_allclose(sum_rows(x), x.reshape(-1, shape[-1]).sum(0), atol=1e-14)
    np.testing.assert_array_equal(row_max(x), x.max(-1, keepdims=True))
    for dtype in ("float32", "complex128"):
        for f in (row_sum, row_max, sum_rows):
            assert f(x.astype(dtype)).dtype == dtype


def test_sums_and_the_largest_of_rows_of_a_view_are_numpys():
    x = np.random.default_rng(0).standard_normal((4, 5, 6)).transpose(2, 0, 1)[:, ::2]
    np.testing.assert_allclose(row_sum(x), x.sum(-1, keepdims=True), atol=1e-14)
    np.testing.assert_allclose(sum_rows(x), x.sum((0, 1)), atol=1e-14)
    np.testing.assert_array_equal(row_max(x), x.max(-1, keepdims=True))


def test_largest_of_a_row_is_nan_if_an_element_is_and_minus_infinity_if_all_are():
    x = np.full((3, 4), -np.inf)
    x[1, 2], x[2, 3] = np.nan, 5
    np.testing.assert_array_equal(row_max(x), [[-np.inf], [np.nan], [5]])


def test_sum_of_rows_without_elements_is_0():
    np.testing.assert_array_equal(row_sum(np.ones((2, 0))), [[0], [0]])


@pytest.mark.parametrize("shape", [(1, 4), (16, 3), (4, 6, 5), (7, 2), (0, 3)])
def test_a_gpu_finds_the_same(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    with double.installed() as gpu:
        for function in (sum_rows, row_sum, row_max):
            found = gpu.to_host(function(gpu.to_device(x)))
            np.testing.assert_allclose(found, function(x), atol=1e-14)
