"""The memory of a run of train.py and all of its processes."""

import re
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.commands.tiny import ENVIRONMENT, command

BYTES = {"MB": 10**6, "GB": 10**9}
SAID = {"header": r"memory +about ([\d.]+) ([MG]B)", "end": r"peak memory: ([\d.]+) ([MG]B)"}


def measured(*words):
    """The words after train.py -> {"header", "end"}: the bytes that the run says; and the peak of
    the anonymous and shared memory of all of its processes, in bytes."""
    most = 0
    with open("output", "w+", encoding="utf-8") as output:
        with subprocess.Popen(command(*words), env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                              stdout=output, stderr=subprocess.STDOUT) as running:
            while running.poll() is None:
                most = max(most, sum(map(memory, family(running.pid))))
        text = Path("output").read_text(encoding="utf-8")
    assert running.returncode == 0, text
    said = {name: re.search(pattern, text) for name, pattern in SAID.items()}
    return {name: float(found[1]) * BYTES[found[2]] for name, found in said.items()}, most


def family(pid):
    """A process and all that descend from it -> their ids."""
    found = [pid]
    with suppress(OSError):                    # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def memory(pid):
    """-> bytes of a process: anonymous and shared memory, of which processes that share it count
    a part each."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines
                          if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return 0
