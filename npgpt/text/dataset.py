"""Batches: windows of tokens on a device.

The batch of a step depends only on (seed, step). There is no random state, so a run that is
resumed, or divided among ranks, uses the same batches.
"""

import numpy as np

from npgpt.backend import array_module, get_device, to_host
from npgpt.errors import RunError, UserError

CHUNK = 256      # windows that are counted at once


class Dataset:
    """The splits of a TokenSource on a device, and their windows of block_size tokens."""

    def __init__(self, source, block_size, device="cpu"):
        """device: a Device or its name. Raises UserError if a split is too short for one window."""
        for split, ids in (("training", source.train), ("validation", source.val)):
            if len(ids) <= block_size:
                raise UserError(
                    f"the text is too short: its {split} split has {len(ids)} tokens, and a "
                    f"`block_size` of {block_size} needs at least {block_size + 1}"
                )
        self.tokenizer = source.tokenizer
        self.block_size = block_size
        self.device = get_device(device)
        self.train, self.val = source.train, source.val
        if not source.is_mapped:                 # a mapped file is read window by window
            self.train, self.val = map(self.device.to_device, (source.train, source.val))

    def batch(self, seed, step, rows, start=0, stop=None):
        """Rows start..stop of the training batch of (seed, step), which has `rows` rows
        -> idx, targets (stop - start, T). The targets are the tokens one position later."""
        # Each in words of its own. Of two numbers alone, a seed from 2**32 on, which has two words,
        # could pass for a smaller seed and its step.
        rng = np.random.default_rng([seed % 2**32, step, seed // 2**32])
        offsets = rng.integers(len(self.train) - self.block_size, size=rows)
        return self.windows(self.train, offsets[start:stop])

    def windows(self, split, offsets):
        """offsets (B,) into a split -> idx, targets (B, T), of the split's unsigned dtype: convert
        them before writing values outside its range, such as targets of -1. Raises RunError if a
        mapped file is damaged there."""
        xp = array_module(split)
        offsets = xp.asarray(offsets)[:, None] + xp.arange(self.block_size)
        idx, targets = split[offsets], split[offsets + 1]
        if isinstance(split, np.memmap):
            largest = max(idx.max(initial=0), targets.max(initial=0))
            if largest >= self.tokenizer.vocab_size:
                raise RunError(f"{split.filename} is damaged: it has the token {largest}, and the "
                               f"vocabulary ends at {self.tokenizer.vocab_size - 1}")
            idx, targets = (self.device.to_device(np.asarray(ids)) for ids in (idx, targets))
        return idx, targets

    def bytes_per_token(self, split, offsets):
        """The mean length in bytes of the targets of windows at offsets (B,) into a split."""
        lengths, total = self.tokenizer.byte_lengths, 0
        for part in np.split(offsets, range(CHUNK, len(offsets), CHUNK)):
            total += lengths[to_host(self.windows(split, part)[1])].sum()
        return float(total / (len(offsets) * self.block_size))

    def offsets(self, split, windows=None):
        """The offsets of consecutive windows of a split, without overlap: all of them (None), or
        this number of windows, evenly spaced. Always the same ones."""
        n = self.count(split)
        chosen = (np.arange(n) if windows is None or windows >= n else
                  np.linspace(0, n - 1, windows).round().astype(int))
        return chosen * self.block_size

    def count(self, split):
        """The number of all windows of a split, without overlap."""
        return (len(split) - 1) // self.block_size
