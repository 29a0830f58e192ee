"""The directory of a run: what it holds, how a new one is chosen, how an old one is found.

    checkpoint-500/    a model directory (npgpt.models.checkpoint), and beside the model
        training.json           step, configuration, data, best validation loss so far
        training.safetensors    what the optimiser remembers
        tokenizer.json
    latest, best       one line each: the name of a checkpoint
    metrics.jsonl      one JSON object a line

A checkpoint is complete before `latest` or `best` names it. Those that neither names are removed.
"""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path

from npgpt.durable import atomic_directory, read_json, verify, write_json, write_text
from npgpt.errors import UserError
from npgpt.models import checkpoint
from npgpt.text.tokenizer import CharTokenizer

OUT = Path("out")
STATE, TENSORS, METRICS = "training.json", "training.safetensors", "metrics.jsonl"


class Run:
    """A run's directory. Use `new` or `existing`."""

    def __init__(self, path):
        self.path = path

    @classmethod
    def new(cls, out_dir, name, overwrite):
        """A directory for a new run: out_dir, or the first of out/name, out/name-2, ... that is
        free. Raises UserError if out_dir holds a run, unless overwrite, or cannot be written."""
        if out_dir is None:
            n = 1
            while (OUT / (name if n == 1 else f"{name}-{n}")).exists():
                n += 1
            out_dir = OUT / (name if n == 1 else f"{name}-{n}")
        run = cls(out_dir)
        for path in (out_dir, *out_dir.parents):
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} is a file; --out-dir takes a directory")
        if run._files() and not overwrite:
            raise UserError(f"{out_dir} holds a run already; --resume goes on with it, --overwrite "
                            "replaces it, another --out-dir keeps both")
        run._try_writing()
        return run

    @classmethod
    def existing(cls, out_dir):
        """The directory of a run to go on with or to sample from: out_dir, or the newest under
        out/. Raises UserError if there is none."""
        if out_dir is None:
            runs = [path.parent for path in OUT.glob("*/latest")]
            if not runs:
                raise UserError(f"there is no run under {OUT}/; name its directory with --out-dir")
            out_dir = max(runs, key=lambda path: (path / "latest").stat().st_mtime)
        if not out_dir.is_dir():
            raise UserError(f"there is no directory {out_dir}")
        if not (out_dir / "latest").is_file():
            raise UserError(f"{out_dir} holds no checkpoint")
        return cls(out_dir)

    def checkpoint(self, which):
        """The path of the checkpoint that `which`, "latest" or "best", names."""
        try:
            name = (self.path / which).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / which} cannot be read: {error}") from None
        path = self.path / name
        if not name or Path(name).name != name or not path.is_dir():
            raise UserError(f"{self.path / which} names {name!r}, and there is no such checkpoint")
        return path

    def begin(self, step):
        """Make ready for the steps after `step`: what was recorded of them before is dropped. At
        step 0 that is everything."""
        self.path.mkdir(parents=True, exist_ok=True)
        if step == 0:
            for path in self._files():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        metrics = self.path / METRICS
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(metrics, "".join(line + "\n" for line in kept))

    def save(self, model, tokenizer, optimizer, state, *, is_best):
        """Write checkpoint-STEP and let `latest` name it, and `best` if it is. state: dict with at
        least "step", for JSON."""
        target = self.path / f"checkpoint-{state['step']}"
        with atomic_directory(target) as folder:
            checkpoint.write_model(folder, model)
            checkpoint.write_tensors(folder / TENSORS, optimizer.state)
            write_json(folder / STATE, state)
            tokenizer.save(folder)
        write_text(self.path / "latest", target.name + "\n")
        if is_best or not (self.path / "best").exists():
            write_text(self.path / "best", target.name + "\n")
        kept = {self.checkpoint("latest"), self.checkpoint("best")}
        for path in self.path.glob("checkpoint-*"):
            if path not in kept:
                shutil.rmtree(path)

    def load_state(self):
        """-> state, tokenizer, path of the latest checkpoint."""
        path = self.checkpoint("latest")
        verify(path)
        return read_json(path / STATE), CharTokenizer.load(path), path

    def log(self, **values):
        """Append a line to metrics.jsonl."""
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def _files(self):
        """What belongs to a run in this directory."""
        names = ("latest", "best", METRICS, "checkpoint-*")
        return [path for name in names for path in self.path.glob(name)]

    def _try_writing(self):
        """Raise UserError if nothing can be written here. Leaves nothing behind."""
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.is_dir())
        try:
            descriptor, name = tempfile.mkstemp(dir=there)
            os.close(descriptor)
            os.unlink(name)
        except OSError as error:
            raise UserError(f"{there} cannot be written to: {error.strerror}") from None


def _step_of(line):
    """The step of a line of metrics; infinite for one that a crash left unfinished."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
