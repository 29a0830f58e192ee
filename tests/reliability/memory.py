"""The memory of a run of train.py and all of its processes."""

import re
import subprocess
from contextlib import suppress
from pathlib import Path
from shutil import copyfile

from npgpt.cli.bundle import bundled
from tests.commands.tiny import ENVIRONMENT, command

TEXT = bundled("data") / "tinyshakespeare.txt"
SHORT = ["--data=text.txt", "--max-iters=3", "--lr-decay-iters=3", "--warmup-iters=1",
         "--eval-interval=2", "--eval-iters=1", "--final-windows=2", "--device=cpu"]
LARGE = [
    ("modern", ["--config=modern"]),
    ("lecture", ["--config=lecture", "--batch-size=16"]),
    ("a Llama of the size of baby, recomputed",
     ["--config=baby", "--family=llama", "--batch-size=8", "--recompute"]),
    ("a GPT of 124M, a process that computes", ["--config=gpt2", "--grad-accum=1",
                                                "--batch-size=1", "--block-size=512"]),
    ("a GPT of 124M, two that compute", ["--config=gpt2", "--grad-accum=1", "--batch-size=4",
                                         "--block-size=256", "--workers=2"]),
]
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


def try_memory(table, cases):
    """The header within 15 % of the peak of all processes, and the last line within 10 %."""
    copyfile(TEXT, "text.txt")
    for name, words in cases:
        said, found = measured(*SHORT, *words)
        table.record(f"memory in the header and at the end: {name}", [
            f"{what} says {said[what] / 1e6:,.0f} MB, and it is {found / 1e6:,.0f} MB"
            for what, share in (("header", 0.15), ("end", 0.1))
            if abs(said[what] - found) > share * found], "")


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
