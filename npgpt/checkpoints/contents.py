"""What the directory of a run contains, and what follows from it.

    checkpoint-500/    a model directory, and beside the model
        training.json           step, configuration, data, lowest validation loss, the run's id
        training.safetensors    the optimiser's state
        tokenizer.json          and tokenizer_config.json, the tokenizer
    latest, best       one line each: the name of a checkpoint
    metrics.jsonl      one JSON object per line
    .lock              the process that writes there now

A checkpoint is complete before `latest` or `best` names it. As long as one of them does, nothing
touches it: another checkpoint of the same step is checkpoint-500-2. Other checkpoints are removed.

Everything follows from `latest`. When it is replaced, a run takes the place of the one that it
overwrites. Until that moment the old one is whole, and the metrics of the new one are in
.metrics-ID.jsonl. If a process is killed before it has renamed them and written `best`, the next
one does that.
"""

import math
import os
import re
import shutil
from contextlib import suppress

from npgpt.checkpoints import adapter, models
from npgpt.durable import remove_directory, temporary, write_text
from npgpt.errors import UserError
from npgpt.reading import read_bytes, read_json
from npgpt.text import tokenizer

STATE, TENSORS, METRICS = "training.json", "training.safetensors", "metrics.jsonl"
FILES = models.FILES | adapter.FILES | tokenizer.FILES | {STATE, TENSORS}       # of a checkpoint
NAMES = "latest", "best"
NAME = r"checkpoint-\d+(-\d+)?"     # of a checkpoint
LONGEST_NAME = 1000                 # bytes


class RunContents:
    """The contents of a directory, as they are on disk now."""

    def __init__(self, path):
        self.path = path

    def checkpoint(self, which):
        """The path of the "latest" checkpoint or of the "best": of the two that `latest` and `best`
        name, the one with the lower loss; `best` may be behind, or of a run that is overwritten.
        Raises UserError if they are missing or damaged."""
        while True:
            names = self._names()
            try:
                latest = self._find("latest", names)
                return _better(self._find("best", names), latest) if which == "best" else latest
            except UserError:
                if self._names() == names:       # a process that trains has not just changed them
                    raise

    def holds_a_run(self):
        """Whether a run has saved something."""
        return bool(self._checkpoints()) or any((self.path / name).is_file() for name in NAMES)

    def unnamed(self, step):
        """-> the path of a new checkpoint."""
        number, name, named = 1, f"checkpoint-{step}", self._names().values()
        while name in named:
            number += 1
            name = f"checkpoint-{step}-{number}"
        return self.path / name

    def aside(self, run):
        """run: its id -> the path of its metrics until it takes the place of another run."""
        return self.path / f".metrics-{run}.jsonl"

    def follow_latest(self):
        """Put the metrics and `best` of the run that `latest` names in their places, and remove
        checkpoints that are not needed. Raises UserError as `checkpoint`."""
        latest, best = (self.checkpoint(which) for which in NAMES)
        metrics = self.aside(read_json(latest / STATE).get("run"))
        if metrics.exists():
            metrics.replace(self.path / METRICS)
        names = self._names()
        for which, path in zip(NAMES, (latest, best)):
            if names[which] != path.name:
                write_text(self.path / which, path.name + "\n")
        for path in self._checkpoints() - {latest, best}:
            remove_directory(path)

    def clean(self):
        """Finish what a killed process has not finished, and remove what it has left."""
        for left in self.path.glob(".checkpoint-*"):
            shutil.rmtree(left, ignore_errors=True)
        for name in (*NAMES, METRICS):
            temporary(self.path / name).unlink(missing_ok=True)
        with suppress(UserError):                # nothing is saved, or it is damaged
            self.follow_latest()
        for left in self.path.glob(".metrics-*.jsonl"):
            left.unlink()

    def _names(self):
        """What `latest` and `best` contain -> dict; None for one that is missing."""
        names = dict.fromkeys(NAMES)
        for name in NAMES:
            if os.path.lexists(self.path / name):
                text = read_bytes(self.path / name, LONGEST_NAME)
                names[name] = text.decode(errors="replace").strip()
        return names

    def _find(self, which, names):
        """-> the checkpoint that `which` names. If it is missing and there is a single checkpoint,
        that is it: a process was killed before it named its first one."""
        checkpoints, name = self._checkpoints(), names[which]
        if name is None and len(checkpoints) == 1:
            return checkpoints.pop()
        if name is None:
            raise UserError(f"{self.path / which} is missing")
        if self.path / name not in checkpoints:
            if re.fullmatch(NAME, name) and (self.path / name).is_dir():
                raise UserError(f"{self.path / name / STATE} is missing, or not a regular file")
            raise UserError(f"{self.path / which} names {name!r}, which is not a checkpoint")
        return self.path / name

    def _checkpoints(self):
        return {path for path in self.path.glob("checkpoint-*")
                if re.fullmatch(NAME, path.name)
                and (path / STATE).is_file() and not path.is_symlink()}


def best_loss(checkpoint):
    """The lowest validation loss up to a checkpoint; infinite if none was measured. Raises
    UserError if it is not recorded."""
    loss = read_json(checkpoint / STATE).get("best_val_loss", "missing")
    if not isinstance(loss, (int, float, type(None))):
        raise UserError(f"{checkpoint / STATE} is damaged: best_val_loss is {loss!r}")
    return math.inf if loss is None else loss


def _better(best, latest):
    """-> which of two checkpoints is the best one: `latest`, if it is of another run."""
    if read_json(best / STATE).get("run") != read_json(latest / STATE).get("run"):
        return latest
    return min(best, latest, key=best_loss)
