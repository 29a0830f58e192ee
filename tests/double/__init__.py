"""A double of CuPy: an array module that runs without a GPU and is as strict as one.

After `install`, `import cupy` imports it, and `--device gpu` runs on it.
"""

import sys
from contextlib import contextmanager
from dataclasses import replace

from npgpt import backend
from tests.double import cupy, nccl
from tests.double.array import HiddenWait, OutOfMemoryError, Work, no_waiting, waits

__all__ = ["HiddenWait", "OutOfMemoryError", "Work", "cupy", "install", "installed", "nccl",
           "no_waiting", "waits"]
MODULES = {"cupy": cupy, "cupy.cuda.nccl": nccl}


def install():
    """Let `import cupy` import the double -> function that undoes this."""
    registry = backend._makers, backend._devices, backend._modules
    saved = [dict(part) for part in registry]
    modules = {name: sys.modules.get(name) for name in MODULES}
    sys.modules.update(MODULES)
    backend._devices.pop("gpu", None)
    # The fused kernels need a compiler here.
    backend._makers["gpu"] = lambda: replace(backend._gpu(), fuses=False)

    def restore():
        for part, before in zip(registry, saved):
            part.clear()
            part.update(before)
        for name, module in modules.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
    return restore


@contextmanager
def installed():
    """Context manager -> the GPU's Device, on the double."""
    restore = install()
    try:
        yield backend.get_device("gpu")
    finally:
        restore()
