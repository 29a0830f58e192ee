"""How much a busy neighbour costs: `python -m benchmarks.busy [WORK ...]`.

Training and generation, alone and beside other programs that keep a core busy each: one that runs
Python, and one that multiplies matrices in one thread. With two cores and three takers a fair share
is two thirds; the bar is 55 % of the quiet rate. Every run is a separate process, quiet and busy
runs alternate, and a share is the median over the rounds of the ratio within a round. `others` is
how many cores all other programs on the machine took meanwhile (the most of the quiet runs); where
that is not about 0, quiet was not quiet, and --wait lets each round begin when it is. The exit
status is 1 if a share is below the bar.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks.works import WORKS, Tokens, time_npgpt
from npgpt import GPTConfig
from npgpt.host import Load

BAR = 0.55
ROUNDS = 5
QUIET = 0.2          # cores that others may take of a quiet machine
NEIGHBOURS = {
    "Python": "while True: pass",
    "products": "import numpy as np; a = np.ones((512, 512), np.float32)\nwhile True: a @ a",
}
# name -> title, work of benchmarks.works, ranks, steps, steps of --quick
TRAINING = {
    "two": ("training (a), two ranks", "a", 2, 100, 4),
    "one": ("training (a), one process", "a", 1, 60, 4),
    "large": ("training (c), GPT-2 124M", "c", None, 4, 0),
}
SAMPLING = "sample", "generating with `laptop`", 1000, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = [*TRAINING, SAMPLING[0]]
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"{', '.join(known)} [all]")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--busy", type=int, default=1, help="neighbours of a kind [1]")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS",
                        help="before each round, wait at most this long for a quiet machine [0]")
    parser.add_argument("--quick", action="store_true", help="few steps, one round, no large work")
    parser.add_argument("--side", choices=TRAINING, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.works:
        if name not in known:
            parser.error(f"WORK must be one of {', '.join(known)}, got {name!r}")
    if arguments.side:
        return print(json.dumps(train(arguments.side, arguments.steps)))

    columns = "".join(f" beside {kind} | share |" for kind in NEIGHBOURS)
    print(f"{time.strftime('%Y-%m-%d')}, {len(os.sched_getaffinity(0))} cores, neighbours of a "
          f"kind: {arguments.busy}\n\n| work | quiet, tokens/s | others |{columns} bar |\n|"
          f"{' --- |' * (4 + 2 * len(NEIGHBOURS))}")
    reached = True
    for name in arguments.works or known:
        if arguments.quick and name in TRAINING and not TRAINING[name][4]:
            continue
        with prepared(name, arguments.quick) as command:
            reached &= row(name, command, arguments)
    return 0 if reached else 1


def row(name, command, arguments):
    """Measure a work and print its row of the table -> whether every share reaches the bar."""
    title = SAMPLING[1] if name == SAMPLING[0] else TRAINING[name][0]
    rates, others = {kind: [] for kind in (None, *NEIGHBOURS)}, []
    for _ in range(1 if arguments.quick else arguments.rounds):
        wait_for_quiet(arguments.wait)
        for kind, found in rates.items():
            rate, taken = measured(command, kind, arguments.busy)
            found.append(rate)
            if kind is None:
                others.append(taken)
    shares = {kind: statistics.median(b / q for b, q in zip(rates[kind], rates[None]))
              for kind in NEIGHBOURS}
    cells = "".join(f" {statistics.median(rates[kind]):,.0f} | **{100 * shares[kind]:.0f} %** |"
                    for kind in NEIGHBOURS)
    print(f"| {title} | {statistics.median(rates[None]):,.0f} | {max(others):.1f} |{cells} "
          f"{100 * BAR:.0f} % |", flush=True)
    return min(shares.values()) >= BAR


@contextmanager
def prepared(name, quick):
    """-> the command of a work, which prints its tokens/s."""
    if name in TRAINING:
        steps = TRAINING[name][4 if quick else 3]
        yield ["-m", "benchmarks.busy", "--side", name, "--steps", str(steps)]
        return
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        subprocess.run([sys.executable, "train.py", "--config=laptop", "--device=cpu",
                        "--max-iters=1", "--eval-iters=1", "--final-windows=1", "--out-dir", run],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield ["sample.py", "--device=cpu", "--seed=1", "--model", run,
               f"--max-new-tokens={SAMPLING[3 if quick else 2]}"]


def train(name, steps):
    """-> tokens/s of the trainer's own steps."""
    _, work, ranks, *_ = TRAINING[name]
    _, rows, options = WORKS[work]
    model = GPTConfig(**options)
    return rows * Tokens(model).block_size * steps / sum(time_npgpt(model, rows, steps, ranks))


def measured(command, kind, count):
    """Run a command beside neighbours of a kind -> tokens/s, cores that all others have taken."""
    load, began, before = Load(), time.monotonic(), _children()
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    neighbours = [subprocess.Popen([sys.executable, "-c", NEIGHBOURS[kind]], env=environment)
                  for _ in range(count if kind else 0)]
    try:
        done = subprocess.run([sys.executable, *command], check=True, capture_output=True,
                              text=True)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    others = (load.others() or 0) - (_children() - before) / (time.monotonic() - began)
    said = re.search(r"([\d,]+) tokens/s", done.stderr)
    rate = float(said[1].replace(",", "")) if said else float(done.stdout.splitlines()[-1])
    return rate, max(0.0, others)


def _children():
    """-> seconds of all cores that ended child processes have taken."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wait_for_quiet(seconds):
    """Wait, at most this long, until others take almost nothing."""
    until, load = time.monotonic() + seconds, Load()
    while time.monotonic() < until:
        time.sleep(0.5)
        if (load.others() or 0) < QUIET:
            return


if __name__ == "__main__":
    raise SystemExit(main())
