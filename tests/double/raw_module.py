"""CuPy's RawModule for the test double: an unchanged .cu file, compiled by g++ and run on the host,
lane by lane. host_cuda.h explains how.

It is stricter than CuPy, which passes any bytes. An argument must have the type that the kernel
declares; Python numbers (CuPy passes 8 bytes, whatever the kernel expects) and arrays that are not
contiguous are refused; an array that is written must not overlap another; and writing outside an
array is an error. Memory around an array that is read contains NaN, which shows in the result.
"""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("host_cuda.h")
GUARD = 4096             # bytes in front of each array, and behind it; more, if the array has more
GUARD_READ = 0xFF        # each of them, where the array is read: makes NaN
GUARD_WRITTEN = 0xFE     # another, so that a NaN which is read outside and written outside shows


class RawModule:
    """Kernels in CUDA C++. As in CuPy, they are compiled when the first function is requested."""

    def __init__(self, code=None, *, options=(), name_expressions=()):
        if name_expressions and not any("std=" in option for option in options):
            raise ValueError("name expressions need an option --std=c++17")
        self._text = code, tuple(options), tuple(name_expressions)

    def get_function(self, name):
        """One of the name expressions -> function of (grid, block, args), which returns nothing."""
        names = self._text[2]
        if name not in names:
            raise ValueError(f"{name!r} is not among the name expressions: {', '.join(names)}")
        library, at = _compile(*self._text), names.index(name)
        launch, signature = (getattr(library, f"{what}_{at}") for what in ("launch", "signature"))
        return _Function(name, launch, signature)


@functools.lru_cache
def _compile(code, options, names):
    """-> the shared library, with two functions for each name."""
    exports = "".join(f"""
        extern "C" const char* launch_{i}(unsigned grid, unsigned block, void** args)
        {{ return host::launch(&{name}, grid, block, args); }}
        extern "C" const char* signature_{i}() {{ return host::signature(&{name}); }}
        """ for i, name in enumerate(names))
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory, "kernels.so")
        done = subprocess.run(
            ["g++", *options, "-O1", "-ffp-contract=off", "-Wall", "-Wextra",
             "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)],
            input=f'#include "{HEADER}"\n#line 1 "kernels.cu"\n{code}\n{exports}',
            capture_output=True, text=True, check=False,
        )
        if done.returncode or done.stderr:
            raise RuntimeError(f"g++ cannot compile the kernels:\n{done.stderr}")
        return ctypes.PyDLL(str(library))      # keeps Python's lock: a launch is not reentrant


class _Function:
    def __init__(self, name, launch, signature):
        signature.restype = launch.restype = ctypes.c_char_p
        launch.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p]
        self._name, self._launch = name, launch
        self._parameters = signature().decode().rstrip(",").split(",")

    def __call__(self, grid, block, args):
        count = len(self._parameters)
        if len(args) != count:
            raise TypeError(f"{self._name} takes {count} arguments, not {len(args)}")
        if any(n != 1 for n in (*grid[1:], *block[1:])):
            raise ValueError("only the first dimension of grid and block is emulated")
        hosts = [self._checked(i, arg) for i, arg in enumerate(args)]
        self._refuse_overlaps(hosts)

        is_written = [p.startswith("out ") for p in self._parameters]
        values = [_Guarded(a, GUARD_WRITTEN if written else GUARD_READ)
                  if isinstance(a, np.ndarray) else np.asarray(a)
                  for a, written in zip(hosts, is_written)]
        parameters = (ctypes.c_void_p * count)(*(      # the address of each, as cuLaunchKernel
            ctypes.addressof(v.pointer) if isinstance(v, _Guarded) else v.ctypes.data
            for v in values))
        problem = self._launch(grid[0], block[0], parameters)
        if problem:
            raise RuntimeError(f"{self._name}: {problem.decode()}")
        for i, (host, value) in enumerate(zip(hosts, values)):
            if is_written[i]:
                if value.trespassed():
                    raise RuntimeError(f"{self._name} wrote outside argument {i}, {host.shape}")
                host[...] = value.inside

    def _checked(self, i, arg):
        """-> the NumPy array behind one of the double's, or the scalar itself."""
        way, _, dtype = self._parameters[i].rpartition(" ")
        where = f"{self._name}, argument {i} ({self._parameters[i]})"
        host = getattr(arg, "_host", arg)
        is_array = host is not arg
        if not is_array and not isinstance(arg, np.generic):
            raise TypeError(f"{where}: {type(arg).__name__} is no array of the device and no NumPy "
                            "scalar")
        if is_array != bool(way) or host.dtype.name != dtype:
            given = "array" if is_array else "scalar"
            raise TypeError(f"{where}: given a {host.dtype.name} {given}")
        if is_array and not host.flags.c_contiguous:
            raise ValueError(f"{where}: the array is not contiguous")
        return host

    def _refuse_overlaps(self, hosts):
        arrays = [(i, a) for i, a in enumerate(hosts) if isinstance(a, np.ndarray)]
        for i, a in arrays:
            for j, b in arrays:
                if i != j and self._parameters[i].startswith("out ") and np.shares_memory(a, b):
                    raise ValueError(f"{self._name}: argument {i} is written and overlaps {j}")


class _Guarded:
    """A copy of an array, with guard bytes around it."""

    def __init__(self, host, byte):
        guard = max(GUARD, -(-host.nbytes // 64) * 64)       # keeps the alignment
        self._bytes = np.full(guard + host.nbytes + guard, byte, np.uint8)
        self._byte = byte
        self._edges = self._bytes[:guard], self._bytes[guard + host.nbytes:]
        self.inside = self._bytes[guard:guard + host.nbytes].view(host.dtype).reshape(host.shape)
        self.inside[...] = host
        self.pointer = ctypes.c_void_p(self.inside.ctypes.data)

    def trespassed(self):
        return any((edge != self._byte).any() for edge in self._edges)
