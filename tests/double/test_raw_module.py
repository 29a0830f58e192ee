"""The host's emulation of CUDA computes what a GPU does, and refuses undefined behaviour."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.double.raw_module import RawModule

pytestmark = pytest.mark.usefixtures("host_compiler")

CODE = """
template <typename T> __global__ void scale(const T* x, T factor, long long n, T* y)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor;
}
__global__ void shift(const double* x, int offset, double* y)
{
    y[threadIdx.x] = x[(int)threadIdx.x + offset];
}
__global__ void exchange(const double* x, double* y)        // each lane's result names its partners
{
    double v = x[threadIdx.x];
    for (int distance = 1; distance < 32; distance *= 2)
        v = 3 * v + __shfl_xor_sync(0xffffffffu, v, distance);
    y[threadIdx.x] = v;
}
__global__ void leaving(double* y)
{
    if (threadIdx.x == 7) return;
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, y[threadIdx.x], 1);
}
__global__ void half(double* y) { y[threadIdx.x] = __shfl_xor_sync(0xffffu, y[threadIdx.x], 1); }
__global__ void beyond(double* y)
{
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, y[threadIdx.x], 32);
}
__global__ void apart(double* y)
{
    double v = y[threadIdx.x];
    y[threadIdx.x] = threadIdx.x < 16 ? __shfl_xor_sync(0xffffffffu, v, 1)
                                      : __shfl_xor_sync(0xffffffffu, v, 2);
}
"""
NAMES = ("scale<float>", "scale<double>", "shift", "exchange", "leaving", "half", "beyond", "apart")
WARP = (1,), (32,)


def function(name):
    module = RawModule(code=CODE, options=("--std=c++17",), name_expressions=NAMES)
    return module.get_function(name)


def array(host):
    return SimpleNamespace(_host=np.asarray(host))


def test_threads_of_all_blocks_have_correct_indices():
    x, y = np.arange(200.0), np.zeros(200)
    function("scale<double>")((2,), (128,), (array(x), np.float64(3), np.int64(200), array(y)))
    assert y.tolist() == (3 * x).tolist()


def test_lanes_exchange_values_simultaneously():
    x, y = np.random.default_rng(0).standard_normal(32), np.zeros(32)
    function("exchange")(*WARP, (array(x), array(y)))
    expected = x
    for distance in (1, 2, 4, 8, 16):
        expected = 3 * expected + expected[np.arange(32) ^ distance]
    assert y.tolist() == expected.tolist()


@pytest.mark.parametrize(("name", "message"), [
    ("leaving", "a lane has left the kernel while others of its warp shuffle"),
    ("half", "a shuffle does not name all 32 lanes"),
    ("beyond", "a shuffle reaches beyond the warp"),
    ("apart", "the lanes of a warp are in different shuffles"),
])
def test_undefined_shuffles_are_errors(name, message):
    with pytest.raises(RuntimeError, match=message):
        function(name)(*WARP, (array(np.zeros(32)),))


def test_block_with_an_incomplete_warp_is_an_error():
    with pytest.raises(RuntimeError, match="a block must be whole warps"):
        function("exchange")((1,), (40,), (array(np.zeros(40)), array(np.zeros(40))))


@pytest.mark.parametrize("factor", [3, 3.0, np.float64(3), np.int32(3), np.zeros(()), None,
                                    array(np.float32(3))])
def test_scalar_must_have_the_type_that_the_kernel_declares(factor):
    x, y = np.ones(4, np.float32), np.zeros(4, np.float32)
    with pytest.raises(TypeError, match=r"scale<float>, argument 1 \(float32\): "):
        function("scale<float>")(*WARP, (array(x), factor, np.int64(4), array(y)))
    assert not y.any()


@pytest.mark.parametrize("x", [np.ones(4, np.float32), array(np.ones(4)), np.float32(1), [1.0]])
def test_array_must_be_on_the_device_and_have_the_type_that_the_kernel_declares(x):
    with pytest.raises(TypeError, match=r"scale<float>, argument 0 \(in float32\): "):
        function("scale<float>")(
            *WARP, (x, np.float32(3), np.int64(4), array(np.zeros(4, np.float32))))


def test_number_of_arguments_must_be_correct():
    with pytest.raises(TypeError, match="exchange takes 2 arguments, not 1"):
        function("exchange")(*WARP, (array(np.zeros(32)),))


def test_array_that_is_not_contiguous_is_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        function("exchange")(*WARP, (array(np.zeros(64)[::2]), array(np.zeros(32))))


def test_array_that_is_written_may_not_overlap_another():
    x = np.zeros(40)
    with pytest.raises(ValueError, match="argument 1 is written and overlaps 0"):
        function("exchange")(*WARP, (array(x[:32]), array(x[8:])))


@pytest.mark.parametrize("n", [33, 40])
def test_write_outside_an_array_is_an_error(n):
    with pytest.raises(RuntimeError, match="wrote outside argument 3"):
        function("scale<double>")(
            (2,), (32,), (array(np.zeros(32)), np.float64(1), np.int64(n), array(np.zeros(32))))


@pytest.mark.parametrize("offset", [-1, 1, 100])
def test_reading_outside_an_array_gives_nan(offset):
    y = np.zeros(32)
    function("shift")(*WARP, (array(np.ones(32)), np.int32(offset), array(y)))
    assert np.isnan(y).sum() == min(abs(offset), 32)


def test_compiler_error_is_shown():
    module = RawModule(code="__global__ void k() { __syncthreads(); }", options=("--std=c++17",),
                       name_expressions=("k",))
    with pytest.raises(RuntimeError, match="__syncthreads"):
        module.get_function("k")


def test_names_need_a_standard_and_must_be_listed():
    with pytest.raises(ValueError, match="need an option --std"):
        RawModule(code=CODE, name_expressions=NAMES)
    with pytest.raises(ValueError, match="'exchange<float>' is not among the name expressions"):
        function("exchange<float>")
