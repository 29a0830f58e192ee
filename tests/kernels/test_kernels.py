"""The fused kernels of layer norm and GELU agree with the plain layers, and all fused layers pass
the tests of their layers. The test double compiles the kernels for the host and checks each launch
for writes outside an array, undefined shuffles and arguments of the wrong type: see
tests/double/raw_module.py.
"""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt import GPT, GPTConfig, UserError, kernels, layers
from npgpt.gradcheck import check_gradients
from npgpt.kernels import layernorm as fused_layernorm
from npgpt.kernels.launch import EXPRESSIONS, OPTIONS, source
from npgpt.layers import activations, layernorm
from tests import double
from tests.layers import test_activations, test_attention, test_dropout, test_layernorm

PLAIN = {
    "layernorm": (layernorm.layernorm_forward, layernorm.layernorm_backward),
    "gelu": (activations.gelu_forward, activations.gelu_backward),
}
CHANNELS = st.one_of(st.sampled_from([1, 31, 32, 33, 64, 65, 100]), st.integers(1, 100))
DTYPES = st.sampled_from(["float32", "float64"])
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=30)


def inputs_of(name, N, C, dtype, seed=0, shift=0.0):
    """-> inputs of the layer, dy. The channels of a token differ widely, so that the layer does not
    amplify rounding errors."""
    rng = np.random.default_rng(seed)
    x = rng.permuted(np.tile(np.arange(C), (N, 1)), axis=1) * (4 / C) - 2
    x = (x + 0.1 * rng.standard_normal((N, C)) + shift).astype(dtype)
    w, b, dy = (rng.standard_normal(shape).astype(dtype) for shape in (C, C, (N, C)))
    return ([x, w, b] if name == "layernorm" else [x]), dy


def results(pair, inputs, dy):
    """-> y and the gradients, a list of arrays."""
    forward, backward = pair
    y, cache = forward(*inputs)
    gradients = backward(dy, cache)
    return [y, *(gradients if isinstance(gradients, tuple) else (gradients,))]


def ulps_of(C):
    """The tolerance: dx is multiplied by rstd, 1/√eps = 316 where a token has a single channel."""
    return 64 if C > 1 else 64 * 316


