"""Memory that stays: the C library keeps what NumPy frees, instead of giving it back to the system.

A training step frees and takes the same large arrays again and again. glibc returns a large block
to the system at once, and the next array of that size has every one of its pages cleared and mapped
anew, which can cost as much as the arithmetic done on it.
"""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3     # malloc.h's M_...
LARGEST = 32 * 2**20       # bytes: the highest MMAP_THRESHOLD that glibc takes; above it, as before


def keep_freed_memory():
    """For the rest of this process, and of those it forks. -> whether the C library can do it."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):              # musl, which has none
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, 2**31 - 1)
                and mallopt(TOP_PAD, 2**26))
