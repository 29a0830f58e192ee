"""Mutation testing: `python -m tests.mutants`, two processes, up to 20 minutes.

Lines of the modules in `groups.py` are changed, one at a time, in two ways: by mutmut, which
changes operators, constants and arguments, and by the mutations of `operators.py`. The tests must
fail for each. A surviving mutant is either a gap in the tests or equivalent to the code; equivalent
mutants are listed in equivalent.toml with the reason. A change of a string with a space is a change
of wording; if it survives, it is not counted.

    python -m tests.mutants                    GPT's mathematics whole, a share of the rest
    python -m tests.mutants --full             everything, an hour and more
    python -m tests.mutants --full gradcheck   one group whole
    python -m tests.mutants --seed 7           another share; by default the commit chooses

Fails if an unlisted mutant survives, if a listed one that was tried does not, if the list exceeds
3 % of all mutants tried, or if a public function of the mathematics has no mutants. Needs the
extras `dev` and `mutants`.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"          # before NumPy is imported
os.environ["HYPOTHESIS_PROFILE"] = "mutants"      # few and fixed examples, no shrinking

import argparse
import random
import re
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from npgpt.layers import LAYERS
from tests.commit import number_of_commit
from tests.mutants.by_mutmut import Mutmut, endings
from tests.mutants.by_operators import all_mutants, try_mutants
from tests.mutants.groups import GROUPS

LIST = Path(__file__).with_name("equivalent.toml")
LARGEST_SHARE = 0.03
PROBLEM = "{}:\n    {}\n  - {}\n  + {}"
WORKERS = 2
LLAMA = "rmsnorm", "rope", "swiglu", "gated_mlp", "grouped_attention", "llama_block", "llama"
MEMORY = "tiled_attention", "linear_cross_entropy"
ADAPTERS = ("lora",)
PUBLIC = {f"{name}_{way}" for name in (*LAYERS, "mlp", "self_attention", "block", "gpt")
          for way in ("forward", "backward") if name not in (*LLAMA, *MEMORY, *ADAPTERS)}


def main():
    parser = argparse.ArgumentParser(description="Break the code and see the tests fail.")
    parser.add_argument("groups", nargs="*", metavar="GROUP",
                        help=f"of {', '.join(group.name for group in GROUPS)} [all]")
    parser.add_argument("--full", action="store_true", help="try every mutant")
    parser.add_argument("--seed", type=int, default=None, help="which mutants to try")
    c = parser.parse_args()
    unknown = set(c.groups) - {group.name for group in GROUPS}
    if unknown:
        parser.error(f"there is no group {', '.join(sorted(unknown))}")
    seed = number_of_commit() if c.seed is None else c.seed
    listed = {(e["function"], e["line"], e["mutant"])
              for e in tomllib.loads(LIST.read_text(encoding="utf-8"))["equivalent"]}

    results = []
    for group in GROUPS:
        if not c.groups or group.name in c.groups:
            results.append(Result(group, 1.0 if c.full else group.share, seed, listed))
            print(results[-1].table(), flush=True)
    problems = [problem for result in results for problem in result.problems]
    tried = sum(sum(result.tried.values()) for result in results)
    equivalent = sum(sum(result.equivalent.values()) for result in results)
    if equivalent > LARGEST_SHARE * tried:
        problems.append(f"{equivalent} equivalents of {tried} exceed {LARGEST_SHARE:.0%}")
    print("\n".join(problems))
    survived = sum(sum(result.survived.values()) for result in results)
    print(f"{tried} mutants, seed {seed}: {tried - equivalent - survived} killed, "
          f"{equivalent} equivalent, {survived} survived")
    return bool(problems)


def is_wording(line, mutant):
    """Whether two lines differ only in what a string with a space says."""
    line, mutant = (re.sub(r'"[^"]* [^"]*"', "...", text) for text in (line, mutant))
    return line == mutant


class Result:
    """The mutants of a group that were tried: counts for each module, and what is wrong."""

    def __init__(self, group, share, seed, listed):
        began = time.monotonic()
        self.group, self.share = group, share
        self.tried, self.equivalent, self.survived = Counter(), Counter(), Counter()
        self.problems = []
        functions = self._try_both(random.Random(seed), listed)
        if group.name == "mathematics":
            self.problems += [f"{name} has no mutants" for name in sorted(PUBLIC - functions)]
        self.seconds = time.monotonic() - began

    def table(self):
        """One line for each module."""
        lines = [f"{self.group.name}: {self.share:.0%} of the mutants, {self.seconds:.0f} s"]
        for module in self.group.modules:
            tried, equal, alive = (c[module] for c in (self.tried, self.equivalent, self.survived))
            lines.append(f"| {module} | {tried} | {tried - equal - alive} | {equal} | {alive} |")
        return "\n".join(lines)

    def _try_both(self, rng, listed):
        """-> the names of the functions that have mutants."""
        with tempfile.TemporaryDirectory() as folder:
            mutmut = Mutmut(self.group, folder)
            by_mutmut = mutmut.run(endings(self.share, rng), WORKERS)
            has_listed = {function for function, _, _ in listed}

            def key_of(m):                   # takes a second, and matters for few
                function = f"{m.module}.{m.function}"
                if m.survived or function in has_listed:
                    return function, *mutmut.shown(m)

            with ThreadPoolExecutor(WORKERS) as pool:
                for m, key in zip(by_mutmut, pool.map(key_of, by_mutmut)):
                    if key not in listed or not m.timed_out:
                        self._count(m.module, key, m.survived, listed)
            reached = mutmut.reached
        ours = all_mutants(self.group)
        ours = rng.sample(ours, round(self.share * len(ours)))
        for m, survived in zip(ours, try_mutants(ours, reached, WORKERS)):
            key = f"{m.module}.{m.function}", m.line, m.changed
            self._count(m.module, key, survived, listed)
        return {m.function for m in (*by_mutmut, *ours)}

    def _count(self, module, key, survived, listed):
        if survived and is_wording(*key[1:]):
            return
        self.tried[module] += 1
        if survived and key in listed:
            self.equivalent[module] += 1
        elif survived:
            self.survived[module] += 1
            self.problems.append(PROBLEM.format("survived, and is not listed", *key))
        elif key in listed:
            self.problems.append(PROBLEM.format("listed as equivalent, and killed", *key))


if __name__ == "__main__":
    raise SystemExit(main())
