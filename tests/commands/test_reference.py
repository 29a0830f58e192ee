"""train.py follows the reference trainer step by step, to rounding.

What is compared is everything that a run leaves: every line of metrics.jsonl, the losses and the
samples that it shows, the parameters, and the optimiser's moments.
"""

import itertools
import re
import signal
import tomllib
from functools import cache

import numpy as np
import pytest

import npgpt
import train as train_script
from npgpt.training.config import FAMILIES, FAMILY_FIELDS
from tests.commands.tiny import ROOT, SAMPLED, TEXT, metrics, state, weights
from tests.training import reference

ALPHABET = sorted(set(TEXT))
MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8}
SIZES = MODEL | {"batch_size": 4, "max_iters": 20, "eval_interval": 10, "eval_iters": 3,
                 "log_interval": 1}
DEFAULTS = {"grad_accum": 1, "hold": 0.0, "beta1": 0.9, "grad_clip": 1.0, "weight_decay": 0.1,
            "seed": 1337, "lr_decay_iters": 20, "warmup_iters": 1}
OTHERS = {"dropout": 0.2, "grad_accum": 3, "max_iters": 12, "eval_interval": 5, "log_interval": 2,
          "learning_rate": 0.01, "min_lr": 2e-3, "warmup_iters": 3, "lr_decay_iters": 10,
          "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.95, "grad_clip": 0.3, "seed": 9}
ADAMW = {"optimizer": "adamw"}
LLAMA = {"family": "llama", "n_kv_head": 1}
CASES = {       # configuration, flags, values that follow from the flags
    "modern": ("modern", {}, {}),
    "laptop": ("laptop", {}, {}),
    "modern, adamw": ("modern", ADAMW, {"learning_rate": 1e-3, "min_lr": 1e-4}),
    "laptop, adamw": ("laptop", ADAMW, {"learning_rate": 1e-3, "min_lr": 1e-4}),
    "baby": ("baby", {}, {}),
    "lecture": ("lecture", {}, {}),
    "muon": ("laptop", OTHERS | {"muon_lr": 0.05, "muon_momentum": 0.7, "hold": 0.5}, {}),
    "adamw": ("laptop", OTHERS | ADAMW | {"decay": "cosine"}, {}),
    "llama, muon": ("laptop", OTHERS | LLAMA | {"qk_norm": True, "head_dim": 12}, {}),
    "llama, adamw": ("baby", LLAMA | ADAMW | {"attention_bias": True, "mlp_bias": True},
                     {"learning_rate": 1e-3, "min_lr": 1e-4}),
}
TOLERANCE = {"float64": {"rtol": 1e-9, "atol": 1e-11}, "float32": {"rtol": 1e-3, "atol": 1e-4}}


def flags(values):
    return [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            for name, value in values.items()]


def values_of(case):
    """A configuration has laptop's values for what it lacks."""
    name, given, more = CASES[case]
    laptop, file = (tomllib.loads((ROOT / "configs" / f"{which}.toml").read_text())
                    for which in ("laptop", name))
    return DEFAULTS | laptop | file | SIZES | given | more


@cache
def expected(case, dtype):
    """-> the model, Trained."""
    c = values_of(case)
    family = FAMILIES[c.get("family", "gpt")]
    names = FAMILY_FIELDS[c.get("family", "gpt")].keys() & c.keys()
    config = family.Config(vocab_size=len(ALPHABET), **{name: c[name] for name in names})
    model = family(config, seed=c["seed"], dtype=dtype)
    ids = np.array([ALPHABET.index(character) for character in TEXT])
    return model, reference.train(model, ids, c, ALPHABET.index("\n"), SAMPLED)


def assert_follows(folder, case, dtype):
    """What a run has written to a directory is what the reference trainer makes."""
    model, trained = expected(case, dtype)
    tolerance = TOLERANCE[dtype]
    lines = [{name: value for name, value in line.items()
              if name not in ("seconds", "tokens_per_second")} for line in metrics(folder)]
    assert [list(line) for line in lines] == [list(line) for line in trained.metrics]
    for found, line in zip(lines, trained.metrics):
        np.testing.assert_allclose(list(found.values()), list(line.values()), **tolerance,
                                   err_msg=str(line))

    losses = {line["step"]: line["val_loss"] for line in trained.metrics if "val_loss" in line}
    del losses[0]                                         # before the first step nothing is saved
    best, latest = min(losses, key=losses.get), max(losses)
    # An evaluation that was stopped and made up for is followed by a second checkpoint of its step.
    names = {which: (folder / which).read_text().strip() for which in ("best", "latest")}
    assert re.fullmatch(rf"checkpoint-{best}(-2)?", names["best"])
    assert re.fullmatch(rf"checkpoint-{latest}(-2)?", names["latest"])

    latest = folder / names["latest"]
    assert {array.dtype.name for array in weights(latest).values()} == {dtype}
    found = npgpt.from_pretrained(latest, dtype=dtype).params
    for name, w in model.params.items():
        np.testing.assert_allclose(found[name], w, **tolerance, err_msg=name)
    saved = state(latest)
    n_muon = len(saved.get("muon.m", ()))
    for name, where in model.params.slices.items():
        if where.stop > model.params.n_trainable:
            continue
        kept = ([saved["muon.m"][where]] if where.stop <= n_muon else
                [saved[key][where.start - n_muon:where.stop - n_muon]
                 for key in ("adamw.m", "adamw.v")])
        for array, moment in zip(kept, trained.moments[name]):
            np.testing.assert_allclose(array, moment.ravel(), **tolerance, err_msg=name)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_training_follows_the_reference_trainer(case, workers, run, home):
    name, given, _ = CASES[case]
    result = run(train_script.main, "--data=fox.txt", f"--config={name}", "--dtype=float64",
                 f"--workers={workers}", *flags(SIZES | given))
    assert (result.status, result.err) == (0, "")
    assert_follows(home / f"out/{name}", case, "float64")

    _, trained = expected(case, "float64")
    shown, samples = "", iter(trained.samples)
    for line in trained.metrics:
        if "val_loss" in line:
            text = "".join(ALPHABET[i] for i in next(samples)).strip("\n")
            shown += (f"step {line['step']}/{values_of(case)['max_iters']}  "
                      f"train {line['train_loss']:.4f}  val {line['val_loss']:.4f}  "
                      f"{line['val_bits_per_byte']:.4f} bits/byte\n"
                      + "".join(f"    {of_text}\n" for of_text in text.split("\n")))
    last = trained.metrics[-1]
    shown += (f"validation loss {last['whole_val_loss']:.4f} ({last['bits_per_byte']:.4f} bits per "
              "byte) over the whole split")
    assert shown in result.out


@pytest.mark.parametrize(("case", "given"), [
    ("modern", {}), ("modern, adamw", {}), ("laptop", {"family": "gpt"}),
    ("laptop, adamw", {"family": "gpt"}),
])
def test_default_training_in_float32_follows_the_reference_trainer(case, given, run, home):
    """The configuration, the precision and the workers are not given."""
    result = run(train_script.main, "--data=fox.txt", "--device=cpu",
                 *flags(SIZES | CASES[case][1] | given))
    assert (result.status, result.err) == (0, "")
    assert_follows(home / "out" / CASES[case][0], case, "float32")


def stopping_at(step, monkeypatch):
    """Ctrl-C during a step, counted from 1 in this run."""
    original, count = train_script.train_step, 0

    def train_step(*arguments, **options):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(train_script, "train_step", train_step)


@pytest.mark.parametrize("case", ["muon", "adamw", "llama, muon"])
@pytest.mark.parametrize(("workers", "steps"), [(1, 1), (1, 4), (2, 1)])
def test_run_stopped_and_resumed_again_and_again_follows_the_reference_trainer(
        case, workers, steps, run, home, monkeypatch):
    """By Ctrl-C, after one or four steps each time. With two workers it takes one step more, but
    an evaluation is stopped at once; the resumed run makes it then."""
    name, given, _ = CASES[case]
    words = ["--data=fox.txt", f"--config={name}", "--dtype=float64", f"--workers={workers}",
             "--out-dir=run", *flags(SIZES | given)]
    stops = []
    while True:
        with monkeypatch.context() as patch:
            stopping_at(steps, patch)
            result = run(train_script.main, *words)
        if result.status == 0:
            break
        assert (result.status, result.err) == (130, "")
        if "stopped in the last evaluation, after all steps; " not in result.out:
            stops.append(int(re.search(r"stopped at step (\d+); ", result.out)[1]))
        words = ["--resume", "--out-dir=run"]
    assert {after - before for before, after in itertools.pairwise([0, *stops])} <= {
        steps, steps + workers - 1}
    assert values_of(case)["max_iters"] - stops[-1] <= steps + workers - 1
    assert_follows(home / "run", case, "float64")
