"""The mutants of mutmut: other operators, constants and arguments. mutmut also records which tests
reach which function; `Reached` makes that available for other mutants."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.mutants.groups import ROOT

NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "venv", "out", "mutants", "__pycache__", ".*")
SETTINGS = """
[tool.mutmut]
source_paths = ["npgpt", "train.py", "sample.py"]
only_mutate = {paths}
also_copy = ["configs", "README.md", "CONTRIBUTING.md", "benchmarks", "docs", "examples", "data"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-m", "not yardstick", "-k", {chosen}]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = 2.0
timeout_constant = 3.0
"""


class Mutant(NamedTuple):
    """A mutant that was tried."""

    module: str
    function: str        # with its class
    survived: bool
    timed_out: bool      # counts as killed, but a busy machine may be the cause
    name: str            # mutmut's


class Reached:
    """The tests that reach a function, the fastest first."""

    def __init__(self, stats):
        self._duration = stats["duration_by_test"]
        self._tests = {plain(name): set(tests)
                       for name, tests in stats["tests_by_mangled_function_name"].items()}

    def tests(self, module, function):
        """All of the group if mutmut does not know the function, as if it is decorated."""
        found = self._tests.get(f"{module}.{function}", self._duration)
        return sorted(found, key=lambda test: self._duration.get(test, 0))


class Mutmut:
    """mutmut in a copy of the project, with the settings of a group."""

    def __init__(self, group, folder):
        self.group, self.folder = group, Path(folder)
        shutil.copytree(ROOT, self.folder, ignore=NOT_COPIED, dirs_exist_ok=True)
        path = self.folder / "pyproject.toml"
        chosen = f"not ({group.left_out})" if group.left_out else ""
        path.write_text(path.read_text(encoding="utf-8") + SETTINGS.format(
            paths=json.dumps(group.paths), tests=json.dumps(group.tests),
            chosen=json.dumps(chosen)), encoding="utf-8")

    def run(self, chosen, workers):
        """Try the mutants whose number has one of these endings -> list of Mutant. Raises
        SystemExit if mutmut fails, for example because a test fails without any mutant."""
        run = self._mutmut("run", "--max-children", str(workers), *patterns(chosen))
        found = re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$",
                           self._mutmut("results", "--all", "true").stdout, re.MULTILINE)
        if run.returncode or not found:
            raise SystemExit(f"mutmut failed:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
        return [self._mutant(name, result) for name, result in found if result != "not checked"]

    @property
    def reached(self):
        """-> Reached, after a run."""
        path = self.folder / "mutants" / "mutmut-stats.json"
        return Reached(json.loads(path.read_text(encoding="utf-8")))

    def shown(self, mutant):
        """-> the line as it is, and as the mutant has it, without indentation and comment."""
        shown = self._mutmut("show", mutant.name).stdout
        lines = re.findall(r"^[-+](?![-+]{2} )(.*)$", shown, re.MULTILINE)
        return _code(lines[0]), _code(lines[-1])

    def _mutmut(self, *words):
        return subprocess.run(
            [sys.executable, "-m", "mutmut", *words], cwd=self.folder, capture_output=True,
            text=True, env={**os.environ, "PYTHONPATH": str(self.folder)})

    def _mutant(self, name, result):
        whole = plain(name)
        module = next(m for m in self.group.modules if whole.startswith(m + "."))
        survived = result in ("survived", "no tests")          # else a test failed, or the process
        return Mutant(module, whole.removeprefix(module + "."), survived, result == "timeout", name)


def endings(share, rng):
    """A share of the mutants -> the last two digits of their numbers, a list of at least one. They
    are evenly spaced, because most functions have few mutants, with low numbers."""
    first, count = rng.randrange(100), max(1, round(100 * share))
    return [f"{(first + 100 * i // count) % 100:02}" for i in range(count)]


def patterns(chosen):
    """Endings -> the words for mutmut's command line that choose the mutants with them: none for
    all of them."""
    if not chosen:
        raise ValueError("without a pattern, mutmut tries all mutants")
    if len(chosen) == 100:
        return []
    below_10 = [f"*__mutmut_{ending[1]}" for ending in chosen if ending[0] == "0"]
    return below_10 + [f"*__mutmut_*{ending}" for ending in chosen]


def plain(name):
    """"npgpt.layers.linear.x_linear_forward__mutmut_7" -> "npgpt.layers.linear.linear_forward"."""
    name = re.sub(r"__mutmut_\d+$", "", name)
    return re.sub(r"\.xǁ(\w+)ǁ", r".\1.", re.sub(r"\.x_", ".", name))


def _code(line):
    return re.sub(r"\s+# .*$", "", line.strip())
