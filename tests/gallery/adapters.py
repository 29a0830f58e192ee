"""Bugs of adapters."""

import numpy as np

from npgpt.layers import linear_forward, lora_backward, lora_forward
from npgpt.models import trained
from npgpt.models.gpt import GPTConfig
from npgpt.models.parameters import Param
from tests.gallery.bug import Bug
from tests.gallery.layers import normal

BUGS = []
CONFIG = GPTConfig(vocab_size=7, block_size=6, n_layer=1, n_head=2, n_embd=8)
MODULE = "h.0.mlp.c_fc"


# --- the initial values ---------------------------------------------------------------------------

def both_zero(config, rank):
    return {name: Param(param.shape, param.group, std=0.0)
            for name, param in trained.adapters(config, rank).items()}


def initial(adapters):
    """-> A, B."""
    table = adapters(CONFIG, 2)
    return [table[f"{MODULE}.{name}"].draw(name, 1).astype(float) for name in ("lora_A", "lora_B")]


def after_a_step(adapters):
    """that a step of gradient descent changes the output."""
    A, B = initial(adapters)
    x = normal(3, 8)
    y, cache = lora_forward(x, A, B)
    _, dA, dB = lora_backward(normal(3, 32, seed=1), cache)
    assert (lora_forward(x, A - 0.1 * dA, B - 0.1 * dB)[0] != y).any()


def at_the_start(adapters):
    """that new adapters leave the output unchanged."""
    y, _ = lora_forward(normal(3, 8), *initial(adapters))
    assert not y.any()


BUGS.append(Bug(
    "Both adapters begin at zero",
    "The product of the adapters must be 0 at first, so that the model is unchanged; then one of "
    "them must not be. The gradient of A is a product with B, and that of B a product with A: if "
    "both are 0, both gradients are 0, forever. A later initialisation of the whole model, or "
    "clearing a set of adapters to use its memory again, makes A zero as well. Training goes on "
    "with a finite loss, and the model stays as it was.",
    right='found[f"{module}.{A}"] = Param((I, rank), "matrix", 1 / math.sqrt(3 * I))',
    wrong="return {name: Param(param.shape, param.group, std=0.0)",
    correct=trained.adapters, broken=both_zero, check=after_a_step, blind=at_the_start,
))


# --- merging them ---------------------------------------------------------------------------------

def merged(w, A, B, alpha):
    """w + A @ B by `merged`, for a B that contains alpha / r, as in a file that was read."""
    name = f"{MODULE}.weight"
    changes = {f"{MODULE}.lora_A": A, f"{MODULE}.lora_B": B * (alpha / A.shape[1])}
    return dict(trained.merged(CONFIG, [(name, w)], changes))[name]


def merged_without_the_factor(w, A, B, alpha):
    return w + A @ B


def merged_computes_the_same(merge, rank, alpha):
    x, w, A, B = normal(3, 8), normal(8, 32, seed=1), normal(8, rank, seed=2), normal(rank, 32)
    change, _ = lora_forward(x, A, B)
    expected = linear_forward(x, w)[0] + change * (alpha / rank)
    np.testing.assert_allclose(linear_forward(x, merge(w, A, B, alpha))[0], expected, atol=1e-12)


def factor_is_two(merge):
    """the output of the merged layer against that of the layer and its adapters, at alpha = 2r."""
    merged_computes_the_same(merge, 4, 8)


def factor_is_one(merge):
    """the same at alpha = r, as are the defaults of peft, both 8."""
    merged_computes_the_same(merge, 8, 8)


BUGS.append(Bug(
    "The adapters are merged without their factor",
    "LoRA multiplies the product of the adapters by alpha / r. In training the factor is in the "
    "layer, and the code that merges the adapters into the weights forgets it, so the merged model "
    "is another one. With alpha = r, as by default, the factor is 1, and every test passes. If the "
    "factor is part of B from the moment that a file is read, there is nothing to forget.",
    right='w[:, columns] += changes[f"{module}.{A}"] @ changes[f"{module}.{B}"]',
    wrong="return w + A @ B",
    correct=merged, broken=merged_without_the_factor, source=trained.merged,
    check=factor_is_two, blind=factor_is_one,
))
