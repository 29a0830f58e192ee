"""Ranks with a GPU each against one process: `mpiexec -n G python -m benchmarks.nccl`.

What the double of CuPy cannot show is measured here, and nowhere else: that NCCL accepts the calls,
that its own stream and the default one wait for each other, and what the calls cost. With one GPU
it is a group of one. `python -m benchmarks.gpu` runs it so. The first rank prints JSON: the largest
difference of a parameter from those of one process after some steps, and seconds of a step. With
--double it runs on the test double at tiny sizes, and its times mean nothing.
"""

import argparse
import json

import numpy as np

from benchmarks.gpu import configuration, make_model, make_tokens, seconds_of
from npgpt.backend import get_device
from npgpt.layers import Key
from npgpt.parallel import Single, world, world_on
from npgpt.training.config import TrainingConfig
from npgpt.training.setup import distribute
from npgpt.training.step import train_step

COMPARED = 3        # steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--double", action="store_true", help="use the test double, tiny sizes")
    tiny = parser.parse_args().double
    if not world().launched:
        parser.error("start it with mpiexec")
    if tiny:
        from tests import double
        double.install()
        double.cupy.GPUs.visible = tuple(range(world().local_size))
    world().run("benchmarks.nccl", lambda: measure(tiny))


def measure(tiny):
    gpu = get_device("gpu")
    ranks = world_on(gpu)
    apart = {}
    for kind in ("adamw", "muon"):
        parameters = [_trained(comm, kind, tiny) for comm in (ranks, Single())]
        apart[kind] = float(np.abs(parameters[0] - parameters[1]).max())
    seconds = [seconds_of(_stepper(comm, "adamw", gpu.default_dtype, tiny)[1], gpu.synchronize,
                           tiny) for comm in (ranks, Single())]
    if ranks.launch(lambda: ranks.is_first):
        print(json.dumps({"ranks": ranks.size, "description": ranks.description, "apart": apart,
                          "seconds": seconds[0], "alone": seconds[1]}))


def _trained(comm, kind, tiny):
    """-> the parameters after some steps in float64, on the host."""
    model, step = _stepper(comm, kind, "float64", tiny)
    for number in range(COMPARED):
        step(number)
    return model.device.to_host(model.params.flat)


def _stepper(comm, kind, dtype, tiny):
    """-> a model, and a function that takes the step with this number: of the whole batch, of which
    each rank computes its rows."""
    c = configuration(tiny, dropout=0.2)
    config = TrainingConfig(batch_size=c["batch_size"], optimizer=kind)
    model = make_model(c, "gpu", dtype, dtype != "float64" and get_device("gpu").fuses)
    optimizer, buffers = distribute(model, config, comm)
    grads = model.gradients(buffers[comm.rank])
    optimizer.set_rank(comm.rank, comm.size, comm.ranges(model.params))
    start, stop = comm.rows(c["batch_size"])
    idx, count = make_tokens(c, c["batch_size"]), c["batch_size"] * c["block_size"]
    own = model.device.to_device(idx[start:stop])

    def step(number):
        batch = own, own, Key(1, number, start), count
        train_step(model, optimizer, [batch], grads, comm, lr=1e-3, grad_clip=1.0)
    return model, step


if __name__ == "__main__":
    main()
