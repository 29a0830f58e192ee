"""Trials: runs of train.py, each a process, several at a time, in a directory that can go on.

A trial is judged by its final weights over the whole validation split of its text, at its end. Ten
times in a run it saves a checkpoint; the evaluation at that time is of one batch, and nothing
follows from it. A finished trial is read from its metrics, one with a checkpoint is resumed, and
any other begins again.
"""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from npgpt.checkpoints.contents import METRICS, RunContents
from npgpt.cli.bundle import bundled
from npgpt.cli.command import ended_by_signals
from npgpt.durable import check_target, temporary, write_text
from npgpt.errors import RunError, UserError, flag
from npgpt.reading import read_bytes, read_json
from npgpt.text.load import load_text
from npgpt.training.request import read_command_line

CHECKPOINTS = 10            # in a trial
SETTINGS = "settings.json"  # what all trials in a directory have in common
SET = ("data", "data_cache", "out_dir", "eval_interval", "eval_iters", "final_windows",
       "log_interval", "device", "workers")      # not up to the user
ONE_CORE = {"OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Trial:
    """A run of train.py. name: of its directory, readable. options: name -> value, for the command
    line, without those that say where it reads and writes."""

    name: str
    directory: Path
    data: str
    config: str
    options: dict

    def result(self):
        """-> the last line of the metrics of a finished trial, None of another."""
        path = self.directory / METRICS
        lines = read_bytes(path, None).splitlines() if path.exists() else []
        with suppress(ValueError, IndexError):           # a crash left it incomplete, or empty
            last = json.loads(lines[-1])
            return last if "whole_val_loss" in last else None

    def command(self):
        """-> the command that trains it, or continues it if it has a checkpoint."""
        where = [sys.executable, str(bundled("train.py")), "--out-dir", str(self.directory),
                 "--data", self.data]
        if RunContents(self.directory).holds_a_run():
            return [*where, "--resume"]
        return [*where, "--overwrite", "--config", self.config, *flags(self.options)]


def loss_of(result):
    """The last line of metrics, or None of a trial that diverged -> its loss; infinite if it
    diverged."""
    loss = result["whole_val_loss"] if result else None
    return math.inf if loss is None else loss


def shown(loss):
    return "diverged" if math.isinf(loss) else f"{loss:.4f}"


def flags(options):
    """name -> value, as words of a command line."""
    return [flag(name) if value is True else flag(f"no_{name}") if value is False else
            f"{flag(name)}={value}" for name, value in options.items()]


def request(config, options):
    """-> the Request of train.py, whose values are valid together. Raises UserError."""
    found = read_command_line(["--config", config, *flags(options)], lambda *_: config)
    found.training()
    found.model(vocab_size=256)
    return found


def options_of_trial(config, steps=None, more=None):
    """-> the options of all trials of a configuration. steps: None: those of the configuration.
    more: further options."""
    options = dict(more or {})
    if steps is not None:
        options |= {"max_iters": steps, "lr_decay_iters": steps}
        warmup = request(config, {}).values.get("warmup_iters")
        if warmup is not None:
            options["warmup_iters"] = min(warmup, steps)
    length = request(config, options).training().max_iters
    return options | {"final_windows": 0, "eval_iters": 1,
                      "eval_interval": max(1, length // CHECKPOINTS)}


def load_whole_text(name):
    """The value of `data` -> Text. Raises UserError."""
    if name and (Path(name).is_dir() or Path(name).suffix == ".gz"):
        raise UserError(f"`data` takes a text here, got {name}")
    return load_text(name)


def begin(directory, settings):
    """Make the directory, or see that it was begun with the same settings. settings: what has a
    value -> the value, for JSON. Raises UserError before anything is written."""
    path, settings = directory / SETTINGS, json.loads(json.dumps(settings))
    before = {}
    if path.exists():
        before = read_json(path)
    else:
        check_target(directory, {temporary(path).name})      # a killed process leaves that
    for name in before.keys() & settings.keys():
        if before[name] != settings[name]:
            raise UserError(f"the {name} has changed since {directory} was begun"
                            f"{_change(before[name], settings[name])}; choose another `out_dir`, "
                            "or remove it")
    directory.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(before | settings, indent=2) + "\n")


def _change(before, now):
    """-> " (muon_lr was 0.1, and is 0.2)", of the first value that differs; "" of a text."""
    if not isinstance(before, dict):
        return ""
    name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
    return f" ({name} was {before.get(name)}, and is {now.get(name)})"


def run(trials, at_once, ended, environment=None):
    """Train what is not finished, several at a time. ended(trial, result): called when one has
    ended; result: as `Trial.result`, None if it diverged. Raises UserError for a trial that
    train.py refuses, and RunError for one that fails in another way than by diverging. The others
    are then stopped, as they are by Ctrl-C."""
    waiting = []
    for trial in trials:
        if trial.result():
            ended(trial, trial.result())
        else:
            waiting.append(trial)
    running = {}                                          # process -> its trial
    with ended_by_signals():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    trial = waiting.pop(0)
                    running[_start(trial, environment or {})] = trial
                time.sleep(0.02)
                for process in [process for process in running if process.poll() is not None]:
                    trial = running.pop(process)
                    ended(trial, _result(trial, process.returncode))
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _start(trial, environment):
    """-> a process. It has a session of its own, so that Ctrl-C reaches it only through `run`, as
    SIGTERM: a process in the background ignores SIGINT. It stops train.py in the same way."""
    with open(_log(trial), "wb") as log:
        return subprocess.Popen(trial.command(), env=os.environ | environment, stderr=log,
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                start_new_session=True)


def _log(trial):
    """The file with the errors of a trial, beside its directory."""
    return trial.directory.with_name(f"{trial.name}.log")


def _result(trial, status):
    """-> the result of a trial that has ended. Raises UserError and RunError, as `run`."""
    said = _log(trial).read_text(errors="replace").strip()
    if status == 0:
        return trial.result()
    if status == 3 and "not finite" in said:
        return None
    last = said.splitlines()[-1] if said else f"train.py ended with status {status}"
    error = UserError if status == 2 else RunError
    raise error(f"{trial.name}: {last.removeprefix('train.py: ')}")


@contextmanager
def says_how_to_go_on(command):
    """Context manager: if it is stopped by a signal, one line says how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; to go on: {command}", flush=True)
        raise
