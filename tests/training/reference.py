"""An independent reference trainer in a few lines.

Only the model and its gradients are npgpt's. Batches, schedule, clipping, AdamW, Muon, evaluations
and samples are implemented again, as simply as possible and for one parameter at a time. Nothing is
imported from npgpt.optim, npgpt.training, npgpt.parallel or npgpt.text.
"""

import math
from typing import NamedTuple

import numpy as np

from npgpt.layers import Key


class Trained(NamedTuple):
    """What a run leaves behind, apart from the model."""

    metrics: list           # the lines of metrics.jsonl, without times
    samples: list           # the token ids of the sample that each evaluation shows
    moments: dict           # name of a parameter -> its first and second moment


def train(model, ids, c, start, sampled):
    """Train a model on token ids -> Trained. c: the value of each option of train.py, by its name.
    start: the token id that samples begin with; sampled: the number of their tokens."""
    moments = {name: (np.zeros(w.shape), np.zeros(w.shape)) for name, w in model.params.items()}
    rows, T = c["batch_size"] * c["grad_accum"], model.config.block_size
    border = len(ids) * 9 // 10
    metrics = [evaluation(model, ids, c, 0)]
    samples = [sample(model, start, sampled, c["seed"])]
    for step in range(c["max_iters"]):
        rng = np.random.default_rng([c["seed"], step])
        windows = np.array([ids[at:at + T + 1] for at in rng.integers(border - T, size=rows)])
        key = Key(c["seed"], step)
        loss, grads = model.loss_and_grads(windows[:, :-1], windows[:, 1:], key)  # all rows at once
        norm = math.sqrt(sum((g.astype(np.float64)**2).sum() for g in grads.values()))
        clip = min(1.0, c["grad_clip"] / (norm + 1e-6)) if c["grad_clip"] else 1.0
        lr = learning_rate(step, c)
        for name, g in grads.items():
            w, g = model.params[name], g.astype(np.float64) * clip
            if c["optimizer"] == "muon" and name.startswith(("h.", "layers.")) and g.ndim == 2:
                ends = ends_of_parts(name, g.shape[1], model.config)
                update = muon(g, moments[name], ends, c)
                rate = lr * c["muon_lr"] / c["learning_rate"]
            else:
                update, rate = adamw(g, moments[name], step + 1, c), lr
            decay = c["weight_decay"] if g.ndim == 2 else 0.0
            w -= (rate * (update + decay * w)).astype(w.dtype)
        done = step + 1
        if done % c["log_interval"] == 0:
            metrics.append({"step": done, "loss": float(loss), "learning_rate": lr,
                            "grad_norm": norm})
        if done % c["eval_interval"] == 0 or done == c["max_iters"]:
            metrics.append(evaluation(model, ids, c, done))
            samples.append(sample(model, start, sampled, c["seed"]))
    loss = loss_of(model, ids[border:], None)
    metrics.append({"step": done, "whole_val_loss": loss, "bits_per_byte": loss / math.log(2)})
    return Trained(metrics, samples, moments)


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


def adamw(g, moments, t, c):
    m, v = moments
    m[...] = c["beta1"] * m + (1 - c["beta1"]) * g
    v[...] = c["beta2"] * v + (1 - c["beta2"]) * g**2
    return (m / (1 - c["beta1"]**t)) / (np.sqrt(v / (1 - c["beta2"]**t)) + 1e-8)


def ends_of_parts(name, n_out, config):
    """Where the matrices end that are side by side in a parameter, all but the last one: q, k and
    v, or gate and up."""
    if "c_attn" in name:
        return [n_out // 3, 2 * n_out // 3]
    if "qkv_proj" in name:
        q, kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        return [q, q + kv]
    return [n_out // 2] if "gate_up_proj" in name else []


def muon(g, moments, ends, c):
    m, beta = moments[0], c["muon_momentum"]
    m[...] = beta * m + (1 - beta) * g
    nesterov = (1 - beta) * g + beta * m
    return np.concatenate([math.sqrt(max(1, part.shape[1] / len(g))) * newton_schulz(part)
                           for part in np.split(nesterov, ends, axis=1)], axis=1)


def newton_schulz(x):
    """Five iterations on the matrix itself."""
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x


def evaluation(model, ids, c, step):
    """Both splits, over batch_size * eval_iters windows of each."""
    border, windows = len(ids) * 9 // 10, c["batch_size"] * c["eval_iters"]
    val_loss = loss_of(model, ids[border:], windows)
    return {"step": step, "train_loss": loss_of(model, ids[:border], windows),
            "val_loss": val_loss, "val_bits_per_byte": val_loss / math.log(2)}      # of ASCII


def loss_of(model, split, windows):
    """The mean loss over this number of windows, spread over a split from its beginning to its last
    whole window; None: over all. They do not overlap, and have no dropout."""
    T = model.config.block_size
    starts = [at for at in range(0, len(split), T) if at + T + 1 <= len(split)]
    if windows is not None and windows < len(starts):
        gap = (len(starts) - 1) / (windows - 1) if windows > 1 else 0
        starts = [starts[round(i * gap)] for i in range(windows)]
    losses = [model.loss(split[None, at:at + T], split[None, at + 1:at + T + 1]) for at in starts]
    return float(np.mean(losses))


def sample(model, start, tokens, seed, temperature=0.8):
    """Token ids that follow `start`, each drawn from the whole distribution of the next token."""
    ids, rng = [start], np.random.default_rng([seed, 0])
    for _ in range(tokens):
        logits = model.logits(np.array([ids[-model.config.block_size:]]))[0, -1]
        weights = np.exp(logits.astype(np.float64) / temperature)
        ids.append(int(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(),
                                       side="right")))
    return ids[1:]
