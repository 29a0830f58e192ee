"""Time to reach a given loss: `python -m benchmarks.time_to_loss`.

Four sides train the model of nanoGPT's recipe for a CPU (0.8 million parameters), from the same
initial weights and on the same batches:

    PyTorch, nanoGPT's recipe                  2000 steps of AdamW; its final loss is the target
    PyTorch, npgpt's optimiser and rates       Muon in float32 and AdamW, as many steps as npgpt
    PyTorch, the same with torch.optim.Muon    which computes in bfloat16
    npgpt                                      train.py

The first and npgpt compare recipes; the second and npgpt compare implementations. Times are from
the first step to the last; the time of train.py includes its evaluation before the first step.
PyTorch is warmed up, and its evaluation is not timed. The sides alternate, and medians are
compared. The exit status is 0 if every run of npgpt reaches the target.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.works import machine
from npgpt import GPT, GPTConfig
from npgpt.backend import get_device
from npgpt.optim import learning_rate
from npgpt.text.dataset import Dataset
from npgpt.text.source import load_source
from npgpt.training.config import MODEL_FIELDS, TRAINING_FIELDS, TrainingConfig
from npgpt.training.request import read_toml

BAR = 5.0            # nanoGPT's recipe should take at least this many times as long as npgpt
RECIPE = {           # nanoGPT's README, "I only have a macbook", and its train.py's defaults
    "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0, "batch_size": 12,
    "max_iters": 2000, "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "beta2": 0.99,
    "weight_decay": 0.1, "grad_clip": 1.0,
}
SPRINT = {           # changes to npgpt's laptop configuration for such a short run
    "max_iters": 350, "warmup_iters": 10, "hold": 0.2, "learning_rate": 2e-2, "muon_lr": 0.04,
    "muon_momentum": 0.85, "eval_iters": 1,
}
RECIPE_SIDE = "PyTorch, nanoGPT's recipe"
SAME_SIDE = "PyTorch, npgpt's optimiser and rates"
BFLOAT16_SIDE = "PyTorch, the same with torch.optim.Muon"
NPGPT_SIDE = "npgpt"
TUNED = """\
How the recipes were tuned: nanoGPT's recipe is its author's, unchanged. npgpt's rates, momentum,
number of steps and hold were tuned by the loss on this same validation split. So nanoGPT's recipe
and npgpt compare recipes, and one of them was tuned on the split that it is measured on. npgpt's
optimiser and rates in PyTorch and npgpt compare implementations."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch-muon", action=argparse.BooleanOptionalAction, default=True,
                        help="include the side with torch.optim.Muon, if PyTorch has it")
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)    # of each side, for a test
    parser.add_argument("--side", help=argparse.SUPPRESS)               # one run, in this process
    arguments = parser.parse_args()
    if arguments.side:
        return print(json.dumps(train_torch(arguments.side, arguments.steps)))

    print(machine() + "\n")
    found = {side: [] for side in sides(arguments.torch_muon)}
    for _ in range(arguments.rounds):
        for side, results in found.items():
            results.append(train_npgpt(arguments.steps) if side == NPGPT_SIDE
                           else in_a_process(side, arguments.steps))
            seconds, loss = results[-1]
            print(f"{side}: {seconds:.1f} s, {loss:.4f}", flush=True)
    return report(found)


def sides(torch_muon):
    """-> the names of the sides, in the order in which they run."""
    import torch

    has_muon = torch_muon and hasattr(torch.optim, "Muon")      # since PyTorch 2.9
    return [RECIPE_SIDE, SAME_SIDE, *[BFLOAT16_SIDE] * has_muon, NPGPT_SIDE]


