"""Try to lose what a user has: `python -m tests.reliability`. Linux only.

    python -m tests.reliability                a sample that the commit chooses, some minutes
    python -m tests.reliability --full         all of it, some hours
    python -m tests.reliability --full kills   one part whole
    python -m tests.reliability --seed 7       another sample

Prints a Markdown table: what was tried, how often, and how often something was wrong; and how long
each part took. Everything happens in a temporary directory; with TMPDIR in memory (/dev/shm) it is
faster.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from random import Random

from npgpt.training import evaluation
from tests.commit import number_of_commit
from tests.reliability import bad_input, calls, damage, disks, exact, kills, memory, syscalls
from tests.reliability.table import Table


@contextlib.contextmanager
def empty_directory():
    """Context manager: the working directory is a new one, and is removed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


def try_calls(table, rng, full):
    """Calls of the file system that fail or kill, by functions of Python."""
    calls.try_calls(table, rng, step=1 if full else 37)


def try_syscalls(table, rng, full):
    """The same, by system calls, with strace."""
    syscalls.try_syscalls(table, rng, tries=None if full else 8)


def try_kills(table, rng, full):
    """SIGKILL at random moments, and two runs at once."""
    for workers in (1, 2):
        with empty_directory():
            kills.try_kills(table, rng, 500 if full else 25, workers)
    with empty_directory():
        kills.try_pairs(table, 100 if full else 8)


def try_ranks(table, rng, full):
    """Signals to jobs of mpiexec; needs the extra mpi."""
    for number in kills.SIGNALS:
        with empty_directory():
            kills.try_ranks(table, rng, 50 if full else 1, number)


def try_resume(table, rng, full):
    """Stop at a step, go on in a new process."""
    exact.try_resume(table, rng, exact.STEPS if full else 3)


def try_signals(table, rng, full):
    """SIGINT, SIGTERM and SIGHUP at random moments."""
    exact.try_signals(table, rng, 100 if full else 18)


def try_damage(table, rng, full):
    """Flipped bits, cut files and random changes, in every format."""
    damage.try_damage(table, rng, share=1 if full else 0.002, count=100_000 if full else 4000)


def try_disks(table, rng, full):
    """Disks that fill up or turn read-only, and a directory that is removed; needs root."""
    disks.try_disks(table)


def try_memory(table, rng, full):
    """The memory that the header states against that of all processes, for large models."""
    memory.try_memory(table, memory.LARGE if full else memory.LARGE[:1])


def try_bad_input(table, rng, full):
    """Bad input to every command."""
    bad_input.try_bad_input(table)


PARTS = {"bad-input": try_bad_input, "calls": try_calls, "syscalls": try_syscalls,
         "kills": try_kills, "ranks": try_ranks, "resume": try_resume, "signals": try_signals,
         "damage": try_damage, "disks": try_disks, "memory": try_memory}


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__.partition("\n")[0], epilog="\n".join(
            f"{name:10} {part.__doc__}" for name, part in PARTS.items()))
    parser.add_argument("parts", nargs="*", metavar="PART", help="one of those below [all]")
    parser.add_argument("--full", action="store_true", help="all of it, and not a sample")
    parser.add_argument("--seed", type=int, default=None, help="of the sample [the commit's]")
    parser.add_argument("--without", action="append", default=[], metavar="PART",
                        help="leave out a part")
    given = parser.parse_args()
    unknown = {*given.parts, *given.without} - PARTS.keys()
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    seed = number_of_commit() if given.seed is None else given.seed
    table, evaluation.SAMPLE_TOKENS = Table(), 1
    names = [name for name in given.parts or PARTS if name not in given.without]
    with contextlib.suppress(KeyboardInterrupt):
        for name in names:
            began = time.monotonic()
            with empty_directory():
                PARTS[name](table, Random(seed), given.full)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(f"seed {seed}" if not given.full else "in full", end="\n\n")
    return int(table.show() > 0)


if __name__ == "__main__":
    raise SystemExit(main())
