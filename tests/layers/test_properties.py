"""Properties of every layer: it is pure, keeps dtypes, accepts any strides and empty batches."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.backend import to_host
from npgpt.layers import LAYERS
from tests.cases import CASES, USED_UP


def arrays(value):
    """Every array in nested tuples, lists and mappings, as a NumPy array."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return [np.asarray(to_host(value))] if hasattr(value, "dtype") else []
    return [a for v in value for a in arrays(v)]


def same(a, b):
    return len(a) == len(b) and all(x.dtype == y.dtype and x.tobytes() == y.tobytes()
                                    for x, y in zip(a, b))


def cast(value, dtype):
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype)
    return {n: cast(v, dtype) for n, v in value.items()} if isinstance(value, dict) else value


def output_gradient(y, seed=0):
    return np.random.default_rng(seed).standard_normal(np.shape(y)).astype(np.asarray(y).dtype)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_arguments_are_not_modified(name, data):
    case = data.draw(CASES[name]())
    inputs = copy.deepcopy(case.inputs)
    y, cache = case.forward(*inputs)
    assert same(arrays(inputs), arrays(case.inputs))
    dy = output_gradient(y)
    if name in USED_UP:
        case.backward(dy, cache)
        assert same(arrays(inputs), arrays(case.inputs))
        return
    kept, dy_kept = [a.copy() for a in arrays(cache)], dy.copy()
    first = case.backward(dy, cache)
    assert same(arrays(cache), kept) and same([dy], [dy_kept])
    assert same(arrays(first), arrays(case.backward(dy, cache)))


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_float32_stays_float32_and_agrees_with_float64(name, data):
    case = data.draw(CASES[name]())
    results = {}
    for dtype in (np.float32, np.float64):
        y, cache = case.forward(*(cast(x, dtype) for x in case.inputs))
        dy = output_gradient(y.astype(np.float64)).astype(dtype)
        results[dtype] = [y, *arrays(case.backward(dy, cache))]
        assert {np.asarray(a).dtype for a in results[dtype]} == {np.dtype(dtype)}
    if not case.smooth:
        return
    tolerance = 1e-5 if name in LAYERS else 1e-4
    for single, double in zip(results[np.float32], results[np.float64]):
        assert np.linalg.norm(single - double) <= tolerance * max(np.linalg.norm(double), 1)


@pytest.mark.parametrize("name", [n for n in CASES if n not in USED_UP])
@given(data=st.data())
def test_backward_is_linear_in_dy(name, data):
    case = data.draw(CASES[name]())
    y, cache = case.forward(*case.inputs)
    a, b = output_gradient(y, 1), output_gradient(y, 2)
    together = arrays(case.backward(2 * a + b, cache))
    apart = zip(arrays(case.backward(a, cache)), arrays(case.backward(b, cache)))
    for whole, (one, two) in zip(together, apart):
        scale = np.abs(one).max(initial=0) + np.abs(two).max(initial=0)
        np.testing.assert_allclose(whole, 2 * one + two, rtol=0, atol=1e-12 * scale + 1e-12)


@pytest.mark.parametrize("name", LAYERS)
@given(data=st.data())
def test_results_are_new_arrays(name, data):
    """Except for an identity, which returns its input."""
    case = data.draw(CASES[name]())
    y, cache = case.forward(*case.inputs)
    dy = np.asarray(output_gradient(y))
    gradients = arrays([case.backward(dy, cache)])
    is_identity = name == "positional" or (name == "dropout" and case.inputs[1] == 0)
    given_arrays = arrays(case.inputs) + ([] if is_identity else [dy])
    results = gradients if is_identity else [np.asarray(y), *gradients]
    assert not any(np.shares_memory(a, b) for a in results for b in given_arrays)
    assert not any(np.shares_memory(a, b) for i, a in enumerate(gradients) for b in gradients[:i])


@pytest.mark.parametrize("scale", [1e-6, 1e3])
@pytest.mark.parametrize("name", LAYERS)
@given(data=st.data())
def test_extreme_scales_stay_finite(name, scale, data):
    case = data.draw(CASES[name]())
    inputs = [cast(x, np.float32) * np.float32(scale) if isinstance(x, np.ndarray)
              and x.dtype.kind == "f" else x for x in case.inputs]
    y, cache = case.forward(*inputs)
    for result in arrays([y, case.backward(output_gradient(y), cache)]):
        assert np.isfinite(result).all()


@pytest.mark.parametrize("name", LAYERS)
@given(data=st.data())
def test_strides_do_not_matter(name, data):
    case = data.draw(CASES[name]())

    def strided(x):
        """The same numbers with negative strides and gaps."""
        if not isinstance(x, np.ndarray) or x.ndim == 0:
            return x
        wide = np.repeat(x.swapaxes(0, -1)[::-1], 2, axis=0)
        return wide[::-2].swapaxes(0, -1) if len(wide) else x

    y, cache = case.forward(*case.inputs)
    dy = output_gradient(y)
    plain = [y, *arrays(case.backward(dy, cache))]
    y, cache = case.forward(*map(strided, case.inputs))
    other = [y, *arrays(case.backward(strided(np.asarray(dy)), cache))]
    for a, b in zip(plain, other):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@given(data=st.data())
def test_empty_batch_gives_empty_results(name, data):
    case = data.draw(CASES[name]())
    # Which inputs have a batch axis.
    with_batch = {"attention": (0, 1, 2), "tiled_attention": (0, 1, 2), "cross_entropy": (0, 1),
                  "linear_cross_entropy": (0, 3), "swiglu": (0, 1)}.get(name, (0,))
    inputs = [x[:0] if i in with_batch else x for i, x in enumerate(case.inputs)]
    if "attention" in name and inputs[3] is not None and inputs[3].ndim == 4:
        inputs[3] = inputs[3][:0]
    y, cache = case.forward(*inputs)
    gradients = case.backward(output_gradient(y), cache)
    first = gradients if isinstance(gradients, np.ndarray) else gradients[0]
    assert np.isfinite(np.concatenate([np.ravel(a) for a in arrays([y, gradients])])).all()
    if name != "embedding":
        assert first.shape == inputs[0].shape
