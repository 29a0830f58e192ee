"""Devices and their array modules: NumPy on a CPU, CuPy on a GPU.

A layer calls `array_module` on its arrays, so the same code runs on every device. Everything that
is specific to a device is in this file: selecting it, why it is not available, copying arrays to
and from it, and how much memory it has. Tests can register other devices.
"""

import importlib
import importlib.util
import math
import os
import platform
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from npgpt import host
from npgpt.errors import UserError


@dataclass(frozen=True)
class Device:
    """Where arrays live, and the module whose functions work on them."""

    name: str                                  # "cpu", "gpu"
    xp: ModuleType                             # numpy, cupy, or a module like them
    arrays: tuple[type, ...]                   # the types of xp's arrays
    to_host: Callable = np.asarray             # xp array -> numpy array; waits for the device
    synchronize: Callable = lambda: None       # waits until the device has finished
    memory: Callable = lambda: None            # -> free memory in bytes; None: unknown
    peak_memory: Callable = lambda: None       # -> peak memory so far in bytes; None: unknown
    memory_in_use: Callable = lambda: 0        # -> bytes that this process has now; 0: unknown
    address: Callable = lambda: None           # -> a GPU's PCI bus id
    cores: int = 1                             # CPU cores to compute on
    description: str = ""                      # shown to the user
    chunk: int = 2**24                         # elements of a flat array processed at a time
    tile: int = 2**26                          # scores of tiled attention processed at a time
    longest_plain: float = math.inf            # the longest context with plain attention by default
    splits_sums: bool = False                  # sums over rows are faster in two steps
    queues: bool = False                       # work is queued: reading a number waits for it
    fuses: bool = False                        # training uses the fused kernels by default
    dtypes: tuple[str, ...] = ("float32", "float64")      # supported precisions
    default_dtype: str = "float32"             # the default precision of training
    math_mode: Callable = nullcontext          # (dtype) -> context manager: the precision of
                                               # products of float32 matrices

    def to_device(self, x, dtype=None):
        """Host array, list or scalar -> array on this device."""
        return self.xp.asarray(x, dtype=dtype)

    def slices(self, start, stop):
        """Slices that cover range(start, stop). On a CPU each is small enough to stay in the cache
        during a chain of elementwise operations; on a GPU they limit the memory of such a chain's
        temporaries."""
        return slices(start, stop, self.chunk)


def slices(start, stop, length):
    """-> slices of at most this length, at least 1, that cover range(start, stop)."""
    length = max(length, 1)
    return [slice(at, min(at + length, stop)) for at in range(start, stop, length)]


def _cpu():
    cores = host.cores()
    return Device(
        "cpu", np, (np.ndarray, np.generic),      # a sum over all axes is an np.generic
        cores=cores,
        memory=host.free_memory,
        peak_memory=host.peak_memory,
        memory_in_use=host.memory_in_use,
        description=f"CPU, {cores} cores, {platform.machine()}, NumPy {np.__version__}",
        chunk=65_536,
        tile=131_072,
        longest_plain=511,
    )


TF32_CAPABILITY = 8      # compute capability of Ampere, the first GPUs with TF32 and bfloat16
DEFAULT_MATH, TF32_MATH = 0, 3                       # cuBLAS's math modes


_gpu_index = None                                    # of the GPU that `choose_gpu` has chosen


def choose_gpu(index):
    """Let this process use the GPU with this index, modulo the number of GPUs that it sees. Call it
    before the first use of a GPU; without it the current device of CUDA is used."""
    global _gpu_index
    _gpu_index = index


