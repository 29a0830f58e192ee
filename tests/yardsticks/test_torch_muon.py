"""The optimiser that benchmarks.time_to_loss runs in PyTorch is npgpt's, in float64."""

import numpy as np
import pytest

from npgpt.optim.optim import AdamW, Muon, clip_scale, gradient_norm
from tests.yardsticks.test_torch import TOLERANCE, VARIANTS, apart, odd_model

BETAS, MOMENTUM, WEIGHT_DECAY, RELATIVE_RATE, GRAD_CLIP = (0.9, 0.99), 0.85, 0.1, 2.0, 1.0


def npgpt_optimizer(gpt):
    """GPT -> a function of gradients, rate and the step's number from 1, which updates the model.
    All calls of npgpt's optimisers are here."""
    params, device = gpt.params, gpt.device
    optimizers = [Muon(params, device, MOMENTUM, WEIGHT_DECAY, RELATIVE_RATE),
                  AdamW(params, device, *BETAS, WEIGHT_DECAY, start=params.n_matrices)]

    def step(grads, rate, number):
        scale = clip_scale(gradient_norm(grads, device), GRAD_CLIP, device)
        for optimizer in optimizers:
            optimizer.step(params, grads, rate, scale, number)

    return step


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_steps_of_the_benchmarks_optimizer_agree_with_npgpt(variant, torch):
    from benchmarks.torch_gpt import TorchGPT
    from benchmarks.torch_muon import MuonAndAdamW

    gpt = odd_model(**variant)
    theirs = TorchGPT(gpt.config).double().take(gpt.params)
    named = dict(theirs.named_parameters())
    optimizer = MuonAndAdamW(theirs, betas=BETAS, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
                             relative_rate=RELATIVE_RATE)
    step = npgpt_optimizer(gpt)
    before = {name: value.copy() for name, value in gpt.params.items()}
    draw = np.random.default_rng(0).standard_normal
    for number, rate in enumerate((0.01, 0.02, 0.015), start=1):
        grads = gpt.params.on(draw(gpt.params.flat.size))
        for name, parameter in named.items():
            parameter.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), GRAD_CLIP)
        optimizer.step(rate)
        step(grads, rate, number)
    assert max(apart(gpt.params[name], named[name]) for name in named) < TOLERANCE
    assert all((gpt.params[name] != before[name]).any() for name in named)
