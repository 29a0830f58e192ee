"""The cost of a training step in counts, which do not depend on the machine.

Counted on the double of CuPy: array operations, bytes allocated for their results, and calls of
Python functions. The test fails if a step costs more than the limits below. `pytest -s
tests/training/test_cost.py` shows the current counts; lower the limits when a change lowers them.
"""

import sys

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.layers import Key
from npgpt.optim import AdamW, Muon, OptimizerGroup
from npgpt.training.step import train_step
from tests import double

MARGIN = 0.02
WORK = {"vocab_size": 65, "block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}     # B 16
COUNTED = ("operations", "megabytes", "calls of Python functions")
COST = {
    "adamw": (852, 38.27, 588),               # on a GPU sums over rows take two operations more
    "adamw, dropout": (1346, 52.34, 777),     # 40 are views of attention in groups of heads
    "muon": (2296, 51.77, 816),
}


@pytest.mark.parametrize("name", COST)
def test_step_costs_no_more_than_before(name, device):
    gpt = GPT(GPTConfig(**WORK, dropout=0.1 if "dropout" in name else 0.0), device=device)
    p, grads = gpt.params, gpt.gradients()
    optimizer = (OptimizerGroup([Muon(p), AdamW(p, start=p.n_matrices)]) if "muon" in name
                 else AdamW(p))
    idx = device.to_device(np.random.default_rng(0).integers(65, size=(16, 32)))
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        ours = frame.f_globals.get("__name__", "").startswith("npgpt.")
        calls += event == "call" and ours and frame.f_code.co_name[0] != "<"    # comprehensions

    def step():
        train_step(gpt, optimizer, [(idx, idx, Key(1, 1))], grads, lr=1e-3, grad_clip=1.0)

    work = double.Work
    before = work.operations, work.bytes
    step()
    found = [work.operations - before[0], (work.bytes - before[1]) / 1e6]
    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
    found.append(calls)
    print(name, found)
    for what, cost, limit in zip(COUNTED, found, COST[name]):
        assert cost <= limit * (1 + MARGIN), f"{what}: {cost}, at most {limit} before"
