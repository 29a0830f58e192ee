"""The directory of a run: its contents, choosing a new one, finding an existing one.

    checkpoint-500/    a model directory, and beside the model
        training.json           step, configuration, data, best validation loss so far
        training.safetensors    the optimiser's state
        tokenizer.json          and tokenizer_config.json, the tokenizer
    latest, best       one line each: the name of a checkpoint
    metrics.jsonl      one JSON object per line

A checkpoint is complete before `latest` or `best` names it. Other checkpoints are removed.
"""

import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path

from npgpt.checkpoints import models
from npgpt.checkpoints.tensors import write_tensors
from npgpt.durable import atomic_directory, read_json, verify, write_json, write_text
from npgpt.errors import UserError
from npgpt.text import tokenizer
from npgpt.text.tokenizer import load_tokenizer

OUT = Path("out")
STATE, TENSORS, METRICS = "training.json", "training.safetensors", "metrics.jsonl"
FILES = models.FILES | tokenizer.FILES | {STATE, TENSORS}


class RunDirectory:
    """The directory of a run. Create one with `new` or `existing`."""

    def __init__(self, path, name=None):
        self.path = path
        self._name = name        # of a new directory in out/, created by `begin`
        self._has_best = True    # `best` names a checkpoint of this run, none that it overwrites

    @classmethod
    def new(cls, out_dir, name, overwrite):
        """A directory for a new run: out_dir, or the first of out/name, out/name-2, ... that does
        not exist. Raises UserError if out_dir contains a run, unless overwrite, or if it is not
        writable."""
        run = cls(out_dir or _first_free(name), None if out_dir else name)
        for path in (run.path, *run.path.parents):
            if os.path.lexists(path) and not path.is_dir():
                raise UserError(f"{path} is a file; `out_dir` takes a directory")
        if run._holds_a_run() and not overwrite:
            raise UserError(f"{run.path} already contains a run; `resume` continues it, "
                            "`overwrite` replaces it, another `out_dir` keeps both")
        if (run.path / METRICS).is_file() and not overwrite:
            raise UserError(f"{run.path} contains the metrics of a run that was not saved; "
                            "`overwrite` replaces it, another `out_dir` keeps both")
        run._try_writing()
        return run

    @classmethod
    def existing(cls, out_dir):
        """The directory of an existing run: out_dir, or the run in out/ that was saved last.
        Raises UserError if there is none."""
        if out_dir is None:
            runs = [path.parent for path in OUT.glob("*/latest")]
            if not runs:
                raise UserError(f"there is no run in {OUT}/; give its directory with `out_dir`")
            out_dir = max(runs, key=lambda path: (path / "latest").stat().st_mtime)
        if not out_dir.is_dir():
            raise UserError(f"there is no directory {out_dir}")
        if not (out_dir / "latest").is_file():
            raise UserError(f"{out_dir} contains no checkpoint")
        return cls(out_dir)

    def checkpoint(self, which):
        """The path of the checkpoint that `which`, "latest" or "best", names."""
        try:
            name = (self.path / which).read_bytes().decode().strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / which} cannot be read: {error}") from None
        if self.path / name not in self._checkpoints():
            raise UserError(f"{self.path / which} names {name!r}, which is not a checkpoint")
        return self.path / name

    def begin(self, step):
        """Prepare for the steps after `step`; metrics of later steps are removed.

        Checkpoints of a run that is overwritten stay until this run has saved its first.
        """
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=self._name is None)
                break
            except FileExistsError:              # another run has just created it
                self.path = _first_free(self._name)
        self._has_best = step > 0
        for left in self.path.glob(".checkpoint-*"):      # by a run that was killed while saving
            shutil.rmtree(left, ignore_errors=True)
        metrics = self.path / METRICS
        kept = []
        if step and metrics.exists():
            lines = metrics.read_bytes().decode(errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
        write_text(metrics, "".join(line + "\n" for line in kept))

    def discard(self):
        """Undo `begin` if nothing has been saved."""
        if not self._holds_a_run():
            (self.path / METRICS).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def save(self, model, tokenizer, tensors, state, *, is_best):
        """Write checkpoint-STEP, then let `latest` name it, and `best` if is_best. tensors: name ->
        array, the optimiser's state. state: dict with at least "step", for JSON."""
        target = self.path / f"checkpoint-{state['step']}"
        with atomic_directory(target, FILES) as folder:
            models.write_model(model, folder)
            write_tensors(folder / TENSORS, tensors)
            write_json(folder / STATE, state)
            tokenizer.save(folder)
        write_text(self.path / "latest", target.name + "\n")
        if is_best or not self._has_best:
            write_text(self.path / "best", target.name + "\n")
            self._has_best = True
        kept = {self.checkpoint("latest"), self.checkpoint("best")}
        for path in self._checkpoints() - kept:
            shutil.rmtree(path)

    def load_state(self):
        """-> state, tokenizer, path of the latest checkpoint. Raises UserError if one of them is
        missing or damaged, or if the directory is not writable."""
        self._try_writing()
        self.checkpoint("best")
        path = self.checkpoint("latest")
        verify(path)
        return read_json(path / STATE), load_tokenizer(path), path

    def log(self, **values):
        """Append a line to metrics.jsonl; non-finite values are written as null."""
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.path / METRICS, "ab") as file:
            file.write((json.dumps(values) + "\n").encode())

    def _checkpoints(self):
        """The checkpoints that `save` wrote."""
        return {path for path in self.path.glob("checkpoint-*")
                if re.fullmatch(r"checkpoint-\d+", path.name)
                and (path / STATE).is_file() and not path.is_symlink()}

    def _holds_a_run(self):
        """Whether a run has saved something."""
        return bool(self._checkpoints()) or any(
            (self.path / name).is_file() for name in ("latest", "best"))

    def _try_writing(self):
        """Raise UserError if the directory is not writable. Nothing is left behind."""
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.is_dir())
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise UserError(f"{there} cannot be written to: {error.strerror}") from None


def _first_free(name):
    number = 1
    while os.path.lexists(path := OUT / (name if number == 1 else f"{name}-{number}")):
        number += 1
    return path


def _step_of(line):
    """The step of a line of metrics; infinite for a line that a crash left incomplete."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf
