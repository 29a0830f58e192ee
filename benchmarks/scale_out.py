"""How data parallelism scales to many machines: `python -m benchmarks.scale_out docs/scale_out.png`.

1. Training steps on 1, 2 and 4 local ranks.
2. With root on Linux: the sums of gradients and the gathering of parameters between 2 and 4 hosts
   (`benchmarks.namespaces`), on links of different bandwidth and latency, to which the cost model
   (`benchmarks.cost_model`) is fitted. Without root: between 2 local ranks.
3. The check: what the fit predicts of whole training steps, of other models on links and numbers of
   hosts that it was not fitted on, beside what is measured.
4. From the model: step time and efficiency of GPT-2 124M and 1.5B on up to 1,024 ranks.

`--quick` measures local ranks only, for half a minute. Every point is `mpiexec -n N python -m
benchmarks.scale_out --point JSON`; needs the extra [mpi]. All measuring is done --rounds times in
turn, and medians count.
"""

import argparse
import collections
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import cost_model, projection
from benchmarks.namespaces import Hosts, missing
from benchmarks.works import WORKS, machine
from npgpt.errors import UserError

# name -> options of GPTConfig, and the rows of a rank's batch.
MODELS = {
    "nanoGPT's recipe": (WORKS["a"][2], 12),
    "3.2 M": (WORKS["a"][2] | {"n_embd": 256}, 4),
    "7.1 M": (WORKS["a"][2] | {"n_embd": 384}, 4),
}
MBIT = 1e6 / 8
LINKS = [(200 * MBIT, 0.0), (100 * MBIT, 5e-3)]        # bytes per second, seconds; fitted
CHECK_LINK = (150 * MBIT, 2e-3)                        # not fitted
SIZES = {1: [2**20, 2**22, 2**24], 16: [2**18, 2**22]}      # buckets -> bytes; fitted
CHECKS = [("3.2 M", 3), ("3.2 M", 4), ("7.1 M", 3), ("7.1 M", 4), ("7.1 M", 6)]      # hosts
SLEEP = 0.8                                            # seconds, in place of computing
LOCAL = 2**30                                          # nominal bytes per second of local ranks
TIMEOUT = 300


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("picture", nargs="?", help="write a plot to this .png file")
    parser.add_argument("--quick", action="store_true", help="local ranks only")
    parser.add_argument("--rounds", type=int, default=3, help="of all points (%(default)s)")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        return run_point(**arguments.point)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))        # so that hosts are removed
    try:
        return report(arguments)
    except UserError as error:
        return f"scale_out: {error}"


def report(arguments):
    """Measure, and print the tables."""
    lacking = "not asked for" if arguments.quick else missing()
    rounds = 1 if arguments.quick else arguments.rounds
    print(machine() + f", load {os.getloadavg()[0]:.1f}\n", flush=True)
    local = collections.defaultdict(list)
    fitted, checks = collections.defaultdict(list), collections.defaultdict(list)
    for _ in range(rounds):
        measure_local(local, [1, 2] if arguments.quick else [1, 2, 4])
        if lacking:
            measure_between(fitted, checks, None, 2, (LOCAL, 0.0), ["3.2 M", "7.1 M"])
            continue
        for ranks in (2, 4):
            for link in LINKS:
                measure_between(fitted, checks, Hosts, ranks, link, [])
        for ranks in sorted({ranks for _, ranks in CHECKS}):
            names = [name for name, count in CHECKS if count == ranks]
            measure_between(fitted, checks, Hosts, ranks, CHECK_LINK, names)
    print_local(local)
    found = print_fit(fitted, "2 local ranks, no hosts: " + lacking if lacking else "hosts")
    print_checks(found, checks, local)
    projection.print_tables()
    if arguments.picture:
        projection.draw(arguments.picture)
    return 0


def run_point(kind, **options):
    """In every rank of a point: measure it; the first one prints it."""
    from benchmarks import ranks
    from npgpt.parallel import world

    found = {"collectives": ranks.collectives, "step": ranks.step}[kind](**options)
    if world().is_first:
        print(json.dumps(found))
    return 0


def point(hosts=None, ranks=1, environment=None, **options):
    """-> what run_point prints, in local ranks or once on each of the hosts."""
    words = [sys.executable, "-m", "benchmarks.scale_out", "--point", json.dumps(options)]
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not mpiexec:
        raise UserError('mpiexec is not installed; run: pip install "npgpt[mpi]"')
    command = (hosts.command(mpiexec, words) if hosts
               else [mpiexec, "-n", str(ranks), *words])
    environment = os.environ | (hosts.environment if hosts else environment or {})
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UserError(f"{json.dumps(options)} took longer than {TIMEOUT} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or "no message").splitlines()
        raise UserError(f"{json.dumps(options)} failed: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_local(local, counts):
    """Add to local: (model, ranks, how) -> measurements. Where ranks outnumber the cores they sleep
    as long as one rank alone computes."""
    cores = len(os.sched_getaffinity(0))
    for name in ("nanoGPT's recipe", "7.1 M"):
        model, rows = MODELS[name]
        for ranks in counts:
            options = {"kind": "step", "model": model, "rows": rows, "steps": 8}
            if ranks <= cores:
                local[name, ranks, "computing"].append(point(ranks=ranks, **options))
                continue
            sleep = statistics.median(m[2] for m in local[name, 1, "computing"])
            for how, extra in (("sleeping", {}), ("sleeping, also while waiting", THROTTLE)):
                local[name, ranks, how].append(
                    point(ranks=ranks, environment=extra, sleep=sleep, **options))
    for name in ("3.2 M", "7.1 M"):                  # one rank of the checks
        local[name, 1, "sleeping"].append(
            point(kind="step", model=MODELS[name][0], sleep=SLEEP, steps=3))


def measure_between(fitted, checks, make, ranks, link, names):
    """Add to fitted: what a Point is but its seconds -> seconds; to checks: (model, ranks, link,
    overlap) -> measurements. names: of the models to check; none: a link to fit."""
    raise NotImplementedError


if __name__ == "__main__":
    raise SystemExit(main())
