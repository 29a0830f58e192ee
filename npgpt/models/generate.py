"""Generation: sample the next token from the model's prediction, append it, and repeat.

While the text fits into the context, a `KVCache` stores the keys and values of earlier tokens, and
a new token costs one row of the forward pass. Beyond that the context slides: every token then has
another position, and the whole context is read again.
"""

from typing import NamedTuple

import numpy as np
import numpy.random  # or else NumPy imports it with the first draw, and can swallow a Ctrl-C then

from npgpt.backend import array_module, to_host
from npgpt.errors import RunError, UserError
from npgpt.models.sampling import draw, penalized, probabilities

READ = 128     # tokens of a prompt that are read at once
SMALLEST = 64  # tokens for which the first buffers have room


class KVCache:
    """The keys and values of every layer for the tokens read so far."""

    def __init__(self, n_layer, block_size):
        self.layers = [LayerKV(block_size) for _ in range(n_layer)]
        self.tokens = None       # (B, n), those that `read` has read to the end

    @property
    def length(self):
        """The number of tokens read so far."""
        return self.layers[0].length

    def rewind(self, idx):
        """Forget all tokens from the first on that is another one in idx (B, T), T >= 1 -> the rest
        of idx, which is to be read: at least the last token."""
        kept = 0
        if self.tokens is not None and len(self.tokens) == len(idx):
            n = min(self.tokens.shape[1], idx.shape[1] - 1)
            same = (self.tokens[:, :n] == idx[:, :n]).all(0)
            kept = n if same.all() else int(same.argmin())
        self.tokens = idx[:, :kept]
        for layer in self.layers:
            layer.length = kept
            if kept == 0:
                layer.k = layer.v = None          # the number of rows may be another one
        return idx[:, kept:]


class LayerKV:
    """The keys and values of one layer, in buffers that grow up to the size of the context."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.length = 0
        self.k = self.v = None

    def extend(self, k, v):
        """k, v (B, G, T, D) of new tokens -> k, v (B, G, Tk, D) of all tokens: views."""
        start, self.length = self.length, self.length + k.shape[2]
        if self.k is None or self.length > self.k.shape[2]:
            self._grow(k)
        self.k[:, :, start:self.length] = k
        self.v[:, :, start:self.length] = v
        return self.k[:, :, :self.length], self.v[:, :, :self.length]

    def _grow(self, k):
        """Let the buffers hold all tokens: at least twice as many as before."""
        B, G, T, D = k.shape
        before = self.length - T
        size = min(self.block_size, max(self.length, 2 * before, SMALLEST))
        for name in ("k", "v"):
            old, new = getattr(self, name), array_module(k).empty((B, G, size, D), dtype=k.dtype)
            if old is not None:
                new[:, :, :before] = old[:, :, :before]
            setattr(self, name, new)


class Step(NamedTuple):
    """One position of a generation."""

    tokens: np.ndarray       # (B,) int: what was drawn
    logits: np.ndarray       # (B, V): the model's, before any option

    @property
    def probabilities(self):
        """(B,): of the drawn tokens in the model's own distribution."""
        probs = probabilities(self.logits)
        return np.take_along_axis(probs, self.tokens[:, None], 1)[:, 0]


def generate(model, idx, sampling, end=None):
    """idx (B, T), T >= 1 -> (B, n) int, a NumPy array: the generated tokens. n is max_new_tokens,
    or less if every row has ended. end: as for `stream`."""
    steps = list(stream(model, idx, sampling, end))
    return np.stack(steps, axis=1) if steps else np.empty((len(idx), 0), np.int64)


def read(model, idx, kv):
    """Read tokens (B, T), T >= 1, after those in kv -> logits (B, V) of the next token. At most
    READ at a time: then attention's scores stay in the cache of a processor."""
    for start in range(0, idx.shape[1], READ):
        part = idx[:, start:start + READ]
        logits = model.logits(part, kv, last=True)
        kv.tokens = part if kv.tokens is None else np.concatenate([kv.tokens, part], axis=1)
    return logits[:, 0]


def stream(model, idx, sampling, end=None):
    """Yield the tokens after idx (B, T), T >= 1, one position at a time, each (B,) int on the host.

    end: the token that ends a text. A row that has ended has this token from then on, and the last
    position is the one at which all rows have ended. Every row has its own random stream, so it
    does not depend on the other rows. Raises UserError if idx has no token.
    """
    return (step.tokens for step in steps(model, idx, sampling, end))


def steps(model, idx, sampling, end=None, kv=None):
    """Yield a Step for each position, as `stream` yields its tokens. kv: the KVCache of an earlier
    call, whose tokens are not read again as far as idx begins with them."""
    idx = np.asarray(idx)
    if idx.ndim != 2 or idx.shape[1] == 0:
        raise UserError(f"idx must have the shape (B, T) and at least one token, got {idx.shape}")
    s, c = sampling, model.config
    model._tokens(idx, c.vocab_size)                # raises UserError for ids outside 0..V-1
    rngs = [np.random.default_rng(None if s.seed is None else [s.seed, row])
            for row in range(len(idx))]
    rows, seen = np.arange(len(idx)), None
    if s.repetition_penalty != 1:
        seen = np.zeros((len(idx), c.vocab_size), bool)      # tokens of the text so far
        np.put_along_axis(seen, idx, True, 1)
    has_ended = np.zeros(len(idx), bool)

    kv = KVCache(c.n_layer, c.block_size) if kv is None else kv
    new = kv.rewind(idx[:, -c.block_size:])         # tokens that the model has not read yet
    for _ in range(s.max_new_tokens):
        if kv.length + new.shape[1] > c.block_size:  # the context slides: read all of it again
            idx = np.concatenate([kv.tokens, new], axis=1)
            new = kv.rewind(idx[:, -c.block_size:])
        logits = to_host(read(model, new, kv))                              # (B, V)
        if not np.isfinite(logits).all():
            raise RunError("the model's logits are not finite; its training has diverged")
        lowered = logits if seen is None else penalized(logits, seen, s.repetition_penalty)
        probs = probabilities(lowered, s.temperature, s.top_k, s.top_p, s.min_p)    # (B, V)
        thresholds = np.array([rng.random() for rng in rngs])
        new = draw(probs, thresholds)[:, None]                              # (B, 1)
        if end is not None:
            new[has_ended] = end
        if seen is not None:
            seen[rows, new[:, 0]] = True
        yield Step(new[:, 0], logits)
        if end is not None:
            has_ended = new[:, 0] == end
            if has_ended.all():
                return
