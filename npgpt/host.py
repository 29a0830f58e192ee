"""The machine that the program runs on: its cores, how busy they are, and its memory."""

import ctypes
import os
import sys
import time
from contextlib import suppress

try:
    import resource
except ImportError:                    # Windows
    resource = None

# OpenBLAS takes about this number of bytes for each thread with the first product, and ends the
# process if it cannot.
BLAS_BUFFER = 2**26
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3     # malloc.h's M_...
LARGEST = 32 * 2**20       # bytes: the largest MMAP_THRESHOLD that glibc accepts


def cores():
    """The number of CPU cores that this process may use. Containers often have a quota of CPU time
    that is less than all cores of the machine."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(found, round(int(quota) / int(period))))
    except (OSError, ValueError):                 # no such file, or "max"
        return found


class Load:
    """How busy other programs keep the machine."""

    def __init__(self):
        self.cores = os.cpu_count()          # of the whole machine, as in /proc/stat
        self._before = _seconds()

    def others(self):
        """-> the number of cores that other programs have kept busy since the last call. This
        includes what the host gives to other virtual machines instead (steal). None: unknown."""
        before, self._before = self._before, _seconds()
        if before is None or self._before is None:
            return None
        passed, busy, own = (now - then for then, now in zip(before, self._before))
        return max(0.0, (busy - own) / passed) if passed > 0 else None


def _seconds():
    """-> seconds by the clock, those that all cores have been busy, and those of them for this
    process; None: unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        ticks = os.sysconf("SC_CLK_TCK")
        return (time.monotonic(), (user + nice + system + irq + softirq + steal) / ticks,
                time.process_time())
    except (OSError, ValueError):
        return None


def free_memory():
    """-> bytes: free memory, or what this process may still take below its limit (`ulimit -v`) if
    that is less. None: unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return free
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        return max(0, min(free, limit - used - cores() * BLAS_BUFFER))
    except (OSError, KeyError, ValueError, AttributeError):      # AttributeError: no `resource`
        return None


def memory_in_use():
    """-> bytes: the memory of this process without pages of files, which the system reads again
    when it needs them. What processes share counts a part in each. 0: unknown."""
    try:
        found = _memory("smaps_rollup")
        return found["Pss_Anon"] + found["Pss_Shmem"]
    except (OSError, KeyError, ValueError):
        return 0


def peak_memory():
    """-> bytes: the most memory that this process has had, counted as by `memory_in_use`. Where
    that is unknown, with pages of files. None: unknown."""
    try:
        found = _memory("status")                 # of this program alone; ru_maxrss begins with
        passed = found["VmHWM"] - found["VmRSS"]  # what started it
        return passed + (memory_in_use() or found["VmRSS"])
    except (OSError, KeyError, ValueError):
        pass
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory(name):
    """A file in /proc/self -> name -> bytes, for the lines that give kilobytes."""
    with open(f"/proc/self/{name}", encoding="ascii") as file:
        lines = [line.split() for line in file]
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[2:] == ["kB"]}


def return_freed_memory():
    """Let malloc give freed memory back to the system, if the C library can."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):        # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory():
    """Let malloc keep freed memory for later use, in this process and those that it forks.
    -> whether the C library supports it."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):              # musl has no mallopt
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, 2**31 - 1)
                and mallopt(TOP_PAD, 2**26))
