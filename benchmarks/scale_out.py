"""How data parallelism scales: `python -m benchmarks.scale_out docs/scale_out.png`.

1. Training steps, and the sums and gathering that they contain, on 1, 2 and 4 local ranks.
2. With root on Linux, between 2 and 4 hosts (`benchmarks.namespaces`) on links of different
   bandwidth and latency. The cost model (`benchmarks.cost_model`) is fitted to them; without hosts,
   to 2 local ranks.
3. The check: what the fit predicts of whole training steps, on a link, numbers of hosts and models
   that it was not fitted on, beside what is measured.
4. From the model: step time and efficiency of GPT-2 124M and 1.5B on up to 1,024 ranks.

`--quick` measures local ranks only, and few of them. Every point is `mpiexec -n N python -m
benchmarks.scale_out --point JSON`; this needs the extra [mpi]. The points are measured in turn,
`--rounds` times, and medians count.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks import projection
from benchmarks.cost_model import Job, Point, collective_time, fit, step_time
from benchmarks.namespaces import THROTTLE, Hosts, missing
from benchmarks.works import WORKS, machine
from npgpt.errors import UserError

# name -> options of GPTConfig, and the rows of a rank's batch.
RECIPE, SMALL, MEDIUM = "nanoGPT's recipe", "3.2 M", "7.1 M"
MODELS = {RECIPE: (WORKS["a"][2], 12), SMALL: (WORKS["a"][2] | {"n_embd": 256}, 8),
          MEDIUM: (WORKS["a"][2] | {"n_embd": 384}, 8)}
MBIT = 1e6 / 8
LOCAL = (2.0**30, 0.0)                           # nominal bytes per second, and seconds
FITTED = [(150 * MBIT, 0.0), (75 * MBIT, 5e-3)]
CHECKED = (100 * MBIT, 2e-3)
SIZES = {1: [2**20, 2**22, 3 * 2**22], 16: [2**18, 2**22]}      # buckets -> bytes
CHECKS = {3: [SMALL, MEDIUM], 4: [SMALL, MEDIUM], 6: [MEDIUM]}       # hosts -> models
SLEEP = 0.8                                      # seconds, in place of computing
ASYNC = {"MPIR_CVAR_ASYNC_PROGRESS": "1"}        # MPICH's thread that drives what is in flight
PLAIN, DRIVEN = "plain", "with a progress thread"
BAR = 0.15
TIMEOUT = 300
CORES = len(os.sched_getaffinity(0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("picture", nargs="?", help="write a plot to this .png file")
    parser.add_argument("--quick", action="store_true", help="local ranks only, once")
    parser.add_argument("--rounds", type=int, default=3, help="of all points (%(default)s)")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        return run_point(**arguments.point)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))        # so that the hosts are removed
    try:
        return report(arguments)
    except UserError as error:
        return f"scale_out: {error}"


def report(arguments):
    """Measure, and print the tables."""
    lacking = "--quick" if arguments.quick else missing()
    load = os.getloadavg()[0]
    measured = Measured()
    for _ in range(1 if arguments.quick else arguments.rounds):
        if arguments.quick:
            measured.local([RECIPE], [1, 2], [SMALL])
        else:
            measured.local([RECIPE, MEDIUM], [1, 2, 4], [SMALL, MEDIUM])
        if not lacking:
            measured.hosts()
    print(f"{machine()}; load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    print_steps(measured)
    place = "local" if lacking else "hosts"
    print(f"\nFitted to: {place}" + (f" (no hosts: {lacking})" if lacking else ""))
    print_checks(measured, place, print_fit(measured, place))
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


class Measured:
    """What is measured, in lists, an element for each round."""

    def __init__(self):
        # place, ranks, link, buckets, bytes -> seconds of the reduce-scatter and the all-gather
        self.collectives = defaultdict(list)
        # place, link, model, ranks, how -> parameters, buckets, seconds, of them waiting
        self.steps = defaultdict(list)
        self.slept = {}                  # model -> seconds of sleep in place of computing

    def step(self, place, link, model, ranks, how):
        """-> the medians of a step: parameters, buckets, seconds, seconds of waiting."""
        found = zip(*self.steps[place, link, model, ranks, how])
        return [statistics.median(values) for values in found]

    def local(self, names, counts, checked):
        """A round of local ranks. Where they outnumber the cores, they sleep as long as one rank
        alone has computed in the first round."""
        for name in names:
            model, rows = MODELS[name]
            for ranks in counts:
                options = {"kind": "step", "model": model, "rows": rows}
                if ranks <= CORES:
                    hows = {"computing": {}}
                else:
                    now = self.step("local", LOCAL, name, 1, "computing")[2]
                    options["sleep"] = self.slept.setdefault(name, now)
                    hows = {"sleeping": {}, "sleeping, also when waiting": THROTTLE}
                for how, environment in hows.items():
                    self.steps["local", LOCAL, name, ranks, how].append(
                        point(None, ranks, environment, **options))
        for ranks in counts[1:]:
            self._between("local", None, ranks, LOCAL)
        for name in checked:
            for ranks in (1, 2):
                self._check("local", None, ranks, LOCAL, name)

    def hosts(self):
        """A round of hosts."""
        for ranks in (2, 4):
            for link in FITTED:
                with Hosts(ranks, *link) as hosts:
                    self._between("hosts", hosts, ranks, link)
        for ranks, names in CHECKS.items():
            with Hosts(ranks, *CHECKED) as hosts:
                for name in names:
                    self._check("hosts", hosts, ranks, CHECKED, name)
                if ranks == 4:
                    self._check("hosts", hosts, ranks, CHECKED, MEDIUM, DRIVEN, ASYNC)

    def _between(self, place, hosts, ranks, link):
        for buckets, sizes in SIZES.items():
            for size, *seconds in point(hosts, ranks, kind="collectives", sizes=sizes,
                                        parts=buckets):
                self.collectives[place, ranks, link, buckets, size].append(seconds)

    def _check(self, place, hosts, ranks, link, name, how=PLAIN, environment=None):
        self.steps[place, link, name, ranks, how].append(
            point(hosts, ranks, environment, kind="step", model=MODELS[name][0], sleep=SLEEP,
                  steps=3))


def point(hosts, ranks, environment=None, **options):
    """-> what run_point prints. hosts: None for local ranks."""
    words = [sys.executable, "-m", "benchmarks.scale_out", "--point", json.dumps(options)]
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not mpiexec:
        raise UserError('mpiexec is not installed; run: pip install "npgpt[mpi]"')
    command = hosts.command(mpiexec, words) if hosts else [mpiexec, "-n", str(ranks), *words]
    environment = os.environ | (hosts.environment if hosts else {}) | (environment or {})
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True,
                              timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UserError(f"{json.dumps(options)} took longer than {TIMEOUT} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or "no message").splitlines()
        raise UserError(f"{json.dumps(options)} failed: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(*titles):
    print("\n| " + " | ".join(titles) + " |\n|" + " --- |" * len(titles))


def print_steps(measured):
    """The training steps of local ranks, each with a batch of the same size."""
    table("model", "parameters", "local ranks", "", "a step", "of it communication", "efficiency")
    for place, link, name, ranks, how in list(measured.steps):
        if place == "local" and how not in (PLAIN, DRIVEN):
            n, _, seconds, waiting = measured.step(place, link, name, ranks, how)
            one = (measured.step(place, link, name, 1, "computing")[2] if how == "computing"
                   else measured.slept[name])
            print(f"| {name} | {n:,.0f} | {ranks} | {how} | {1000 * seconds:.1f} ms | "
                  f"{1000 * waiting:.1f} ms | {one / seconds:.0%} |")


def print_fit(measured, place):
    """Fit the model to the collectives of each place -> the Fit of this place. Those of more local
    ranks than cores are shown, but not fitted."""
    points, halves = defaultdict(list), {}
    for (where, *rest), seconds in measured.collectives.items():
        ranks, (bandwidth, latency), buckets, size = rest
        both = [statistics.median(values) for values in zip(*seconds)]
        p = Point(ranks, latency, bandwidth, size, buckets, statistics.mean(both))
        points[where].append(p)
        halves[where, p] = both
    fits = {where: fit([p for p in found if where == "hosts" or p.ranks <= CORES])
            for where, found in points.items()}
    table("where", "ranks", "links", "bytes", "buckets", "reduce-scatter", "all-gather", "mean",
          "fit", "difference")
    for (where, p), both in halves.items():
        predicted = collective_time(fits[where].network("", p.latency, p.bandwidth), p.ranks,
                                    p.bytes, p.buckets)
        times = " | ".join(f"{1000 * t:.1f} ms" for t in (*both, p.seconds, predicted))
        print(f"| {where} | {p.ranks} | {links(where, (p.bandwidth, p.latency))} | {p.bytes:,} | "
              f"{p.buckets} | {times} | {predicted / p.seconds - 1:+.0%} |")
    for where, found in fits.items():
        print(f"\nFit, {where}: a round takes {1e6 * found.base:.0f} µs + {found.trips:.1f} × the "
              f"latency; a message {1e6 * found.overhead:.1f} µs; bandwidth {found.share:.0%} of "
              + (f"{LOCAL[0] / 2**30:g} GiB/s." if where == "local" else "the nominal."))
    return fits[place]


def links(place, link):
    return "memory" if place == "local" else f"{link[0] / MBIT:.0f} Mbit/s, {1000 * link[1]:g} ms"


def print_checks(measured, place, found):
    """What the fit predicts of training steps, and what they took."""
    table("links", "model", "ranks", "", "predicted", "measured", "difference", f"≤ {BAR:.0%}",
          "of communication alone")
    for where, link, name, ranks, how in list(measured.steps):
        if where != place or ranks == 1 or how not in (PLAIN, DRIVEN):
            continue
        n, buckets, seconds, _ = measured.step(where, link, name, ranks, how)
        # One rank's step: it sleeps, and updates all parameters; here each updates its shard.
        update = measured.step("local", LOCAL, name, 1, PLAIN)[2] - SLEEP
        job = Job(4 * n, buckets, SLEEP + update / min(ranks, CORES), overlap=True)
        predicted = step_time(found.network("", link[1], link[0]), ranks, job)
        off = predicted / seconds - 1
        rest = (predicted - job.compute) / (seconds - job.compute) - 1
        within = "yes" if abs(off) <= BAR else "no"
        print(f"| {links(where, link)} | {name} | {ranks} | {how} | {predicted:.2f} s | "
              f"{seconds:.2f} s | {off:+.1%} | {within} | {rest:+.0%} |")


if __name__ == "__main__":
    raise SystemExit(main())
