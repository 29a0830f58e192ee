"""The PyTorch optimiser of benchmarks.time_to_loss agrees with npgpt's, in float64."""

import numpy as np
import pytest

from npgpt.optim import AdamW, Muon, OptimizerGroup, clip_scale
from npgpt.parallel import squared_norm
from tests.yardsticks.test_torch import TOLERANCE, VARIANTS, apart, odd_model

BETAS, MOMENTUM, WEIGHT_DECAY, RELATIVE_RATE, GRAD_CLIP = (0.9, 0.99), 0.85, 0.1, 2.0, 1.0


def npgpt_optimizer(gpt):
    """GPT -> a function of gradients and learning rate that updates the model."""
    params = gpt.params
    optimizer = OptimizerGroup([Muon(params, MOMENTUM, WEIGHT_DECAY, RELATIVE_RATE),
                                AdamW(params, *BETAS, WEIGHT_DECAY, start=params.n_matrices)])

    def step(grads, rate):
        scale = clip_scale(np.sqrt(squared_norm(grads.flat)), GRAD_CLIP)
        optimizer.step(grads.flat, rate, scale)

    return step


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_steps_of_the_optimizer_in_benchmarks_agree_with_npgpt(variant, torch):
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
    for rate in (0.01, 0.02, 0.015):
        grads = gpt.params.on(draw(gpt.params.flat.size))
        for name, parameter in named.items():
            parameter.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), GRAD_CLIP)
        optimizer.step(rate)
        step(grads, rate)
    assert max(apart(gpt.params[name], named[name]) for name in named) < TOLERANCE
    assert all((gpt.params[name] != before[name]).any() for name in named)
