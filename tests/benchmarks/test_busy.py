"""The benchmark of a busy neighbour measures what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from npgpt.parallel import can_fork

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(not can_fork(), reason="it needs Linux")
def test_quick_run_has_a_row_for_each_work_with_a_share_for_each_neighbour():
    done = subprocess.run([sys.executable, "-m", "benchmarks.busy", "--quick"], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode in (0, 1), done.stderr         # shares of a few steps are chance
    rows = re.findall(r"^\| ([^|]+) \| [\d,]+ \| [\d.]+ \|(.*) 55 % \|$", done.stdout, re.MULTILINE)
    assert [title for title, _ in rows] == [
        "training (a), two ranks", "training (a), one process", "generating with `laptop`"]
    assert all(len(re.findall(r" [\d,]+ \| \*\*\d+ %\*\* \|", shares)) == 2 for _, shares in rows)
