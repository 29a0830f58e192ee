"""Runs that are killed or started twice, and jobs of mpiexec, at random moments."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

from tests.commands.tiny import ENVIRONMENT, TEXT, command, metrics
from tests.parallel.launcher import mpiexec, ranks_of
from tests.parallel.test_processes import gone
from tests.reliability.tiny_runs import beginnings, copy, left, problems, resume, runs, start

LONG = 20                       # steps of a run that is killed at a random moment
PATIENCE = 30                   # seconds after which a job with a stopped rank has ended


@contextlib.contextmanager
def process(words):
    """A process that has written its first line -> it, and its children's ids."""
    with subprocess.Popen(command(*words), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as running:
        assert running.stdout.readline(), running.stderr.read()
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
        yield running, list(map(int, children.split()))


def try_kills(table, rng, tries, workers):
    """SIGKILL at a random moment between the first line of train.py and its end."""
    whole = beginnings(workers, LONG + 2)
    for number in range(tries):
        name, source, words = runs(LONG, workers)[number % 4]
        if number < 4:                           # how long it takes
            copy(source)
            with process(words) as (running, _):
                began = time.monotonic()
                running.communicate()
            seconds = time.monotonic() - began
        copy(source)
        with process(words) as (running, children):
            time.sleep(rng.uniform(0, seconds))
            running.kill()
            running.communicate()
        found = [] if gone(children) else ["a worker is alive"]
        found += problems("run", whole, had_a_run=bool(source))
        table.record(f"{name}, {workers} worker{'s' * (workers > 1)}: SIGKILL at a random moment",
                     found, f"try {number}")


def try_pairs(table, tries):
    """Two processes that start at the same time in one directory."""
    whole = beginnings(end=LONG + 2)
    for number in range(tries):
        name, source, words = runs(LONG)[number % 4]
        copy(source)
        pair = [subprocess.Popen(command(*words), env=ENVIRONMENT, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "ab"]
        errors = sorted((running.communicate()[1], running.returncode) for running in pair)
        one_after_another = "overwrit" in name and errors == [("", 0), ("", 0)]
        found = []
        if not one_after_another and ([status for _, status in errors] != [0, 2]
                                      or errors[0][0] or errors[1][0].count("\n") != 1):
            found.append(f"they ended with {errors}")
        found += problems("run", whole, had_a_run=True)
        table.record(f"{name}, started twice at the same time", found, f"try {number}")


# -> exit status of mpiexec; 0 if the job had just ended, 15 if SIGTERM came before it or after it.
SIGNALS = {signal.SIGKILL: {9}, signal.SIGSTOP: {3}, signal.SIGINT: {130},
           signal.SIGTERM: {143, 15}}


def try_ranks(table, rng, tries, number, n=2):
    """A signal at a random moment of a job of mpiexec: to one of its ranks if it kills or stops, to
    mpiexec otherwise. The next job of as many ranks ends with the bits of an uninterrupted one."""
    Path("fox.txt").write_text(TEXT)
    whole = _job(n, "whole")
    for attempt in range(tries):
        copy(None)
        words = start(steps=LONG, folder="run")
        words.remove("--workers=1")
        with subprocess.Popen(mpiexec(n, command(*words)), stdin=subprocess.DEVNULL, text=True,
                              env=ENVIRONMENT | {"NPGPT_RANK_TIMEOUT": "2"}, start_new_session=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            assert running.stdout.readline(), running.stderr.read()
            pids = ranks_of(running.pid)
            time.sleep(rng.uniform(0, whole.seconds))
            with contextlib.suppress(ProcessLookupError):
                if number in (signal.SIGKILL, signal.SIGSTOP):
                    os.kill(rng.choice(pids), number)
                else:
                    running.send_signal(number)
            errors = _rest(running, pids)
        found = [] if gone(pids) else ["a rank is alive"]
        if running.returncode not in SIGNALS[number] | {0}:
            found.append(f"status {running.returncode}: {errors}")
        lines = [line for line in errors.splitlines() if not line.startswith("[mpiexec")]
        if len(lines) > (number == signal.SIGSTOP) and number != signal.SIGKILL:
            found.append(f"more than one line: {errors}")
        saved = Path("run/latest").exists()
        after = _job(n, "run", *(["--resume"] if saved else ["--overwrite"]))
        found += [f"{name} differs from that of an uninterrupted job" for name in after.left
                  if after.left[name] != whole.left[name]]
        table.record(f"{n} ranks: {signal.Signals(number).name} at a random moment", found,
                     f"try {attempt}")


def _rest(running, pids):
    """Wait for a job to end -> its stderr. A rank that is stopped while it ends, when others have
    ended already, goes on."""
    try:
        return running.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        alive = [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"]
        if len(alive) == len(pids):
            raise
        for pid in alive:
            os.kill(pid, signal.SIGCONT)
        return running.communicate()[1]


def _job(n, folder, *words):
    """Run a job to its end -> the seconds of its training, and what it leaves."""
    given = resume(LONG, folder) if "--resume" in words else [
        word for word in start(steps=LONG, folder=folder) if word != "--workers=1"] + [*words]
    done = subprocess.run(mpiexec(n, command(*given)), env=ENVIRONMENT, capture_output=True,
                          text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 or "has finished" in done.stderr, done.stderr
    seconds = metrics(folder)[-1]["seconds"]
    return SimpleNamespace(seconds=seconds, left=left(folder))
