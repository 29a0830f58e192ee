"""The loss over a whole text, in windows that overlap.

A window has as many tokens as the context. The next window begins `stride` tokens later, and only
its last `stride` tokens are predicted, with those before as their context. So every token but the
first is predicted once. A smaller stride gives each token more context, and takes longer. These are
the windows of Hugging Face's guide to the perplexity of models with a fixed length.
"""

import math
from dataclasses import dataclass

import numpy as np

from npgpt.backend import to_host
from npgpt.errors import RunError
from npgpt.training.evaluation import bits_per_byte

LOGITS = 2**24      # of a batch


@dataclass(frozen=True)
class Result:
    """The loss over a text."""

    loss: float              # nats per token
    tokens: int              # predicted ones: all but the first
    bytes: int               # of these

    @property
    def perplexity(self):
        """exp(loss), infinite if that is too large for a number."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self):
        """The loss in bits per byte of the text, which does not depend on the tokenizer."""
        return bits_per_byte(self.loss, self.bytes / self.tokens)


def whole_loss(model, tokenizer, ids, stride, after_batch=lambda done, total: None):
    """Token ids (N,) of a text -> Result. after_batch(done, total): called with numbers of tokens.
    There must be two tokens or more. The tokenizer's prefix is not put before the text. Raises
    RunError if the loss is not finite."""
    length = window_length(model)
    lengths, nats, n_bytes, done = tokenizer.byte_lengths, 0.0, 0, 0
    for windows, new in batches(len(ids), length, stride,
                                max(1, LOGITS // (length * model.config.vocab_size))):
        tokens = np.stack([ids[window] for window in windows]).astype(np.int64)
        idx, targets = tokens[:, :-1], tokens[:, 1:].copy()
        n_bytes += int(lengths[targets[:, -new:]].sum())
        targets[:, :-new] = -1                          # these are the context
        nats += float(to_host(model.loss(idx, targets))) * new * len(windows)
        done += new * len(windows)
        after_batch(done, len(ids) - 1)
    if not math.isfinite(nats):
        raise RunError("the loss is not finite; the training of the model has diverged")
    return Result(nats / done, done, n_bytes)


def window_length(model):
    """-> the number of tokens in a window."""
    return max(2, model.config.block_size)


def batches(n, length, stride, rows):
    """Yield the windows of n tokens, slices, in batches of at most this number of rows, with how
    many of the last tokens of each are predicted."""
    first = min(length, n)
    yield [slice(0, first)], first - 1
    starts = range(stride, n - length + 1, stride)               # of whole windows
    for at in range(0, len(starts), rows):
        yield [slice(start, start + length) for start in starts[at:at + rows]], stride
    end = starts[-1] + length if starts else first
    if end < n:
        start = starts[-1] + stride if starts else stride
        yield [slice(start, n)], n - end
