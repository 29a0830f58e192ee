"""Bugs between layers."""

import numpy as np

from npgpt import GPT, GPTConfig
from npgpt.gradcheck import check_gradients
from npgpt.layers import (
    Key,
    causal_mask,
    embedding_backward,
    embedding_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
)
from npgpt.models import blocks
from npgpt.models.blocks import block_backward, block_forward
from npgpt.models.generate import KVCache
from npgpt.models.gpt import gpt_forward
from npgpt.models.parameters import nest
from tests.cases import parameters
from tests.gallery.bug import Bug

BUGS = []
CONFIG = GPTConfig(vocab_size=7, block_size=6, n_layer=2, n_head=2, n_embd=8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def random_model(seed=0, **options):
    gpt = GPT(GPTConfig(**vars(CONFIG) | options), dtype="float64")
    gpt.params.flat[...] = normal(gpt.params.flat.size, seed=seed) * 0.4
    return gpt


# --- residual connections -------------------------------------------------------------------------

def block_in_parts(x, p, n_head, mask):
    """block_forward, with a cache of its own for each part."""
    h, ln_1 = layernorm_forward(x, p["ln_1.weight"], p["ln_1.bias"])
    h, attn = blocks.self_attention_forward(h, p["attn"], n_head, mask)
    x = x + h
    h, ln_2 = layernorm_forward(x, p["ln_2.weight"], p["ln_2.bias"])
    h, mlp = blocks.mlp_forward(h, p["mlp"])
    return x + h, (ln_1, attn, ln_2, mlp)


def residual_through_the_norm(dy, cache):
    ln_1, attn, ln_2, mlp = cache
    dp = {}
    dh, dp["mlp"] = blocks.mlp_backward(dy, mlp)
    dh, dp["ln_2.weight"], dp["ln_2.bias"] = layernorm_backward(dh, ln_2)
    dx = dy + dh
    dh, dp["attn"] = blocks.self_attention_backward(dx, attn)
    _, dp["ln_1.weight"], dp["ln_1.bias"] = layernorm_backward(dh, ln_1)
    dx, _, _ = layernorm_backward(dx + dh, ln_1)
    return dx, dp


def stacked(n):
    """-> function that checks the gradients of the parameters of n blocks."""
    x, mask = normal(2, 5, 8), causal_mask(np, 5, 5)
    ps = [nest(parameters(CONFIG.shapes(), np.random.default_rng(seed).standard_normal))["h"][0]
          for seed in range(n)]

    def check(pair):
        forward, backward = pair

        def forward_all(*ps):
            y, caches = x, []
            for p in ps:
                y, cache = forward(y, p, 2, mask)
                caches.append(cache)
            return y, caches

        def backward_all(dy, caches):
            gradients = []
            for cache in reversed(caches):
                dy, dp = backward(dy, cache)
                gradients.append(dp)
            return tuple(reversed(gradients))
        check_gradients(forward_all, backward_all, ps)
    return check


def two_blocks(pair):
    """the derivatives of the parameters of two stacked blocks."""
    stacked(2)(pair)


def one_block(pair):
    """the derivatives of the parameters of a single block."""
    stacked(1)(pair)


BUGS.append(Bug(
    "The residual's gradient goes through the norm",
    "In `x + f(norm(x))` the x on the left is not normalised, so its gradient must skip the norm. "
    "Here it is added before the norm's backward. The gradients of the block's own parameters are "
    "still correct; only the gradient that reaches the block below is wrong.",
    right="return dx + dh, dp",
    wrong="dx, _, _ = layernorm_backward(dx + dh, ln_1)",
    correct=(block_forward, block_backward), source=block_backward,
    broken=(block_in_parts, residual_through_the_norm), broken_source=residual_through_the_norm,
    check=two_blocks, blind=one_block,
))


# --- tied weights ---------------------------------------------------------------------------------

def bigram(idx, wte):
    """Logits of a model that consists only of a tied embedding."""
    x, emb = embedding_forward(idx, wte)
    logits, head = linear_forward(x, wte.T)
    return logits, (emb, head)


def both_uses(dlogits, cache):
    emb, head = cache
    dx, dhead, _ = linear_backward(dlogits, head)
    return dhead.T + embedding_backward(dx, emb)


def head_alone(dlogits, cache):
    _, head = cache
    _, dhead, _ = linear_backward(dlogits, head)
    return dhead.T


def head_twice(dlogits, cache):
    emb, head = cache
    dx, dhead, _ = linear_backward(dlogits, head)
    return 2 * dhead.T + embedding_backward(dx, emb)


def tied_gradient(backward):
    """the derivative of the tied table."""
    check_gradients(bigram, backward, [np.array([[1, 2, 2]]), normal(5, 4)])


def some_gradient(backward):
    """that the gradient has the right shape and is not zero."""
    logits, cache = bigram(np.array([[1, 2, 2]]), normal(5, 4))
    dw = backward(normal(*logits.shape, seed=1), cache)
    assert dw.shape == (5, 4) and dw.all()


for title, wrong, broken in (
    ("Tied weights: one gradient is dropped", "return dhead.T", head_alone),
    ("Tied weights: one gradient is doubled", "return 2 * dhead.T + embedding_backward(dx, emb)",
     head_twice),
):
    BUGS.append(Bug(
        title,
        "The table is used twice, as embedding and as head, so its gradient is the sum of both. If "
        "one is assigned instead of added, or added twice, the shape is still right and the model "
        "still learns. Only the derivative of the tied table itself shows the error.",
        right="return dhead.T + embedding_backward(dx, emb)", wrong=wrong,
        correct=both_uses, broken=broken, check=tied_gradient, blind=some_gradient,
    ))


def one_buffer(model):
    return lambda idx: model.logits(idx)


def tie_by_copy(model):
    head = model.params["wte.weight"].copy()
    untied = GPTConfig(**vars(model.config) | {"tie_weights": False})
    return lambda idx: gpt_forward(idx, model.params.tree | {"lm_head.weight": head}, untied)[0]


def tie_survives_a_step(make):
    """updating the table: the head must change with it."""
    model, idx = random_model(), np.array([[1, 2, 3]])
    logits = make(model)
    model.params["wte.weight"] += 0.1
    np.testing.assert_allclose(logits(idx), model.logits(idx))


def tie_at_the_start(make):
    """the logits of a new model."""
    model, idx = random_model(), np.array([[1, 2, 3]])
    np.testing.assert_allclose(make(model)(idx), model.logits(idx))


BUGS.append(Bug(
    "Tied weights: the tie is a copy",
    "The head is set to a copy of the embedding when the model is created. From the first step on "
    "they are two independent matrices. One buffer with one name cannot diverge.",
    right="return lambda idx: model.logits(idx)",
    wrong='head = model.params["wte.weight"].copy()',
    correct=one_buffer, broken=tie_by_copy, check=tie_survives_a_step, blind=tie_at_the_start,
))


# --- evaluation and generation --------------------------------------------------------------------

def evaluated_without_a_key(model, idx, targets, step):
    return model.loss(idx, targets)


def evaluated_as_in_training(model, idx, targets, step):
    return model.loss_and_grads(idx, targets, Key(1, step))[0]


def evaluation_repeats(evaluate):
    """evaluating twice, which must give the same bits."""
    idx, targets = np.random.default_rng(0).integers(7, size=(2, 3, 6))
    model = random_model(dropout=0.5)
    assert evaluate(model, idx, targets, 0) == evaluate(model, idx, targets, 1)


def evaluation_is_plausible(evaluate):
    """that the loss is a positive number."""
    idx, targets = np.random.default_rng(0).integers(7, size=(2, 3, 6))
    assert 0 < evaluate(random_model(dropout=0.5), idx, targets, 0) < 100


BUGS.append(Bug(
    "Dropout stays on in evaluation",
    "A global flag that is set in one place and forgotten in another leaves dropout on during "
    "evaluation or sampling. The loss is a little too high and different each time. Here there is "
    "no flag: without a key there is no dropout.",
    right="return model.loss(idx, targets)",
    wrong="return model.loss_and_grads(idx, targets, Key(1, step))[0]",
    correct=evaluated_without_a_key, broken=evaluated_as_in_training,
    check=evaluation_repeats, blind=evaluation_is_plausible,
))


def cached(model, idx):
    kv = KVCache(model.config.n_layer, model.config.block_size)
    return np.concatenate([model.logits(idx[:, t:t + 1], kv) for t in range(idx.shape[1])], axis=1)


class FirstPlaceAlways(KVCache):
    """Reports a length of 0, so every token gets position 0."""

    @property
    def length(self):
        return 0


def cached_at_the_first_place(model, idx):
    kv = FirstPlaceAlways(model.config.n_layer, model.config.block_size)
    return np.concatenate([model.logits(idx[:, t:t + 1], kv) for t in range(idx.shape[1])], axis=1)


def every_position(logits):
    """the logits at every position, compared with the full forward."""
    model, idx = random_model(), np.array([[1, 5, 2, 2, 6, 0]])
    full, _ = gpt_forward(idx, model.params.tree, model.config)
    np.testing.assert_allclose(logits(model, idx), full, atol=1e-12)


def first_position(logits):
    """the logits at the first position alone."""
    model, idx = random_model(), np.array([[1, 5, 2, 2, 6, 0]])
    full, _ = gpt_forward(idx, model.params.tree, model.config)
    np.testing.assert_allclose(logits(model, idx)[:, 0], full[:, 0], atol=1e-12)


BUGS.append(Bug(
    "The key-value cache changes the logits",
    "When text is generated one token at a time, each forward gets one token, and the embedding of "
    "position 0 is added to all of them. The text still looks like text. At every position, and "
    "beyond the end of the context, the logits must equal those of the full forward.",
    right="return self.layers[0].length",
    wrong="return 0",
    correct=cached, broken=cached_at_the_first_place,
    source=KVCache, broken_source=FirstPlaceAlways,
    check=every_position, blind=first_position,
))
