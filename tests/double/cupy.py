"""The double of the module `cupy`: the part that npgpt uses, with CuPy's rules (see array.py).

Other functions raise AttributeError, as if CuPy did not have them. `FUNCTIONS` lists the arguments
of CuPy's functions; tests/device/test_double.py compares the list with CuPy if it is installed.
"""

from types import SimpleNamespace

import numpy as np

from tests.double import array
from tests.double.array import OutOfMemoryError, check_arguments, ndarray, product, unwrap, wrap
from tests.double.raw_module import RawModule
from tests.double.stream import DEFAULT, Event, Stream

__version__ = "14.0.0"
__all__ = ["RawModule", "asarray", "asnumpy", "cuda", "empty", "matmul", "ndarray"]

UFUNC = ["out", "casting", "dtype"]
UFUNC_ARGUMENTS = ["x1", "x2", *UFUNC]
NUMBERS = ("arange", "full", "zeros", "ones", "eye", "split")      # accept numbers of the host
FUNCTIONS = {
    **dict.fromkeys(
        ("exp", "log", "sqrt", "square", "tanh", "sin", "cos", "maximum", "minimum", "isfinite",
         "add", "subtract", "multiply", "divide", "power", "negative", "absolute", "logical_and",
         "logical_or", "logical_not"), UFUNC),
    "sum": "a axis dtype out keepdims", "mean": "a axis dtype out keepdims",
    "max": "a axis out keepdims", "min": "a axis out keepdims",
    "argmax": "a axis dtype out keepdims",
    "copyto": "dst src casting where", "where": "condition x y",
    "zeros": "shape dtype order", "ones": "shape dtype order",
    "full": "shape fill_value dtype order",
    "zeros_like": "a dtype order", "ones_like": "a dtype order", "empty_like": "dtype order",
    "arange": "start stop step dtype", "eye": "N M k dtype order", "triu": "m k",
    "concatenate": "tup axis out dtype casting", "stack": "tup axis out dtype casting",
    "split": "ary indices_or_sections axis", "reshape": "a newshape order copy",
    "ascontiguousarray": "a dtype", "transpose": "a axes", "swapaxes": "a axis1 axis2",
    "broadcast_to": "array shape", "einsum": "optimize", "take_along_axis": "a indices axis",
    "cumsum": "a axis dtype out",
}


def _function(name, accepted):
    def function(*args, **kwargs):
        check_arguments(name, args, kwargs, UFUNC_ARGUMENTS if accepted == UFUNC else accepted)
        numbers = args[1:] if name == "split" else args
        if name in NUMBERS and any(isinstance(x, ndarray) for x in numbers):
            array.wait(f"a number for {name}")
        if name == "where" and len(args) == 1:
            array.wait("where that looks for places")
        host = {key: unwrap(value) for key, value in kwargs.items()}
        result = getattr(np, name)(*map(unwrap, args), **host)
        if "out" in kwargs:
            array.Work.operations += 1
            return kwargs["out"]
        return wrap(result)
    function.__name__ = name
    return function


for _name, _accepted in FUNCTIONS.items():
    globals()[_name] = _function(_name, _accepted if _accepted is UFUNC else _accepted.split())
for _name in ("float32", "float64", "complex64", "complex128", "int32", "int64", "uint8", "uint32",
              "uint64", "bool_", "inf", "pi", "newaxis", "dtype", "finfo"):
    globals()[_name] = getattr(np, _name)

matmul = product


def empty(shape, dtype=float, order="C"):
    """Uninitialised memory: not zeros, so that tests detect code that relies on zeros."""
    host = np.empty(shape, dtype, order)
    host.view(np.uint8).reshape(-1)[...] = 0xFF if host.size else 0      # NaN in a float
    return ndarray(host)


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    """Host or device -> device. An array on the device is returned itself."""
    if isinstance(a, ndarray):
        return a if dtype in (None, a.dtype) else a.astype(dtype)
    return ndarray(np.array(a, dtype=dtype, order=order))


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    """Device -> host."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


class _Pool:
    """The memory pool. The double returns memory to Python, so the pool is empty."""

    @staticmethod
    def total_bytes():
        return 5 * 10**8

    @staticmethod
    def free_bytes():
        return 0


def get_default_memory_pool():
    return _Pool


class _CUDARuntimeError(RuntimeError):
    pass


class GPUs:
    """The GPUs of the machine that this process sees, by their place in it."""

    visible = (0,)
    current = 0          # index in visible

    @classmethod
    def count(cls):
        return len(cls.visible)

    @classmethod
    def choose(cls, index):
        if index not in range(len(cls.visible)):
            raise _CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        cls.current = index

    @classmethod
    def address(cls, index):
        return f"0000:{cls.visible[index]:02X}:00.0"


class MathMode:
    """The current math mode of cuBLAS: 3 is TF32."""

    mode = 0

    @classmethod
    def set(cls, handle, mode):
        cls.mode = mode

    @classmethod
    def get(cls, handle):
        return cls.mode


cuda = SimpleNamespace(
    OutOfMemoryError=OutOfMemoryError,
    Stream=Stream,
    Event=Event,
    get_current_stream=lambda: DEFAULT,
    get_cublas_handle=lambda: 1,
    cublas=SimpleNamespace(setMathMode=MathMode.set, getMathMode=MathMode.get),
    runtime=SimpleNamespace(
        CUDARuntimeError=_CUDARuntimeError,
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
        getDeviceCount=GPUs.count,
        getDevice=lambda: GPUs.current,
        setDevice=GPUs.choose,
        deviceGetPCIBusId=GPUs.address,
        getDeviceProperties=lambda n: {"name": b"test double", "major": 9, "minor": 0},
        memGetInfo=lambda: (array.MEMORY, array.MEMORY),
    ),
)
