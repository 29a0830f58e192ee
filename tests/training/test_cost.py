"""What a step of training costs, counted: a guard against getting slower that no machine disturbs.

Counted on the double of CuPy: operations on arrays, and bytes of new memory that their results
take. A step that needs more, or less, than what is written here fails; who changes the code on
purpose writes down the new figures, which `pytest tests/training/test_cost.py` shows.
"""

import sys

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.layers import Key
from npgpt.optim.optim import AdamW, Muon, clip_scale, gradient_norm
from tests import double

MARGIN = 0.02
WORK = {"vocab_size": 65, "block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}     # B 16
COST = {      # -> operations, megabytes, calls of Python functions
    "adamw": (717, 43.10, 391),
    "adamw, dropout": (1211, 57.18, 554),
    "muon": (2201, 61.32, 809),
}


@pytest.mark.parametrize("name", COST)
def test_step_costs_what_it_did(name, device):
    gpt = GPT(GPTConfig(**WORK, dropout=0.1 if "dropout" in name else 0.0), device=device)
    p = gpt.params
    grads = p.on(device.xp.zeros_like(p.flat))
    muon = "muon" in name
    optimizers = [AdamW(p, device, 0.9, 0.99, 0.1, start=p.n_matrices if muon else 0)]
    if muon:
        optimizers.append(Muon(p, device, 0.95, 0.1, 5.0))
    idx = device.to_device(np.random.default_rng(0).integers(65, size=(16, 32)))
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        ours = frame.f_globals.get("__name__", "").startswith("npgpt.")
        calls += event == "call" and ours and frame.f_code.co_name[0] != "<"    # comprehensions

    def step():
        grads.flat[...] = 0
        gpt.loss_and_grads(idx, idx, Key(1, 1), into=grads)
        scale = clip_scale(gradient_norm(grads, device), 1.0, device)
        for optimizer in optimizers:
            optimizer.step(p, grads, 1e-3, scale, 1)

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
    assert found == pytest.approx(COST[name], rel=MARGIN)
