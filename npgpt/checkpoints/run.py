"""The directory of a run from its start to its end: choosing a new one, finding an existing one,
saving checkpoints there. `contents` says what it contains."""

import json
import math
import os
import tempfile
import uuid
from pathlib import Path

from npgpt.checkpoints import adapter, models
from npgpt.checkpoints.contents import (
    FILES,
    METRICS,
    NAMES,
    STATE,
    TENSORS,
    RunContents,
    best_loss,
)
from npgpt.checkpoints.lock import Lock
from npgpt.checkpoints.tensors import write_tensors
from npgpt.durable import atomic_directory, verify, write_json, write_text
from npgpt.errors import RunError, UserError
from npgpt.reading import read_bytes, read_json

OUT = Path("out")
FINAL = {"whole_val_loss", "final_val_loss"}     # of the whole validation split, or of a part


class RunDirectory(RunContents):
    """The directory of a run. Create one with `new` or `existing`. A process that writes there
    holds a lock on it until `close`."""

    _name = None              # of a new directory in out/, created by `begin`
    _may_overwrite = False    # whether a new run may take the place of another
    _is_saved = False         # whether there is a checkpoint of this run
    _lock = None

    def __init__(self, path):
        super().__init__(path)
        self.metrics = path / METRICS     # where the metrics of this run are now
        self._id = uuid.uuid4().hex       # None for a run of npgpt 0.1.0

    @classmethod
    def new(cls, out_dir, name, overwrite):
        """A directory for a new run: out_dir, or the first of out/name, out/name-2, ... that does
        not exist. Raises UserError if out_dir contains a run, unless overwrite, if it is not
        writable, or if another process writes there."""
        run = cls(out_dir or _first_free(name))
        run._name, run._may_overwrite = None if out_dir else name, overwrite
        for path in (run.path, *run.path.parents):
            if os.path.lexists(path) and not path.is_dir():
                raise UserError(f"{path} is a file; `out_dir` takes a directory")
        run._try_writing()
        try:
            if run.path.is_dir():
                run._acquire()
            run._refuse_a_run()
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def existing(cls, out_dir, option="out_dir"):
        """The directory of an existing run: out_dir, or the run in out/ that was saved last.
        option: the one that gives the directory. Raises UserError if there is none."""
        if out_dir is None:
            found = [*OUT.glob("*/latest")] or [*OUT.glob(f"*/{METRICS}")]
            if not found:
                raise UserError(f"there is no run in {OUT}/; give its directory with `{option}`")
            out_dir = max(found, key=lambda path: path.stat().st_mtime).parent
        if not out_dir.is_dir():
            takes = "a run" if option == "out_dir" else "a run or of a model"
            raise UserError(f"there is no directory {out_dir}; `{option}` takes that of {takes}")
        run = cls(out_dir)
        if run.holds_a_run():
            return run
        if run.metrics.is_file():
            raise UserError(f"{out_dir} contains the metrics of a run that has saved no "
                            "checkpoint; train again, with `overwrite` to replace it or with "
                            "another `out_dir`")
        raise UserError(f"{out_dir} contains no checkpoint")

    def begin(self, step):
        """Prepare for the steps after `step`; metrics of later steps are removed, and what a killed
        process has left. Raises UserError if another process has begun meanwhile.

        A run that is overwritten stays until this run has saved its first checkpoint.
        """
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=self._name is None)
                break
            except FileExistsError:              # another run has just created it
                self.path = _first_free(self._name)
        self._acquire()
        if step == 0:
            self._refuse_a_run()
        self.clean()
        self.metrics = self.path / METRICS
        if step == 0:
            if self.holds_a_run() or self.metrics.exists():
                self.metrics = self.aside(self._id)
            self.metrics.write_bytes(b"")
        else:
            kept = [line for line in self._metrics() if _step_of(line) <= step]
            write_text(self.metrics, "".join(line + "\n" for line in kept))

    def discard(self):
        """Undo `begin` if nothing has been saved."""
        if not self._is_saved:
            self.metrics.unlink(missing_ok=True)
            self.close()
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def close(self):
        """Let other processes write there."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def save(self, model, tokenizer, tensors, state, base=None):
        """Write a checkpoint, let `latest` name it, and then `best` if its loss is below that of
        the best one so far. tensors: name -> array, the optimiser's state. state: dict for JSON
        with at least "step" and "best_val_loss", the lowest loss so far or None. base: as for
        `models.write_model`."""
        try:
            target = self.unnamed(state["step"])
            with atomic_directory(target, FILES) as folder:
                models.write_model(model, folder, tokenizer, base)
                write_tensors(folder / TENSORS, tensors)
                write_json(folder / STATE, state | {"run": self._id})
                tokenizer.save(folder)
            for name in NAMES[:1] if self._is_saved else NAMES:
                write_text(self.path / name, target.name + "\n")
            self._is_saved = True
            self.follow_latest()
            self.metrics = self.path / METRICS
        except UserError as error:               # somebody else has written there
            raise RunError(error.message) from error

    def load_state(self):
        """-> state, tokenizer, path of the latest checkpoint. "best_val_loss" is that of the best
        one, "base" the base model of its adapters, as for `models.write_model`. Raises
        UserError if something is missing or damaged, if the directory is not writable, or if
        another process writes there."""
        self._try_writing()
        self._acquire()
        path, best = (self.checkpoint(which) for which in NAMES)
        verify(path)
        state = read_json(path / STATE) | {"best_val_loss": best_loss(best)}
        if adapter.is_adapter(path):
            state["base"] = adapter.reference(path)
        self._id, self._is_saved = state.get("run"), True
        if self.aside(self._id).exists():
            self.metrics = self.aside(self._id)
        return state, models.tokenizer_of(path), path

    def log(self, **values):
        """Append a line to the metrics; non-finite values are written as null."""
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.metrics, "ab") as file:
            file.write((json.dumps(values) + "\n").encode())

    def is_finished(self, step):
        """Whether the metrics have the final loss, after all steps."""
        return any(_step_of(line) == step and FINAL & json.loads(line).keys()
                   for line in self._metrics())

    def _metrics(self):
        """The lines of the metrics. Raises UserError if they cannot be read."""
        if not os.path.lexists(self.metrics):
            return []
        return read_bytes(self.metrics, None).decode(errors="replace").splitlines()

    def _acquire(self):
        if self._lock is None:
            self._lock = Lock(self.path)

    def _refuse_a_run(self):
        """Raise UserError if there is a run, unless it may be overwritten."""
        if self._may_overwrite:
            return
        choices = "`overwrite` replaces it, another `out_dir` keeps both"
        if self.holds_a_run():
            raise UserError(f"{self.path} already contains a run; `resume` continues it, {choices}")
        if (self.path / METRICS).is_file():
            raise UserError(f"{self.path} contains the metrics of a run that has saved no "
                            f"checkpoint; {choices}")

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
