"""Evaluation: the loss on a split, and a sample of text."""

import math

import numpy as np

from npgpt.backend import to_host

SAMPLE_TOKENS = 200


class Interrupted(Exception):
    """An evaluation was stopped, in every rank."""


def go_on(done, total):
    """Never stops an evaluation."""
    return False


def evaluate(model, data, config, comm, after_batch=go_on):
    """-> losses on the training and the validation split, always over the same windows.
    after_batch: as for `mean_loss`. Raises Interrupted."""
    windows = config.eval_iters * config.batch_size
    return tuple(mean_loss(model, data, split, config, comm, windows, after_batch)
                 for split in (data.train, data.val))


def mean_loss(model, data, split, config, comm, windows=None, after_batch=go_on):
    """The loss in nats per token over a number of evenly spaced windows of a split; None: over all
    its windows. The work is divided among the ranks.

    after_batch(done, total) is called in every rank after each of its `total` batches, and tells
    whether to stop. Raises Interrupted in all ranks if one of them stops."""
    offsets = data.offsets(split, windows)
    parts = np.split(offsets, range(config.batch_size, len(offsets), config.batch_size))
    start, stop = comm.rows(len(parts))
    total, done = 0.0, 0
    for part in parts[start:stop]:
        total += len(part) * float(to_host(model.loss(*data.windows(split, part))))
        done += 1
        if comm.any_so_far(after_batch(done, stop - start)):
            break
    if comm.all_reduce(done) < len(parts):
        raise Interrupted
    return float(comm.all_reduce(total) / len(offsets))


def bits_per_byte(loss, bytes_per_token):
    """The loss in nats per token, in a unit that does not depend on the tokenizer."""
    return loss / math.log(2) / bytes_per_token if bytes_per_token else math.inf


def sample(model, data, seed):
    """-> a text generated from the start token."""
    tokenizer = data.tokenizer
    ids = model.generate(tokenizer.start[None], SAMPLE_TOKENS, temperature=0.8, seed=seed)
    return tokenizer.decode(ids[0])
