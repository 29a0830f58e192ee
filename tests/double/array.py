"""An array with CuPy's rules that computes with NumPy, to test code for both modules without a GPU.

CuPy never copies an array implicitly, so an operation with an array of the host raises. Operations
that need a number on the host (`float(x)`, `if x`, a boolean mask) wait for the device; the double
counts these waits, and forbids them inside `no_waiting`. It is stricter than CuPy where a GPU's
result could differ: it refuses NumPy's functions, and lists and arrays of the host as an index.
"""

import operator
from contextlib import contextmanager

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MEMORY = 10**10        # the memory of the double in bytes


class OutOfMemoryError(MemoryError):
    """An allocation exceeds the memory of the device."""


class HiddenWait(AssertionError):
    """Code waited for the device inside `no_waiting`."""


class _Waits:
    """How often the host has waited for the device, and whether this is allowed."""

    count = 0
    forbidden = False


class Work:
    """The work of the device so far, which is the same on every machine."""

    operations = 0      # on arrays
    assignments = 0     # x[...] = y
    bytes = 0           # of new memory that their results took


def wait(reason):
    """Called whenever CuPy would wait for the device."""
    if _Waits.forbidden:
        raise HiddenWait(f"{reason} waits for the device")
    _Waits.count += 1


def waits():
    """The number of waits so far."""
    return _Waits.count


@contextmanager
def no_waiting():
    """Context manager: waiting for the device raises HiddenWait."""
    before, _Waits.forbidden = _Waits.forbidden, True
    try:
        yield
    finally:
        _Waits.forbidden = before


def unwrap(x):
    """An argument for NumPy. Raises TypeError for a type that CuPy does not accept."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(unwrap(part) for part in x)
    return x


def wrap(result):
    """NumPy's result, as CuPy would return it: a sum over all axes is an array too."""
    if isinstance(result, (np.ndarray, np.generic)):
        result = np.asarray(result)
        Work.operations += 1
        Work.bytes += result.nbytes if result.base is None else 0
        return ndarray(result)
    if isinstance(result, (list, tuple)):
        return type(result)(wrap(part) for part in result)
    return result


addressed = {}         # address, number of elements -> an array of which code has the address


class Pointer:
    """The address of an array."""

    def __init__(self, host):
        self.ptr = host.ctypes.data
        addressed[self.ptr, host.size] = host


class ndarray:
    """An array on the device. Only the functions of tests.double.cupy create it."""

    __hash__ = None

    def __init__(self, host):
        if host.base is None and host.nbytes > MEMORY:
            raise OutOfMemoryError(
                f"Out of memory allocating {host.nbytes:,} bytes (allocated so far: 0 bytes).")
        self._host = host

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. "
                        "Please use `.get()` to construct a NumPy array explicitly.")

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        raise TypeError(f"numpy.{ufunc.__name__} of an array of the device, or a mixture of the "
                        "device's arrays and the host's")

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} of an array of the device")

    def __getitem__(self, index):
        return ndarray(self._host[self._index(index)])

    def __setitem__(self, index, value):
        if isinstance(value, (list, tuple)):
            raise TypeError(f"Unsupported type {type(value)}")
        Work.assignments += 1
        self._host[self._index(index)] = unwrap(value)

    def _index(self, index):
        """An index for NumPy that gives a view where CuPy does; out-of-range integers wrap."""
        parts = list(index) if isinstance(index, tuple) else [index]
        named = sum(part is not None and part is not Ellipsis for part in parts)
        axis = 0
        for i, part in enumerate(parts):
            if isinstance(part, (list, np.ndarray)):
                raise TypeError(f"Unsupported type {type(part)} as an index")
            if isinstance(part, ndarray) and part.dtype == bool:
                wait("a boolean mask as an index")
                parts[i] = part._host
            elif isinstance(part, ndarray):
                parts[i] = part._host.astype(np.int64) % self.shape[axis]
            axis += self.ndim - named if part is Ellipsis else part is not None
        return (*parts, ...) if all(part is not Ellipsis for part in parts) else tuple(parts)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        wait("printing")
        return repr(self._host)

    def get(self):
        """-> a copy on the host."""
        wait("get")
        return self._host.copy()

    def item(self):
        wait("item")
        return self._host.item()

    def tolist(self):
        wait("tolist")
        return self._host.tolist()

    @property
    def data(self):
        return Pointer(self._host)

    @property
    def T(self):
        return ndarray(self._host.T)

    @property
    def real(self):
        return ndarray(self._host.real)

    @property
    def imag(self):
        return ndarray(self._host.imag)


def product(a, b):
    """a @ b. bfloat16 is summed in float32, and stacks of it are refused, as in CuPy 14."""
    a, b = unwrap(a), unwrap(b)
    if BFLOAT16 in (a.dtype, b.dtype):
        if a.ndim > 2 or b.ndim > 2:
            raise TypeError("products of stacks of bfloat16 are not supported")
        return wrap((a.astype(np.float32) @ b.astype(np.float32)).astype(BFLOAT16))
    return wrap(a @ b)


def _operator(name):
    def method(self, *other):
        if any(isinstance(x, (list, tuple)) for x in other):
            raise TypeError(f"Unsupported type {type(other[0])}")
        result = getattr(self._host, name)(*map(unwrap, other))
        if result is self._host:           # done in place
            Work.operations += 1
            return self
        return wrap(result)
    return method


def _number(name, convert):
    def method(self):
        wait(name)
        return convert(self._host)
    return method


def _method(name, accepted):
    """A method of NumPy's arrays, restricted to CuPy's arguments."""
    def method(self, *args, **kwargs):
        check_arguments(name, args, kwargs, accepted)
        kwargs = {key: unwrap(value) for key, value in kwargs.items()}
        return wrap(getattr(self._host, name)(*map(unwrap, args), **kwargs))
    return method


def check_arguments(name, args, kwargs, accepted):
    """Raise TypeError for arguments that CuPy's function does not have."""
    for key in kwargs:
        if key not in accepted:
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
    if accepted and len(args) > len(accepted) and name not in VARIADIC:
        raise TypeError(f"{name}() takes at most {len(accepted)} arguments")


VARIADIC = ("reshape", "transpose", "einsum")      # take any number of arguments
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and",
             "or", "xor")
METHODS = {
    "sum": "axis dtype out keepdims", "mean": "axis dtype out keepdims",
    "max": "axis out keepdims", "min": "axis out keepdims",
    "argmax": "axis out dtype keepdims", "all": "axis out keepdims", "any": "axis out keepdims",
    "astype": "dtype order casting subok copy", "reshape": "order copy", "copy": "order",
    "swapaxes": "", "transpose": "", "ravel": "order", "squeeze": "axis", "fill": "",
    "argsort": "axis kind", "dot": "", "conj": "",
}
ndarray.__matmul__ = product
for _name in (
    *(prefix + name for name in OPERATORS for prefix in ("", "r", "i")),
    *("lt", "le", "eq", "ne", "gt", "ge", "neg", "pos", "abs", "invert"),
):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _convert in (float, int, bool, complex, operator.index):
    _name = _convert.__name__
    setattr(ndarray, f"__{_name}__", _number(_name, _convert))
for _name, _accepted in METHODS.items():
    setattr(ndarray, _name, _method(_name, _accepted.split()))
for _name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags"):
    setattr(ndarray, _name, property(lambda self, name=_name: getattr(self._host, name)))
