"""Mutation testing: `python -m tests.mutants`, two processes, some minutes.

Every line of the layers, the blocks, the model and the optimiser is changed in turn, in two ways:
by mutmut, which changes operators, constants and arguments, and by the mathematical mutations of
`operators.py`. The tests must fail for each. A surviving mutant is either a gap in the tests or
equivalent to the code; equivalent mutants are listed in equivalent.toml with the reason.

Fails if an unlisted mutant survives, if a listed one does not, if the list exceeds 3 % of all
mutants, or if a public function has no mutants. Needs the extras `dev` and `mutants`.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"          # before NumPy is imported
os.environ["HYPOTHESIS_PROFILE"] = "mutants"      # few and fixed examples, no shrinking

import contextlib
import importlib
import io
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from npgpt import optim
from npgpt.layers import LAYERS
from tests.mutants.operators import install, mutants_of

MODULES = [
    *dict.fromkeys(layer.forward.__module__ for layer in LAYERS.values()),
    "npgpt.models.blocks", "npgpt.models.gpt",
    *(f"npgpt.optim.{path.stem}" for path in sorted(Path(optim.__file__).parent.glob("[a-z]*.py"))),
    "npgpt.parallel.norm",
]
TESTS = ["tests/test_gradients.py", "tests/layers", "tests/models", "tests/optim"]
LEFT_OUT = "not transformer and not coder_block and not is_alive"     # as in pyproject.toml
LIST = Path(__file__).with_name("equivalent.toml")
LARGEST_SHARE = 0.03
SECONDS = 120          # a mutant that runs longer counts as killed
WORKERS = 2


def main():
    began = time.monotonic()
    listed = {(e["function"], e["line"], e["mutant"]): e["reason"]
              for e in tomllib.loads(LIST.read_text(encoding="utf-8"))["equivalent"]}
    by_mutmut, survivors = run_mutmut()
    ours, more = run_operators()
    survivors |= more
    total = by_mutmut.total() + ours.total()

    problems = [f"survived, and is not listed:\n    {function}\n  - {line}\n  + {mutant}"
                for function, line, mutant in sorted(survivors - listed.keys())]
    problems += [f"listed as equivalent, and did not survive: {function}: {mutant}"
                 for function, _, mutant in sorted(listed.keys() - survivors)]
    if len(listed) > LARGEST_SHARE * total:
        problems.append(f"{len(listed)} listed of {total} exceed {LARGEST_SHARE:.0%}")
    public = {f"{name}_{way}" for name in LAYERS for way in ("forward", "backward")}
    public |= {f"{name}_{way}" for name in ("mlp", "self_attention", "block", "gpt")
               for way in ("forward", "backward")}
    problems += [f"{name} has no mutants"
                 for name in sorted(public - by_mutmut.keys() - ours.keys())]

    print("\n".join(problems))
    equivalent = len(survivors & listed.keys())
    print(f"{total} mutants ({by_mutmut.total()} by mutmut, {ours.total()} of mathematics): "
          f"{total - len(survivors)} killed, {equivalent} equivalent, "
          f"{len(survivors) - equivalent} survived; {time.monotonic() - began:.0f} s")
    return bool(problems)


def run_mutmut():
    """-> the number of mutants of each function, the survivors as (function, line, mutant)."""
    shutil.rmtree("mutants", ignore_errors=True)
    command = [sys.executable, "-m", "mutmut"]
    run = subprocess.run([*command, "run", "--max-children", str(WORKERS)], capture_output=True,
                         text=True)
    results = subprocess.run([*command, "results", "--all", "true"], capture_output=True, text=True)
    found = re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", results.stdout, re.MULTILINE)
    if run.returncode or not found:
        raise SystemExit(f"mutmut failed:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
    names = Counter(_plain(name).rpartition(".")[2] for name, _ in found)
    survivors = set()
    for name, result in found:
        if result not in ("killed", "timeout"):
            shown = subprocess.run([*command, "show", name], capture_output=True, text=True).stdout
            lines = re.findall(r"^[-+](?![-+]{2} )(.*)$", shown, re.MULTILINE)
            line, mutant = (_code(text) for text in (lines[0], lines[-1]))
            survivors.add((_plain(name), line, mutant))
    return names, survivors


def _plain(name):
    """"npgpt.layers.linear.x_linear_forward__mutmut_7" -> "npgpt.layers.linear.linear_forward"."""
    name = re.sub(r"__mutmut_\d+$", "", name)
    return re.sub(r"\.xǁ(\w+)ǁ", r".\1.", re.sub(r"\.x_", ".", name))


def _code(line):
    """A line of a diff without its indentation and its comment."""
    return re.sub(r"\s+# .*$", "", line.strip())


def run_operators():
    """-> the number of mutants of each function, the survivors as (function, line, mutant)."""
    if _tests():
        raise SystemExit("the tests fail without any mutant")
    mutants = []
    for name in MODULES:
        source = Path(importlib.import_module(name).__file__).read_text(encoding="utf-8")
        mutants += mutants_of(name, source)
    with multiprocessing.get_context("fork").Pool(WORKERS, maxtasksperchild=1) as pool:
        killed = pool.map(_is_killed, mutants, chunksize=1)
    survivors = {(f"{m.module}.{m.function}", m.line, m.changed)
                 for m, dead in zip(mutants, killed) if not dead}
    return Counter(m.function for m in mutants), survivors


def _is_killed(mutant):
    """In a separate process: install the mutant and check whether the tests fail."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(SECONDS)
    try:
        install(mutant, importlib.import_module(mutant.module))
        return bool(_tests())
    except BaseException:
        return True


def _give_up(number, frame):
    raise TimeoutError


def _tests():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main(["-x", "-p", "no:cacheprovider", "-m", "not yardstick",
                            "-k", LEFT_OUT, *TESTS])


if __name__ == "__main__":
    raise SystemExit(main())
