"""What every rank of `benchmarks.scale_out` does at one point: npgpt's own communication, timed.

`collectives` times what a training step does with the gradients and the parameters, on a buffer of
any size: begin, reduce_scatter, all_gather. `step` times whole steps of the trainer. Where ranks
outnumber the cores, their computing would be a fight for cores that separate machines do not have;
there a `Sleeper` computes.
"""

import statistics
import time

import numpy as np

from benchmarks.works import Tokens
from npgpt import GPT, GPTConfig
from npgpt.models.parameters import Param, Parameters
from npgpt.parallel import buckets, world
from npgpt.training.config import TrainingConfig
from npgpt.training.setup import distribute
from npgpt.training.step import batches_of_step, train_step

WARM_UP = 1


class Sleeper(GPT):
    """A GPT whose forward and backward sleep, and whose gradients are prepared. Each gradient is
    added when a backward would have it, so the sums of the buckets begin as in training."""

    def __init__(self, config, seconds):
        """seconds: of a forward and a backward together."""
        super().__init__(config, values=[(name, np.zeros(param.shape, np.float32)) for name, param
                                         in config.architecture().items()])
        self.seconds = seconds
        self._prepared = self.params.on(np.full_like(self.params.flat, 1e-3))

    def loss_and_grads(self, *batch, into):
        began, done = time.perf_counter(), self.seconds / 3       # of the forward
        per_number = (self.seconds - done) / self.params.flat.size
        order = list(reversed(self.params.architecture.items()))
        shared = [(name, param) for name, param in order if param.uses > 1]
        for name, param in shared + order:                        # the head's part is the first
            done += per_number * self.params[name].size / param.uses
            time.sleep(max(0.0, began + done - time.perf_counter()))
            into.add(name, self._prepared[name])
        return np.float64(0), into


def collectives(sizes, parts=1, repeats=3):
    """sizes: bytes of float32. parts: the number of buckets. -> for each size, the bytes, and the
    median seconds of the sum of the gradients and of gathering the parameters."""
    comm, found = world(), []
    for size in sizes:
        n = size // 4 // parts
        buckets.SIZE = n
        params = Parameters({f"{part}.weight": Param((n,), "matrix") for part in range(parts)},
                            np.zeros(parts * n, np.float32))
        model = _Holder(params)
        optimizer, buffers = distribute(model, TrainingConfig(device="cpu"), comm)
        grads, shards = params.gradients(buffers[comm.rank]), optimizer.shards
        grads.zero()

        def add_up(grads=grads, shards=shards):
            comm.begin(grads, shards, 1)
            comm.reduce_scatter(grads, shards)

        def gather(params=params, shards=shards):
            comm.all_gather(params.flat, shards)

        seconds = [(_slowest(add_up, comm), _slowest(gather, comm))
                   for _ in range(WARM_UP + repeats)][WARM_UP:]
        found.append([size, *map(statistics.median, zip(*seconds))])
    return found


def step(model, rows=1, sleep=None, steps=5):
    """model: options of GPTConfig. rows: of a rank's batch. sleep: seconds in place of computing;
    None: compute. -> the number of parameters and of buckets, the median seconds of a step, and of
    that the seconds that rank 0 spends in communication."""
    comm, config = world(), GPTConfig(**model)
    training = TrainingConfig(batch_size=rows * comm.size, device="cpu")
    gpt = GPT(config) if sleep is None else Sleeper(config, sleep)
    optimizer, ranks = distribute(gpt, training, comm)
    grads, data = gpt.gradients(ranks[comm.rank]), Tokens(config)
    communicated = []
    for name in ("all_reduce", "reduce_scatter", "all_gather"):
        setattr(comm, name, _timed(getattr(comm, name), communicated))
    seconds, spent = [], []
    for number in range(WARM_UP + steps):
        batches = list(batches_of_step(data, training, number, comm))
        communicated.clear()
        seconds.append(_slowest(lambda batches=batches: train_step(
            gpt, optimizer, batches, grads, comm, lr=1e-4, grad_clip=1.0), comm))
        spent.append(sum(communicated))
    return [gpt.params.n_trainable, len(buckets.buckets(gpt.params)),
            statistics.median(seconds[WARM_UP:]), statistics.median(spent[WARM_UP:])]


class _Holder:
    """What `distribute` needs of a model."""

    def __init__(self, params):
        self.params = params


def _slowest(action, comm):
    """-> the seconds of the slowest rank, all of which begin together."""
    comm.barrier()
    began = time.perf_counter()
    action()
    return max(comm.exchange(time.perf_counter() - began))


def _timed(action, found):
    def timed(*arguments):
        began = time.perf_counter()
        result = action(*arguments)
        found.append(time.perf_counter() - began)
        return result
    return timed
