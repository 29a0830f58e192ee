"""Evaluation: the loss on a split, and a sample of text."""

import numpy as np

from npgpt.backend import to_host

SAMPLE_TOKENS = 200


def evaluate(model, data, config, comm):
    """-> losses on the training and the validation split, always over the same windows."""
    windows = config.eval_iters * config.batch_size
    return tuple(mean_loss(model, data, split, config, comm, windows)
                 for split in (data.train, data.val))


def mean_loss(model, data, split, config, comm, windows=None):
    """The loss in nats per token over a number of evenly spaced windows of a split; None: over all
    its windows. The work is divided among the ranks."""
    offsets = data.offsets(split, windows)
    parts = np.split(offsets, range(config.batch_size, len(offsets), config.batch_size))
    start, stop = comm.rows(len(parts))
    total = sum(len(part) * float(to_host(model.loss(*data.windows(split, part))))
                for part in parts[start:stop])
    return float(comm.all_reduce(total) / len(offsets))


def sample(model, data, seed):
    """-> a text generated from the start token."""
    tokenizer = data.tokenizer
    ids = model.generate(tokenizer.start[None], SAMPLE_TOKENS, temperature=0.8, seed=seed)
    return tokenizer.decode(ids[0])