def _gpu():
    """The CUDA device of this process. Raises UserError if there is none.

    In TF32, products of float32 matrices round their inputs to 10 bits of mantissa and are several
    times as fast; sums stay in float32.
    """
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:               # a broken one may raise anything
        if importlib.util.find_spec("cupy") is None:
            raise UserError(
                "no GPU: CuPy is not installed; run: pip install \"npgpt[cuda12]\" (or [cuda13], "
                "to match the driver that nvidia-smi shows)"
            ) from error
        raise UserError(f"no GPU: CuPy is installed but cannot be imported: {error}") from error

    runtime = cupy.cuda.runtime
    driver = runtime.driverGetVersion()
    if driver == 0:
        raise UserError("no GPU: CuPy finds no NVIDIA driver; install one, or use `device` cpu")
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        needed = runtime.runtimeGetVersion()
        if driver // 1000 < needed // 1000:
            raise UserError(
                f"no GPU: the NVIDIA driver supports CUDA {driver // 1000} and CuPy needs CUDA "
                f"{needed // 1000}; update the driver" + (
                    ", or install \"npgpt[cuda12]\"" if driver // 1000 == 12 else "")
            ) from error
        count = 0
    if count == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        raise UserError(f"no GPU: the NVIDIA driver shows no device{hint}; use `device` cpu")

    @contextmanager
    def math_mode(dtype):
        try:
            cublas, handle = cupy.cuda.cublas, cupy.cuda.get_cublas_handle()
            before = cublas.getMathMode(handle)
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(f"cuBLAS does not work: {error}; install it with the extra [cuda12] "
                            "or [cuda13], and free some memory on the GPU") from error
        cublas.setMathMode(handle, TF32_MATH if dtype in ("tf32", "bfloat16") else DEFAULT_MATH)
        try:
            yield
        finally:
            cublas.setMathMode(handle, before)

    if _gpu_index is not None:
        runtime.setDevice(_gpu_index % count)
    current = runtime.getDevice()
    properties = runtime.getDeviceProperties(current)
    name = properties["name"].decode()
    dtypes = ["float32", "float64"]
    if properties["major"] >= TF32_CAPABILITY:
        dtypes.append("tf32")
        if importlib.util.find_spec("ml_dtypes"):          # without it CuPy has no bfloat16
            dtypes.append("bfloat16")
    pool = cupy.get_default_memory_pool()
    return Device(
        "gpu", cupy, (cupy.ndarray,),
        to_host=cupy.asnumpy,
        synchronize=lambda: cupy.cuda.get_current_stream().synchronize(),
        memory=lambda: runtime.memGetInfo()[0] + pool.free_bytes(),
        peak_memory=pool.total_bytes,    # the pool keeps freed memory until an allocation fails
        address=lambda: runtime.deviceGetPCIBusId(current),
        description=f"{name}, CUDA {driver // 1000}.{driver % 1000 // 10}, CuPy {cupy.__version__}",
        dtypes=tuple(dtypes),
        default_dtype="tf32" if "tf32" in dtypes else "float32",
        math_mode=math_mode,
        splits_sums=True,
        queues=True,
        fuses=True,
    )


_makers = {"cpu": _cpu, "gpu": _gpu}      # name -> function that returns it or raises UserError
_devices = {}                             # name -> device, once created
_modules = {}                             # type of array -> device


def register(device):
    """Register a device under its name and for its array types."""
    _makers[device.name] = lambda: device
    _devices[device.name] = device
    _modules.update(dict.fromkeys(device.arrays, device))


def get_device(name):
    """"cpu", "gpu", another registered name, or "auto" (the GPU if there is one, else the CPU)
    -> Device. Raises UserError that says why the device is not available."""
    if isinstance(name, Device):
        return name
    if name == "auto":
        try:
            return get_device("gpu")
        except UserError:
            return get_device("cpu")
    if name not in _makers:
        raise UserError(f"`device` must be one of auto, {', '.join(_makers)}, got {name!r}")
    if name not in _devices:
        register(_makers[name]())
    return _devices[name]


def problem_with_gpu():
    """Why there is no GPU although CuPy is installed, "no GPU: ...", or None."""
    if importlib.util.find_spec("cupy") is None:
        return None
    try:
        get_device("gpu")
    except UserError as error:
        return str(error)


def device_of(x):
    """The device of an array. Raises TypeError if x is not an array of a known module."""
    kind = type(x)
    if kind not in _modules:
        if kind.__module__.partition(".")[0] == "cupy":
            get_device("gpu")
        for base in kind.__mro__:
            if base in _modules:
                return _modules[base]
        raise TypeError(f"expected a NumPy or CuPy array, got {kind.__name__}")
    return _modules[kind]


def array_module(x):
    """The module of an array: numpy for a NumPy array, cupy for a CuPy array."""
    return device_of(x).xp


def to_host(x):
    """An array of any device -> NumPy array. Waits until the device has computed it."""
    return device_of(x).to_host(x)


register(_cpu())
