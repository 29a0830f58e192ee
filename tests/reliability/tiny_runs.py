"""Runs of a few milliseconds, what they would leave if nothing went wrong, and whether what is left
after a fault is as good."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import train as train_script
from npgpt import GPT, UserError
from npgpt.checkpoints.run import RunDirectory
from npgpt.checkpoints.tensors import read_tensors
from npgpt.durable import verify
from npgpt.reading import read_json
from npgpt.text.tokenizer import load_tokenizer
from tests.commands.tiny import TEXT, everything, metrics

OLD, NEW = 8, 5             # seeds: the best step of the old run is 2, of the new one 1, then 3, 4
STOPS, END = 3, 5           # the step with which runs end before faults, and after them
OPTIONS = ["--data=fox.txt", "--family=gpt", "--n-layer=1", "--n-head=1", "--n-embd=4",
           "--block-size=4", "--batch-size=2", "--eval-iters=1", "--eval-interval=1",
           "--log-interval=1", "--optimizer=adamw", "--learning-rate=0.3", "--min-lr=0.3",
           "--warmup-iters=0", "--lr-decay-iters=10", "--dropout=0.1"]
FILES = "model.safetensors", "training.safetensors"


def start(seed=NEW, steps=STOPS, workers=1, folder="run"):
    """The words that start a run."""
    return [*OPTIONS, f"--seed={seed}", f"--max-iters={steps}", f"--workers={workers}",
            f"--out-dir={folder}"]


def resume(steps=STOPS, folder="run"):
    return ["--resume", f"--max-iters={steps}", f"--out-dir={folder}"]


def train(words):
    """Train in this process -> exit status, stderr."""
    with contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()) as errors:
        return train_script.main(words), errors.getvalue()


def runs(steps=STOPS, workers=1):
    """-> (name, the directory that is there before, the words that start it) for each kind."""
    new = start(steps=steps, workers=workers)
    return [("a new run", None, new), ("a resumed run", "part", resume(steps)),
            ("an overwriting run", "old", [*new, "--overwrite"]),
            ("a run that overwrites a checkpoint of its step", "same", [*new, "--overwrite"])]


def beginnings(workers=1, end=END):
    """Make the text and the directories of `runs` in the working directory -> `references`."""
    whole = references(workers, end)
    for seed, steps, name in ((OLD, STOPS, "old"), (OLD, 1, "same"), (NEW, 2, "part")):
        assert train(start(seed, steps, workers, name)) == (0, "")
    return whole


def references(workers=1, end=END):
    """Make the text and uninterrupted runs in the working directory -> seed -> its losses by step,
    and what it leaves."""
    Path("fox.txt").write_text(TEXT)
    found = {}
    for seed in (OLD, NEW):
        folder = f"whole-{seed}-{workers}"
        assert train(start(seed, end, workers, folder)) == (0, "")
        losses = {m["step"]: m["val_loss"] for m in metrics(folder) if "val_loss" in m}
        found[seed] = SimpleNamespace(losses=losses, left=left(folder), end=end, workers=workers)
    return found


def left(folder):
    """What a run has left: its steps, the bits of the model and the optimiser, the metrics."""
    run = RunDirectory.existing(Path(folder))
    paths = {which: run.checkpoint(which) for which in ("latest", "best")}
    found = {which: (step(path), *((path / name).read_bytes() for name in FILES))
             for which, path in paths.items()}
    timeless = [{key: value for key, value in line.items()
                 if key not in ("seconds", "tokens_per_second")} for line in metrics(folder)]
    found["metrics"] = [line for line in timeless if "whole_val_loss" not in line]
    found["paths"] = sorted(re.sub(r"^(checkpoint-\d+)-\d+", r"\1", path)
                            for path in everything(folder))
    return found


def unlocked(folder):
    """Every path under a directory with its content, but for a lock that could not be removed."""
    return {path: content for path, content in everything(folder).items() if path != ".lock"}


def step(checkpoint):
    return read_json(checkpoint / "training.json")["step"]


def problems(folder, whole, had_a_run=False):
    """What is wrong with a directory after a fault -> list of texts. It resumes the run or starts
    it again."""
    found = []
    try:
        seed, found = _saved(folder, whole)
    except UserError as error:
        if had_a_run or Path(folder, "latest").exists():
            return [f"nothing to load: {error}"]
        again = start(NEW, whole[NEW].end, whole[NEW].workers, folder)
        status, errors = train(again)
        if status == 2:                                       # there are metrics
            status, errors = train([*again, "--overwrite"])
        seed = NEW
    else:
        status, errors = train(resume(whole[seed].end, folder))
    if status:
        return [*found, f"the next start ends with {status}: {errors}"]
    after = left(folder)
    return found + [f"{name} differs from that of an uninterrupted run" for name in after
                    if after[name] != whole[seed].left[name]]


def _saved(folder, whole):
    """-> the seed of the run that is there, problems. Raises UserError if there is none."""
    run, found = RunDirectory.existing(Path(folder)), []
    latest, best = (run.checkpoint(which) for which in ("latest", "best"))
    states = []
    for path in (latest, best):
        verify(path)
        model = GPT.from_pretrained(path)
        load_tokenizer(path)
        shapes = json.loads((path / "training.safetensors").read_bytes()[8:].split(b"}}")[0]
                            .decode() + "}}")
        shapes.pop("__metadata__", None)
        read_tensors(path / "training.safetensors",
                     {name: tuple(value["shape"]) for name, value in shapes.items()})
        assert model.params
        states.append(read_json(path / "training.json"))
    seeds = {state["values"]["seed"] for state in states}
    if len(seeds) > 1:
        found.append("latest and best are of different runs")
    seed = states[0]["values"]["seed"]
    losses = {step: loss for step, loss in whole[seed].losses.items()
              if 0 < step <= states[0]["step"]}
    if states[1]["step"] != min(losses, key=losses.get):
        found.append(f"best is of step {states[1]['step']}, not {min(losses, key=losses.get)}")
    return seed, found


def copy(source, folder="run"):
    """Put a copy of a directory, or nothing for None, in the place of another."""
    shutil.rmtree(folder, ignore_errors=True)
    if source:
        shutil.copytree(source, folder)
