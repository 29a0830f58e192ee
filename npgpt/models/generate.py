"""Generation: sample the next token from the model's prediction, append it, and repeat.

While the text fits into the context, a `KVCache` stores the keys and values of earlier tokens, and
a new token costs one row of the forward pass. Beyond that the context slides: every token then has
another position, and the whole context is computed again, exactly as by the full forward pass.
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
        """The number of tokens read so far."""
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
            self.k, self.v = (empty((B, H, self.block_size, D), dtype=k.dtype) for _ in range(2))
        start, self.length = self.length, self.length + k.shape[2]
        self.k[:, :, start:self.length] = k
        self.v[:, :, start:self.length] = v
        return self.k[:, :, :self.length], self.v[:, :, :self.length]


@dataclass(frozen=True)
class Sampling(Options):
    """The options of sampling. Raises UserError, a ValueError, for an invalid value."""

    max_new_tokens: int = option(500, "tokens to generate", at_least=0)
    temperature: float = option(1.0, "divisor of the logits; 0: always the most likely token",
                                at_least=0)
    top_k: int | None = option(None, "sample only from the k most likely tokens, and from those as "
                               "likely as the last of them", at_least=1)
    top_p: float | None = option(
        None, "sample only from the fewest most likely tokens whose probabilities sum to at least "
        "p", above=0, at_most=1
    )
    min_p: float | None = option(None, "sample only from tokens with at least p times the "
                                 "probability of the most likely one", at_least=0, at_most=1)
    repetition_penalty: float = option(
        1.0, "divisor of the positive logits, and factor of the negative ones, of tokens that have "
        "occurred; above 1: fewer repetitions", at_least=0.01, at_most=100
    )
    seed: int | None = option(None, "seed of the sampling (default: random)", at_least=0)


def generate(model, idx, sampling, end=None):
    """idx (B, T), T >= 1 -> (B, n) int, a NumPy array: the generated tokens, as in `stream`."""
    tokens = list(stream(model, idx, sampling, end))
    return np.stack(tokens, axis=1) if tokens else np.empty((len(idx), 0), np.int64)


def stream(model, idx, sampling, end=None):
    """Yield the tokens after idx (B, T), T >= 1, one position at a time, each (B,) int on the host.

    There are max_new_tokens of them or, if every row has ended before, fewer: a row ends with the
    token `end`, which is then repeated. Every row has its own random stream, so it does not depend
    on the other rows. Raises UserError if idx has no token.
    """
    return (tokens for tokens, _ in predictions(model, idx, sampling, end))


def predictions(model, idx, sampling, end=None):
    """Yield the tokens of `stream`, each time with the logits (B, V) from which they were drawn."""
    idx = np.asarray(idx)
    if idx.ndim != 2 or idx.shape[1] == 0:
        raise UserError(f"idx must have the shape (B, T) and at least one token, got {idx.shape}")
    s, block_size, V = sampling, model.config.block_size, model.config.vocab_size
    rngs = [np.random.default_rng(None if s.seed is None else [s.seed, row])
            for row in range(len(idx))]
    model.check_tokens(idx)
    occurred = np.zeros((len(idx), V), bool)        # in the whole text, also before the context
    np.put_along_axis(occurred, idx, True, 1)
    has_ended = np.zeros(len(idx), bool)

    kv = KVCache(model.config.n_layer, block_size)
    new = idx[:, -block_size:]                      # tokens that the model has not read yet
    for _ in range(s.max_new_tokens):
        if kv.length + new.shape[1] > block_size:   # the context slides: read all of it again
            kv = KVCache(model.config.n_layer, block_size)
            new = idx[:, -block_size:]
        logits = to_host(model.logits(new, kv)[:, -1])                      # (B, V)
        if not np.isfinite(logits).all():
            raise RunError("the model's logits are not finite; its training has diverged")
        penalised = penalise(logits, occurred, s.repetition_penalty)
        probs = probabilities(penalised, s.temperature, s.top_k, s.top_p, s.min_p)      # (B, V)
        thresholds = np.array([rng.random() for rng in rngs])
        new = draw(probs, thresholds)[:, None]                              # (B, 1)
        if end is not None:
            new[has_ended] = end
            has_ended |= new[:, 0] == end
        np.put_along_axis(occurred, new, True, 1)
        idx = np.concatenate([idx[:, -block_size:], new], axis=1)
        yield new[:, 0], logits
        if has_ended.all():
            return


def penalise(logits, occurred, penalty):
    """logits (B, V), on the host; occurred (B, V) bool: the tokens that are in a row already -> the
    logits with their penalty (Keskar et al. 2019, arXiv:1909.05858). So does transformers."""
    if penalty == 1:
        return logits
    logits = logits.astype(np.float64)
    lower = np.where(logits < 0, logits * penalty, logits / penalty)
    return np.where(occurred, lower, logits)


def probabilities(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """logits (B, V), on the host -> (B, V) float64, the distribution to sample from.

    top_k keeps the k most likely tokens, and those as likely as the last of them; of these, top_p
    keeps the fewest most likely ones whose probabilities sum to at least p (Holtzman et al. 2020,
    arXiv:1904.09751), of equally likely ones those with the higher ids; of these, min_p keeps those
    with at least p times the probability of the most likely one (Nguyen et al. 2024,
    arXiv:2407.01082). So does transformers.
    """
    logits = logits.astype(np.float64)
    likeliest = logits.max(1, keepdims=True)
    if temperature == 0:
        first = logits.argmax(1)[:, None]
        return (np.arange(logits.shape[1]) == first).astype(np.float64)
    with np.errstate(over="ignore"):                # a tiny temperature gives -inf, as it should
        probs = np.exp((logits - likeliest) / temperature)
    if top_k is not None:
        last = np.sort(logits)[:, -top_k:][:, :1]                           # the k-th, (B, 1)
        probs[logits < last] = 0
    probs /= probs.sum(1, keepdims=True)
    if top_p is not None:
        order = np.argsort(logits, kind="stable")                           # most likely last
        ranked = np.take_along_axis(probs, order, 1)
        is_left_out = np.cumsum(ranked, 1) <= 1 - top_p
        is_left_out[:, -1] = False                  # the most likely token is always kept
        ranked[is_left_out] = 0
        np.put_along_axis(probs, order, ranked, 1)
        probs /= probs.sum(1, keepdims=True)
    if min_p is not None:
        probs[probs < min_p * probs.max(1, keepdims=True)] = 0
        probs /= probs.sum(1, keepdims=True)
    return probs


def draw(probs, thresholds):
    """probs (B, V), thresholds (B,) in [0, 1) -> (B,): the first token whose cumulative probability
    exceeds the threshold. A row need not sum to 1."""
    reached = np.cumsum(probs, 1)
    reached /= reached[:, -1:]          # exactly 1 at the end, so that there always is a token
    return (reached <= thresholds[:, None]).sum(1)
