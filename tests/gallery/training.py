"""Bugs around the model: how the gradients are used."""

import numpy as np

from npgpt import GPT, GPTConfig
from npgpt.layers import cross_entropy_forward
from npgpt.optim import AdamW, clip_scale
from npgpt.parallel import squared_norm
from tests.gallery.bug import Bug

BUGS = []
CONFIG = GPTConfig(vocab_size=7, block_size=6, n_layer=1, n_head=2, n_embd=8)


def model_and_batch():
    gpt = GPT(CONFIG, dtype="float64")
    idx, targets = np.random.default_rng(0).integers(7, size=(2, 4, 6))
    return gpt, idx, targets


def every_parameter_is_updated(gpt, grads):
    AdamW(gpt.params, weight_decay=0.0).step(grads.flat, 1e-2)


def norms_are_skipped(gpt, grads):
    for name in [n for n in grads if "ln_" not in n]:
        gpt.params[name] -= 1e-2 * grads[name]


def everything_changes(step):
    """one step, which must change every parameter."""
    gpt, idx, targets = model_and_batch()
    before = {name: array.copy() for name, array in gpt.params.items()}
    _, grads = gpt.loss_and_grads(idx, targets)
    step(gpt, grads)
    assert [n for n in before if np.array_equal(before[n], gpt.params[n])] == []


def the_loss_falls(step):
    """that the loss decreases."""
    gpt, idx, targets = model_and_batch()
    before, grads = gpt.loss_and_grads(idx, targets)
    step(gpt, grads)
    assert gpt.loss(idx, targets) < before


BUGS.append(Bug(
    "The gradients of LayerNorm are computed and never applied",
    "The optimiser updates a list of parameters that was written by hand, and the norms are not in "
    "it. All gradients are correct, the loss decreases, and LayerNorm stays at w = 1, b = 0 for "
    "ever. With one buffer for all parameters there is no list to maintain.",
    right="w, m, v = self.params.flat[part], self.m[own], self.v[own]",
    wrong='for name in [n for n in grads if "ln_" not in n]:',
    correct=every_parameter_is_updated, broken=norms_are_skipped, source=AdamW._update,
    check=everything_changes, blind=the_loss_falls,
))


def divided_by_the_whole_count(gpt, idx, targets, parts):
    grads = gpt.gradients()
    count = (targets >= 0).sum()
    for part in parts:
        gpt.loss_and_grads(idx[part], targets[part], into=grads, count=count)
    return grads.flat


def mean_of_means(gpt, idx, targets, parts):
    flat = 0
    for part in parts:
        flat = flat + gpt.loss_and_grads(idx[part], targets[part])[1].flat / len(parts)
    return flat


def accumulated_equals_whole(accumulate, hidden=True):
    """parts of unequal size with ignored targets, whose gradients must sum to the whole."""
    gpt, idx, targets = model_and_batch()
    parts = [slice(0, 1), slice(1, 4)]
    if hidden:
        targets[0, 1:] = -1
    else:
        parts = [slice(0, 2), slice(2, 4)]
    whole = gpt.loss_and_grads(idx, targets)[1].flat
    np.testing.assert_allclose(accumulate(gpt, idx, targets, parts), whole, atol=1e-14)


def equal_parts(accumulate):
    """two halves of equal size without ignored targets."""
    accumulated_equals_whole(accumulate, hidden=False)


BUGS.append(Bug(
    "The mean of means is not the mean",
    "Each part of a batch is averaged over its own targets, and then the parts are averaged. If a "
    "part has fewer targets, because some are ignored or because the last part is smaller, its "
    "tokens get more weight. The count of the whole batch must be known before its first part.",
    right="loss = ((xp.log(total) - correct) * valid).sum() / count",
    wrong="flat = flat + gpt.loss_and_grads(idx[part], targets[part])[1].flat / len(parts)",
    correct=divided_by_the_whole_count, broken=mean_of_means,
    source=cross_entropy_forward,
    check=accumulated_equals_whole, blind=equal_parts,
))


def clipped(grads, limit):
    flat = grads.flat
    flat *= clip_scale(np.sqrt(squared_norm(flat)), limit)


def clipped_copies(grads, limit):
    scale = clip_scale(np.sqrt(squared_norm(grads.flat)), limit)
    for g in grads.values():
        g = g * scale


def norm_is_within_its_limit(clip):
    """the norm after clipping, which must not exceed the limit."""
    gpt, idx, targets = model_and_batch()
    _, grads = gpt.loss_and_grads(idx, targets)
    clip(grads, 0.1)
    assert np.sqrt(squared_norm(grads.flat)) <= 0.1


def small_gradients_stay(clip):
    """gradients below the limit, which must not change."""
    gpt, idx, targets = model_and_batch()
    _, grads = gpt.loss_and_grads(idx, targets)
    before = grads.flat.copy()
    clip(grads, 1e6)
    assert np.array_equal(grads.flat, before)


BUGS.append(Bug(
    "Clipping that does nothing",
    "`g = g * scale` in a loop binds the name g to a new array and does not change the gradient. "
    "There is no error, and training is stable until a gradient is too large. A test must compute "
    "the norm after clipping.",
    right="flat *= clip_scale(np.sqrt(squared_norm(flat)), limit)",
    wrong="g = g * scale",
    correct=clipped, broken=clipped_copies,
    check=norm_is_within_its_limit, blind=small_gradients_stay,
))


def decay_by_group(gpt, grads):
    AdamW(gpt.params).step(grads.flat, 1e-2)


def decay_of_everything(gpt, grads):
    decay_by_group(gpt, grads)
    for array in gpt.params.values():
        if array.ndim == 1:
            array *= 1 - 1e-2 * 0.1


def only_matrices_decay(step):
    """a step with zero gradients: matrices must shrink, biases and norms must not change."""
    gpt, _, _ = model_and_batch()
    before = {name: array.copy() for name, array in gpt.params.items()}
    step(gpt, gpt.gradients())
    for name, array in gpt.params.items():
        factor = 1 - 1e-2 * 0.1 if array.ndim == 2 else 1
        np.testing.assert_allclose(array, before[name] * factor, rtol=1e-14)


def matrices_decay(step):
    """that the matrices shrink."""
    gpt, _, _ = model_and_batch()
    before = gpt.params["wte.weight"].copy()
    step(gpt, gpt.gradients())
    assert np.all(np.abs(gpt.params["wte.weight"]) < np.abs(before))


BUGS.append(Bug(
    "LayerNorm and biases decay",
    "Weight decay is applied to every parameter. It pulls LayerNorm's w towards 0, which would "
    "switch the layer off, and biases have no reason to be small. The final loss is a little "
    "higher, and no gradient test can detect it.",
    right="decay = self.weight_decay if whole.stop <= self.params.n_decayed else 0.0",
    wrong="array *= 1 - 1e-2 * 0.1",
    correct=decay_by_group, broken=decay_of_everything, source=AdamW._update,
    check=only_matrices_decay, blind=matrices_decay,
))