def report(found):
    """name of a side -> pairs of seconds and loss. Prints the table -> exit status."""
    medians = {side: tuple(map(statistics.median, zip(*results)))
               for side, results in found.items()}
    ours, _ = medians[NPGPT_SIDE]
    print("\n| | seconds | ÷ npgpt's | loss over the whole validation split |\n"
          "| --- | --- | --- | --- |")
    for side, (seconds, loss) in medians.items():
        print(f"| {side} | {seconds:.1f} | {seconds / ours:.2f} | {loss:.4f} |")
    mark = min(loss for _, loss in found[RECIPE_SIDE])
    reached = all(loss <= mark for _, loss in found[NPGPT_SIDE])
    print(f"\nPyTorch takes {medians[RECIPE_SIDE][0] / ours:.1f} times as long as npgpt with "
          f"nanoGPT's recipe (bar: {BAR:g}),\nand {medians[SAME_SIDE][0] / ours:.2f} times as long "
          f"with npgpt's optimiser and rates.\n{'Every' if reached else 'NOT every'} run of npgpt "
          f"reaches the target loss of {mark:.4f}.\n\n{TUNED}")
    return 0 if reached else 1


def in_a_process(side, steps):
    """-> seconds, loss: of a side in PyTorch, in a separate process."""
    command = [sys.executable, "-m", "benchmarks.time_to_loss", "--side", side]
    command += ["--steps", str(steps)] if steps else []
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return tuple(json.loads(out.splitlines()[-1]))


def train_npgpt(steps):
    """-> seconds, loss: of train.py itself."""
    values = SPRINT | ({"max_iters": steps, "lr_decay_iters": SPRINT["max_iters"]} if steps else {})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--device=cpu", "--config=laptop",
                   "--data=shakespeare", "--out-dir", folder, "--overwrite",
                   "--eval-interval=1000000",
                   *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    return last["seconds"], last["whole_val_loss"]


def prepare(values):
    """Values of a configuration -> TrainingConfig, Dataset and GPT, as train.py would have them."""
    c = TrainingConfig(**{n: v for n, v in values.items() if n in TRAINING_FIELDS})
    model = {n: v for n, v in values.items() if n in MODEL_FIELDS}
    data = Dataset(load_source("shakespeare"), model["block_size"], get_device("cpu"))
    return c, data, GPT(GPTConfig(vocab_size=data.tokenizer.vocab_size, **model), seed=c.seed)


def train_torch(side, steps):
    """-> seconds, loss: on npgpt's batches, from npgpt's initial weights."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    c, data, ours = prepare(RECIPE if side == RECIPE_SIDE
                            else read_toml(Path("configs/laptop.toml")) | SPRINT)
    gpt = TorchGPT(ours.config).take(ours.params).train()

    def as_tokens(ids):
        return torch.as_tensor(ids, dtype=torch.long)

    def train(gpt, steps):
        update = optimizer(gpt, c, side)
        for step in range(steps):
            idx, targets = map(as_tokens, data.batch(c.seed, step, c.batch_size))
            gpt.zero_grad(set_to_none=True)
            gpt(idx, targets).backward()
            torch.nn.utils.clip_grad_norm_(gpt.parameters(), c.grad_clip)
            update(learning_rate(step, c))

    train(copy.deepcopy(gpt), 1)        # warm up: PyTorch imports modules in the first step
    began = time.perf_counter()
    train(gpt, steps or c.max_iters)
    seconds = time.perf_counter() - began

    losses, offsets = [], data.offsets(data.val)
    parts = np.array_split(offsets, len(offsets) // 64)
    with torch.no_grad():
        for part in parts:
            losses.append(gpt(*map(as_tokens, data.windows(data.val, part))).item())
    return seconds, float(np.average(losses, weights=[len(part) for part in parts]))


def optimizer(gpt, c, side):
    """-> function of the learning rate that updates the parameters with a side's optimiser."""
    import torch

    from benchmarks.torch_muon import Muon, MuonAndAdamW

    betas = c.beta1, c.beta2
    if side != RECIPE_SIDE:
        return MuonAndAdamW(
            gpt, betas=betas, momentum=c.muon_momentum, weight_decay=c.weight_decay,
            relative_rate=c.muon_lr / c.learning_rate,
            muon=torch.optim.Muon if side == BFLOAT16_SIDE else Muon,
        ).step
    adamw = torch.optim.AdamW(
        [{"params": [p for p in gpt.parameters() if p.ndim == 2], "weight_decay": c.weight_decay},
         {"params": [p for p in gpt.parameters() if p.ndim == 1], "weight_decay": 0.0}],
        betas=betas,       # not fused: nanoGPT fuses on a GPU only
    )

    def update(rate):
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()

    return update


if __name__ == "__main__":
    raise SystemExit(main())
