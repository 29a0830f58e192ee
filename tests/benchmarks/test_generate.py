"""The benchmark of generation: what it compares, and what it says about its bars."""

import subprocess
import sys

import pytest

from benchmarks.generate import _tokens_row, configuration
from npgpt.models.parameters import count


class Measured:
    """A Race that has been run: seconds of a token of each text."""

    def __init__(self, **seconds):
        self.seconds = seconds
        self.bytes = {"npgpt": 50e6, "transformers": 400e6}

    def median(self, name):
        return self.seconds[name]

    def ratio(self, name, other):
        ratio = self.seconds[name] / self.seconds[other]
        return ratio, ratio - 0.1, ratio + 0.1


def test_configurations_have_the_sizes_of_their_files():
    sizes = {name: count(configuration(name).architecture()) for name in ("laptop", "baby", "124M")}
    assert sizes == {"laptop": 809_856, "baby": 10_770_816, "124M": 124_439_808}


@pytest.mark.parametrize(("theirs", "verdict"), [(8e-3, "≥ 4.0"), (7.9e-3, "≥ 4.0, missed")])
def test_row_has_speeds_of_all_texts_and_says_whether_the_bar_is_missed(theirs, verdict):
    race = Measured(npgpt=2e-3, transformers=theirs, loop=4e-3, reading=5e-4)
    cells = _tokens_row("laptop", 16, race).strip("| ").split(" | ")
    assert cells == ["laptop", "16", "8,000", f"{16 / theirs:,.0f}", f"**{theirs / 2e-3:.2f}**",
                     f"{theirs / 2e-3 - 0.1:.2f} to {theirs / 2e-3 + 0.1:.2f}", verdict,
                     "4,000", "2.00", "2.00 ms", "0.50 ms", "25%", "50 MB", "400 MB"]


def test_quick_run_compares_the_smallest_model(transformers):
    done = subprocess.run([sys.executable, "-m", "benchmarks.generate", "--quick", "--busy"],
                          capture_output=True, text=True, check=True)
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| laptop")]
    assert [row[1] for row in rows] == ["1", "16"]
    assert all(len(row) == 14 for row in rows)
