"""How long until a loss: `python -m benchmarks.time_to_loss`.

PyTorch trains nanoGPT's recipe for a CPU (0.8 million parameters, 2000 steps of AdamW) on all
cores; the loss over the whole validation split that it ends with is the mark. npgpt trains a model
of the same architecture and size by a schedule of its own, and ends at the mark or below. Both
clocks run from the first step to the last; what PyTorch would need for evaluations is left out,
what npgpt's trainer needs is counted. The sides take turns, medians are compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from npgpt.optim.optim import learning_rate
from npgpt.text.data import Dataset, load_text

from benchmarks.works import WORKS, machine
from npgpt import GPT, GPTConfig
from npgpt.backend import get_device
from npgpt.training.config import TrainingConfig

BAR = 5.0            # times sooner
RECIPE = TrainingConfig(batch_size=12, max_iters=2000, learning_rate=1e-3, min_lr=1e-4,
                        warmup_iters=100, beta2=0.99, weight_decay=0.1, grad_clip=1.0)
SPRINT = {           # what npgpt's laptop configuration is changed to for a run this short
    "max-iters": 350, "warmup-iters": 10, "hold": 0.2, "learning-rate": 2e-2, "muon-lr": 0.04,
    "muon-momentum": 0.85, "eval-iters": 1,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch:
        return print(json.dumps(train_torch()))

    print(machine() + "\n")
    found = {"PyTorch": [], "npgpt": []}
    for _ in range(arguments.rounds):
        command = [sys.executable, "-m", "benchmarks.time_to_loss", "--torch"]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found["PyTorch"].append(json.loads(out.splitlines()[-1]))
        found["npgpt"].append(train_npgpt())
        print({side: results[-1] for side, results in found.items()}, flush=True)
    print("\n| | seconds | loss over the whole validation split |\n| --- | --- | --- |")
    seconds = {}
    for side, results in found.items():
        seconds[side], loss = map(statistics.median, zip(*results))
        print(f"| {side} | {seconds[side]:.1f} | {loss:.4f} |")
    mark = min(loss for _, loss in found["PyTorch"])
    reached = all(loss <= mark for _, loss in found["npgpt"])
    print(f"\n{seconds['PyTorch'] / seconds['npgpt']:.1f} times sooner (bar: {BAR:g}); "
          f"{'every' if reached else 'NOT every'} run of npgpt ends at {mark:.4f} or below")
    return 0 if reached else 1


def train_npgpt():
    """-> seconds, loss: of train.py itself."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--device=cpu", "--config=laptop",
                   "--out-dir", folder, "--overwrite", "--eval-interval=1000000",
                   *(f"--{name}={value}" for name, value in SPRINT.items())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    return last["seconds"], last["whole_val_loss"]


def train_torch():
    """-> seconds, loss: nanoGPT's recipe on npgpt's batches, from npgpt's initial weights."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    _, _, options = WORKS["a"]
    cpu, model = get_device("cpu"), GPTConfig(**options)
    data = Dataset(load_text("shakespeare").text, model.block_size, cpu)
    gpt = TorchGPT(model).take(GPT(model, seed=RECIPE.seed).params).train()
    groups = [{"params": [p for p in gpt.parameters() if p.ndim == 2],
               "weight_decay": RECIPE.weight_decay},
              {"params": [p for p in gpt.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(RECIPE.beta1, RECIPE.beta2))
    began = time.perf_counter()
    for step in range(RECIPE.max_iters):
        idx, targets = (torch.as_tensor(ids).long()
                        for ids in data.batch(RECIPE.seed, step, RECIPE.batch_size))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, RECIPE)
        optimizer.zero_grad(set_to_none=True)
        gpt(idx, targets).backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), RECIPE.grad_clip)
        optimizer.step()
    seconds = time.perf_counter() - began

    losses, offsets = [], data.offsets(data.val)
    parts = np.array_split(offsets, len(offsets) // 64)
    with torch.no_grad():
        for part in parts:
            pair = (torch.as_tensor(ids).long() for ids in data.windows(data.val, part))
            losses.append(gpt(*pair).item())
    return seconds, float(np.average(losses, weights=[len(part) for part in parts]))


if __name__ == "__main__":
    raise SystemExit(main())
