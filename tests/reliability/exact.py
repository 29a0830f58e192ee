"""Runs that stop and go on: at every step, or by a signal at a random moment. Each part is a
process of its own, and what is left equals what an uninterrupted run leaves, to the last bit:
`latest`, `best`, the moments and the metrics."""

import itertools
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.commands.tiny import ENVIRONMENT, TEXT, command
from tests.reliability.tiny_runs import copy, left

STEPS = 50
OPTIONS = ["--data=fox.txt", "--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=4",
           "--batch-size=3", "--grad-accum=2", "--dropout=0.2", "--eval-iters=1",
           "--eval-interval=7", "--log-interval=3", f"--max-iters={STEPS}", "--learning-rate=0.1"]
OPTIMIZERS = {"AdamW": ["--optimizer=adamw"], "Muon": ["--optimizer=muon"]}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def combinations():
    """-> (what it is called, the words of the run) for each."""
    for family, (name, words), workers in itertools.product(
            ("gpt", "llama"), OPTIMIZERS.items(), (1, 2)):
        if family == "gpt" or name == "Muon":
            yield (f"{family}, {name}, {workers} worker{'s' * (workers > 1)}",
                   [*OPTIONS, f"--family={family}", *words, f"--workers={workers}"])


def call(*words, stop=None):
    """-> the ended process. stop: the step that Ctrl-C ends."""
    start = command(*words) if stop is None else [
        sys.executable, "-m", "tests.reliability.stopping", str(stop), *words]
    return subprocess.run(start, env=ENVIRONMENT, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)


def ended(done, status=0):
    """-> what is wrong with how a process has ended, a list of texts."""
    if done.returncode == status and not done.stderr:
        return []
    return [f"status {done.returncode}: {done.stderr}"]


def different(folder, whole):
    """-> what a run has left that differs from what an uninterrupted one left."""
    found = left(folder)
    return [f"{name} differs" for name in whole if found[name] != whole[name]]


def try_resume(table, rng, tries, workers=2):
    """Stop at a step, go on: at `tries` of the steps for each combination."""
    Path("fox.txt").write_text(TEXT)
    for name, words in combinations():
        assert ended(call(*words, "--out-dir=whole", "--overwrite")) == []
        whole = left("whole")
        steps = sorted(rng.sample(range(1, STEPS), min(tries, STEPS - 1)))

        def attempt(step, name=name, words=words, whole=whole):
            folder = f"at-{step}"
            found = ended(call(*words, f"--out-dir={folder}", "--overwrite", stop=step), 130)
            if not Path(folder, f"checkpoint-{step}").exists() and "2 workers" not in name:
                found.append("it did not stop there")
            found += ended(call("--resume", f"--out-dir={folder}"))
            return found or different(folder, whole)

        with ThreadPoolExecutor(workers) as pool:
            for step, found in zip(steps, pool.map(attempt, steps)):
                table.record(f"stopped at a step and resumed: {name}", found, f"step {step}")


def try_signals(table, rng, tries):
    """A signal at a random moment of training, then on to the end."""
    Path("fox.txt").write_text(TEXT)
    for number, (name, words) in zip(range(tries), itertools.cycle(combinations())):
        kind = rng.choice(list(STATUS))
        if not Path(f"whole {name}").exists():
            began = time.monotonic()
            assert ended(call(*words, f"--out-dir=whole {name}")) == []
            seconds = time.monotonic() - began
        whole = left(f"whole {name}")
        copy(None)
        with subprocess.Popen(command(*words, "--out-dir=run"), env=ENVIRONMENT, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as running:
            assert running.stdout.readline(), running.stderr.read()
            time.sleep(rng.uniform(0, seconds / 2))
            running.send_signal(kind)
            out, errors = running.communicate()
        found, right = [], (0, STATUS[kind])
        if Path("run/latest").exists():
            done = call("--resume", "--out-dir=run")
            if "has finished its" in done.stderr and "to continue" not in out:
                right = (0, STATUS[kind], -kind)     # all was done, but the process had not ended
            else:
                found += ended(done)
        else:
            found += ended(call(*words, "--out-dir=run"))
        if running.returncode not in right or errors:
            found.append(f"status {running.returncode}: {errors}")
        table.record(f"{signal.Signals(kind).name} at a random moment: {name}",
                     found or different("run", whole), f"try {number}")