def assert_close(found, expected, ulps=64):
    """Each within this number of ulps of the largest number of its array, or of 1."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        scale = max(np.abs(b).max(initial=0), 1)
        np.testing.assert_allclose(a, b, rtol=0, atol=ulps * np.finfo(b.dtype).eps * scale)


@pytest.mark.parametrize("name", PLAIN)
@few
@given(N=st.integers(1, 70), C=CHANNELS, dtype=DTYPES, seed=SEEDS)
def test_fused_layer_equals_the_plain_one(name, fused, N, C, dtype, seed):
    inputs, dy = inputs_of(name, N, C, dtype, seed)
    assert_close(results(fused[name], inputs, dy), results(PLAIN[name], inputs, dy), ulps_of(C))


@pytest.mark.parametrize("C", [1, 33])
def test_groups_of_many_rows_are_summed(fused, C):
    """With more tokens than groups, a group of dw and db has several."""
    for N in (fused_layernorm.GROUPS + 1, 2 * fused_layernorm.GROUPS + 88):
        inputs, dy = inputs_of("layernorm", N, C, "float64")
        assert_close(results(fused["layernorm"], inputs, dy),
                     results(PLAIN["layernorm"], inputs, dy), ulps_of(C))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_variance_survives_a_large_mean(fused, dtype):
    """In one pass, mean(x²) - mean², the error would be of the order of the shift squared."""
    inputs, dy = inputs_of("layernorm", 3, 64, dtype, shift=1000)
    assert_close(results(fused["layernorm"], inputs, dy), results(PLAIN["layernorm"], inputs, dy),
                 ulps=64 * 100)


@pytest.mark.parametrize("name", PLAIN)
@few
@given(N=st.integers(1, 5), C=CHANNELS, seed=SEEDS)
def test_fused_backward_is_the_derivative_of_the_fused_forward(name, fused, N, C, seed):
    inputs, _ = inputs_of(name, N, C, "float64", seed)
    check_gradients(*fused[name], inputs, method="central", directions=1)


def own_tests():
    """The tests of the layers themselves, each with its arguments."""
    for module in (test_layernorm, test_activations, test_dropout, test_attention):
        for name, test in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("test_") or "relu" in name:
                continue
            if "request" in inspect.signature(test).parameters:      # it looks for the device
                continue
            marks = getattr(test, "pytestmark", [])
            for number, values in enumerate(marks[0].args[1] if marks else [()]):
                values = values if type(values) is tuple else (values,)
                yield pytest.param(module, test, values, id=f"{name}-{number}")


@pytest.mark.parametrize(("module", "test", "values"), [*own_tests()])
def test_fused_layer_passes_the_layers_own_tests(fused, monkeypatch, module, test, values):
    for name, (forward, backward) in fused.items():
        monkeypatch.setattr(module, f"{name}_forward", forward, raising=False)
        monkeypatch.setattr(module, f"{name}_backward", backward, raising=False)
    test(*values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PLAIN)
def test_same_input_gives_the_same_bits(name, fused, dtype):
    inputs, dy = inputs_of(name, 300, 65, dtype)
    first, second = (results(fused[name], inputs, dy) for _ in range(2))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in second]


@pytest.mark.parametrize("name", PLAIN)
def test_leading_axes_are_kept(name, fused):
    inputs, dy = inputs_of(name, 12, 5, "float32")
    flat = results(fused[name], inputs, dy)
    inputs[0] = inputs[0].reshape(2, 3, 2, 5)
    deep = results(fused[name], inputs, dy.reshape(2, 3, 2, 5))
    assert deep[0].shape == deep[1].shape == (2, 3, 2, 5)
    assert [a.tobytes() for a in flat] == [a.tobytes() for a in deep]


@pytest.mark.parametrize("name", PLAIN)
def test_arrays_with_gaps_are_made_contiguous(name, device):
    pair = kernels.fused_layers(device)[name]
    inputs, dy = inputs_of(name, 7, 5, "float64")
    plain = results(pair, map(device.to_device, inputs), device.to_device(dy))
    gaps = [device.to_device(np.repeat(a, 2, axis=-1))[..., ::2] for a in (*inputs, dy)]
    strided = results(pair, gaps[:-1], gaps[-1])
    for a, b in zip(plain, strided, strict=True):
        assert device.to_host(a).tobytes() == device.to_host(b).tobytes()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", ["complex", "mixed", "empty"])
def test_unsupported_arrays_use_the_plain_layer(name, kind, fused):
    inputs, dy = inputs_of(name, 4, 5, "float32")
    if kind == "complex":
        inputs = [a.astype(complex) * (1 + 0.1j) for a in inputs]
        dy = dy.astype(complex)
    elif kind == "empty":
        inputs[0], dy = inputs[0][:0], dy[:0]
    elif kind == "mixed":
        inputs[0], dy = inputs[0].astype("float64"), dy.astype("float64")
    assert_close(results(fused[name], inputs, dy), results(PLAIN[name], inputs, dy))


def test_mismatched_shapes_are_refused(fused):
    for name in PLAIN:
        forward, backward = fused[name]
        inputs, dy = inputs_of(name, 2, 5, "float32")
        with pytest.raises(ValueError, match=r"dy must be .*, like y"):
            backward(dy[:, :3], forward(*inputs)[1])
    (x, w, b), _ = inputs_of("layernorm", 2, 5, "float32")
    for parameters in ((w[:3], b), (w, b[:3])):
        with pytest.raises(ValueError, match="broadcast"):
            fused["layernorm"][0](x, *parameters)


@pytest.mark.parametrize("name", PLAIN)
def test_gradient_of_another_dtype_is_refused(name, fused):
    forward, backward = fused[name]
    inputs, dy = inputs_of(name, 4, 5, "float32")
    with pytest.raises(ValueError, match="dy must be float32"):
        backward(dy.astype("float64"), forward(*inputs)[1])


def test_each_thread_can_process_many_elements(device):
    """More elements than threads, as in a large model."""
    module = device.xp.RawModule(code=source(), options=OPTIONS,
                                 name_expressions=list(EXPRESSIONS.values()))
    (x,), dy = inputs_of("gelu", 10, 100, "float64")
    y, dx = (device.to_device(np.zeros_like(x)) for _ in range(2))
    on_device, size = device.to_device(x), np.int64(x.size)
    module.get_function("gelu_forward<double>")((3,), (32,), (on_device, size, y))
    module.get_function("gelu_backward<double>")(
        (3,), (32,), (device.to_device(dy), on_device, size, dx))
    assert_close(map(device.to_host, (y, dx)), results(PLAIN["gelu"], [x], dy))


CONFIG = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=8)


def launches_of(model, device, monkeypatch):
    """-> the number of kernels that a step of a model launches."""
    found = []
    function = type(device.xp.RawModule(code=source(), options=OPTIONS,
                                        name_expressions=list(EXPRESSIONS.values()))
                    .get_function("gelu_forward<float>"))
    launch = function.__call__
    monkeypatch.setattr(function, "__call__", lambda *args: found.append(1) or launch(*args))
    model.loss_and_grads([[1, 2, 3]], [[2, 3, 4]])
    return len(found)


def test_fused_layers_belong_to_their_model(device, monkeypatch):
    if device.xp is not double.cupy:
        pytest.skip("the double counts launches")
    fused, plain = (GPT(CONFIG, device=device, fused=fused) for fused in (True, False))
    assert launches_of(fused, device, monkeypatch) == 3 * 3 + 2 + 2    # norms, GELU, attention
    assert launches_of(plain, device, monkeypatch) == 0
    assert plain.layers is layers


def test_device_without_cuda_is_refused():
    with pytest.raises(UserError, match="fused kernels need CUDA, and the device 'cpu' has none"):
        GPT(CONFIG, fused=True)
