"""Generation: the model's prediction for the next token is drawn from, and the draw is appended.

While the text fits into the context, keys and values of the tokens already read are kept, in a
`KVCache`, and a new token costs one row of the forward pass. Beyond it the context slides: every
token then stands at another position and is computed anew, exactly as the full forward pass would.
"""

from dataclasses import dataclass

import numpy as np

from npgpt.backend import array_module, to_host
from npgpt.cli.options import Options, option
from npgpt.errors import RunError, UserError


class KVCache:
    """The keys and values of every layer for the tokens read so far."""

    def __init__(self, n_layer, block_size):
        self.layers = [LayerKV(block_size) for _ in range(n_layer)]

    @property
    def length(self):
        """How many tokens have been read."""
        return self.layers[0].length


class LayerKV:
    """The keys and values of one layer, in buffers for the whole context."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.length = 0
        self.k = self.v = None

    def extend(self, k, v):
        """k, v (B, H, T, D) of new tokens -> k, v (B, H, Tk, D) of all tokens: views."""
        if self.k is None:
            B, H, _, D = k.shape
            empty = array_module(k).empty
            self.k, self.v = (empty((B, H, self.block_size, D), dtype=k.dtype) for _ in "kv")
        start, self.length = self.length, self.length + k.shape[2]
        self.k[:, :, start:self.length] = k
        self.v[:, :, start:self.length] = v
        return self.k[:, :, :self.length], self.v[:, :, :self.length]


@dataclass(frozen=True)
class Sampling(Options):
    """How to draw. Raises UserError, a ValueError, for a value that cannot be."""

    max_new_tokens: int = option(500, "tokens to write", at_least=0)
    temperature: float = option(1.0, "what logits are divided by; 0: the likeliest", at_least=0)
    top_k: int | None = option(None, "draw from the k likeliest tokens alone", at_least=1)
    top_p: float | None = option(
        None, "and from the likeliest whose probabilities reach p alone", above=0, at_most=1
    )
    seed: int | None = option(None, "of the draws (default: another each time)", at_least=0)


def generate(model, idx, sampling):
    """idx (B, T), T >= 1 -> (B, max_new_tokens) int, a NumPy array: what the model writes."""
    steps = list(stream(model, idx, sampling))
    return np.stack(steps, axis=1) if steps else np.empty((len(idx), 0), np.int64)


def stream(model, idx, sampling):
    """Yield the tokens after idx (B, T), T >= 1, one place at a time, each (B,) int on the host.

    Row b draws from a stream of its own, which the other rows do not change. Raises UserError if
    there is no token to start from.
    """
    idx = np.asarray(idx)
    if idx.ndim != 2 or idx.shape[1] == 0:
        raise UserError(f"generation starts from at least one token (B, T), not from {idx.shape}")
    s, block_size = sampling, model.config.block_size
    draws = [np.random.default_rng(None if s.seed is None else [s.seed, row])
             for row in range(len(idx))]

    kv = KVCache(model.config.n_layer, block_size)
    new = idx[:, -block_size:]                      # what the model has not read yet
    for _ in range(s.max_new_tokens):
        if kv.length + new.shape[1] > block_size:   # the context slides: read all of it again
            kv = KVCache(model.config.n_layer, block_size)
            new = idx[:, -block_size:]
        logits = to_host(model.logits(new, kv)[:, -1])                      # (B, V)
        if not np.isfinite(logits).all():
            raise RunError("the model's logits are not finite numbers: its training failed")
        probs = probabilities(logits, s.temperature, s.top_k, s.top_p)      # (B, V)
        thresholds = np.array([draw.random() for draw in draws])
        new = _draw(probs, thresholds)[:, None]                             # (B, 1)
        idx = np.concatenate([idx[:, -block_size:], new], axis=1)
        yield new[:, 0]


def probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """logits (B, V), on the host -> (B, V) float64 to draw from, 0 for what is left out.

    top_k keeps the k likeliest tokens; of those, top_p keeps the fewest likeliest whose
    probabilities reach p (Holtzman et al. 2020, arXiv:1904.09751).
    """
    logits = logits.astype(np.float64)
    likeliest = logits.max(-1, keepdims=True)
    if temperature == 0:
        first = logits.argmax(-1)[:, None]
        return (np.arange(logits.shape[-1]) == first).astype(np.float64)
    with np.errstate(over="ignore"):                # of a tiny temperature: -inf, as it should be
        probs = np.exp((logits - likeliest) / temperature)
    order = np.argsort(-logits, axis=-1, kind="stable")                     # likeliest first
    ranked = np.take_along_axis(probs, order, -1)
    if top_k is not None:
        ranked[:, top_k:] = 0
    ranked /= ranked.sum(-1, keepdims=True)
    if top_p is not None:
        before = np.cumsum(ranked, -1) - ranked     # the probability of all that rank higher
        ranked[before >= top_p] = 0                 # the likeliest has 0 before it, and stays
        ranked /= ranked.sum(-1, keepdims=True)
    np.put_along_axis(probs, order, ranked, -1)
    return probs


def _draw(probs, thresholds):
    """probs (B, V), thresholds (B,) in [0, 1) -> (B,): where the running sum passes them."""
    reached = np.cumsum(probs, -1)
    reached /= reached[:, -1:]          # exactly 1 at the end, so that something is always reached
    return (reached <= thresholds[:, None]).sum(-1)

