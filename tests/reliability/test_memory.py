"""What the header says of memory, and what the end says, against what all processes of a run have:
anonymous and shared memory, without pages of mapped files. `python -m tests.reliability` compares
larger models."""

import re
import subprocess
import sys

import pytest

from npgpt import host
from tests.commands.tiny import ENVIRONMENT, ROOT
from tests.reliability.memory import SHORT, measured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is measured on Linux")
TEXT = "the quick brown fox jumps over the lazy dog, as it has done for quite a long time\n"


@pytest.mark.parametrize(("megabytes", "words"), [
    (1, ["--config=laptop", "--workers=1"]),
    (1, ["--config=laptop", "--workers=2"]),
    (1, ["--config=laptop", "--workers=4"]),
    (30, ["--config=laptop", "--workers=2"]),
    (1, ["--config=modern", "--workers=1", "--recompute"]),
])
def test_memory_in_the_header_and_at_the_end_is_that_of_all_processes(megabytes, words, home):
    (home / "text.txt").write_text(TEXT * (megabytes * 10**6 // len(TEXT)))
    said, found = measured(*SHORT, *words)
    assert said["header"] == pytest.approx(found, rel=0.15)
    assert said["end"] == pytest.approx(found, rel=0.1)


def test_memory_of_ranks_is_that_of_each(home, mpiexec):
    (home / "text.txt").write_text(TEXT * 12_000)
    result = mpiexec("-n", "2", "python", ROOT / "train.py", *SHORT, "--config=lecture",
                     "--batch-size=2")
    assert result.returncode == 0, result.stderr
    header, most = (float(re.search(pattern, result.stdout)[1]) for pattern in (
        r"memory +about ([\d.]+) MB in each rank", r"at most ([\d.]+) MB in one rank"))
    assert header == pytest.approx(most, rel=0.15)


def test_memory_in_use_is_without_mapped_files_and_without_what_is_freed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(5 * 10**7))
    code = f"""
import mmap
import numpy as np
from npgpt.host import memory_in_use, peak_memory, return_freed_memory
return_freed_memory()
before = memory_in_use()
array = np.ones(10**7)
with open({str(path)!r}, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
assert sum(mapped[::4096]) == 0
print(memory_in_use() - before)
del array
print(memory_in_use() - before)
print(peak_memory() - before)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             env=ENVIRONMENT, check=True)
    held, after, peak = map(int, process.stdout.split())
    assert held == pytest.approx(8e7, rel=0.02) and abs(after) < 2e6
    assert peak == pytest.approx(8e7, rel=0.05)


def test_memory_without_files_of_the_system(monkeypatch):
    """As on macOS."""
    def missing(name):
        raise FileNotFoundError(name)

    monkeypatch.setattr(host, "_memory", missing)
    assert host.memory_in_use() == 0 and host.peak_memory() > 10**7
    monkeypatch.setattr(host, "resource", None)
    assert host.peak_memory() is None
