"""An independent reference trainer in a few lines.

Only the model's gradients are npgpt's. Batches, schedule, clipping, AdamW and Muon are implemented
again, as simply as possible and for one parameter at a time. Nothing is imported from npgpt.optim,
npgpt.training or npgpt.parallel.
"""

import math

import numpy as np

from npgpt.layers import Key


def train(model, ids, c, steps):
    """Train a GPT on token ids. config: has the names of train.py's options."""
    state = {name: [np.zeros(w.shape), np.zeros(w.shape)] for name, w in model.params.items()}
    rows, T = c["batch_size"] * c["grad_accum"], model.config.block_size
    train_ids = ids[:int(0.9 * len(ids))]
    for step in range(steps):
        starts = np.random.default_rng([c["seed"], step]).integers(len(train_ids) - T, size=rows)
        windows = np.array([train_ids[start:start + T + 1] for start in starts])
        key = Key(c["seed"], step)
        _, grads = model.loss_and_grads(windows[:, :-1], windows[:, 1:], key)    # all rows at once
        grads = {name: g.astype(np.float64) for name, g in grads.items()}
        norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
        clip = min(1.0, c["grad_clip"] / (norm + 1e-6)) if c["grad_clip"] else 1.0
        lr = learning_rate(step, c)
        for name, g in grads.items():
            is_matrix = name.startswith("h.") and g.ndim == 2
            if c["optimizer"] == "muon" and is_matrix:
                update = muon(g * clip, state[name], c)
                rate = lr * c["muon_lr"] / c["learning_rate"]
            else:
                update, rate = adamw(g * clip, state[name], step + 1, c), lr
            decay = c["weight_decay"] if g.ndim == 2 else 0.0
            model.params[name] -= (rate * (update + decay * model.params[name])).astype(np.float32)


def learning_rate(step, c):
    """Linear warm-up, a plateau, then cosine or linear decay."""
    top, bottom, end = c["learning_rate"], c["min_lr"], c["lr_decay_iters"]
    if step < c["warmup_iters"]:
        return top * (step + 1) / (c["warmup_iters"] + 1)
    start = max(c["warmup_iters"], c["hold"] * end)
    done = min(max((step - start) / (end - start), 0), 1) if end > start else float(step >= end)
    if c["decay"] == "cosine":
        done = 0.5 - 0.5 * math.cos(math.pi * done)
    return top - (top - bottom) * done


def adamw(g, state, t, c):
    m, v = state
    m[...] = c["beta1"] * m + (1 - c["beta1"]) * g
    v[...] = c["beta2"] * v + (1 - c["beta2"]) * g**2
    return (m / (1 - c["beta1"]**t)) / (np.sqrt(v / (1 - c["beta2"]**t)) + 1e-8)


def muon(g, state, c):
    m, beta = state[0], c["muon_momentum"]
    m[...] = beta * m + (1 - beta) * g
    nesterov = (1 - beta) * g + beta * m
    n_in, n_out = g.shape
    parts = np.split(nesterov, 3, axis=1) if n_out == 3 * n_in else [nesterov]      # q, k and v
    return np.concatenate([math.sqrt(max(1, part.shape[1] / n_in)) * newton_schulz(part)
                           for part in parts], axis=1)


def newton_schulz(x):
    """Five iterations on the matrix itself."""
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x
