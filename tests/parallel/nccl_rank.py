"""A rank of tests/parallel/test_nccl.py: with the double of CuPy as its GPU, it takes some training
steps, or runs train.py.

    mpiexec -n 3 python -m tests.parallel.nccl_rank SETTINGS steps FILE
    mpiexec -n 2 python -m tests.parallel.nccl_rank SETTINGS train [OPTIONS]

SETTINGS is JSON: "gpus", for each rank the GPUs that it sees; "nccl", whether it is installed;
"memory" of a GPU in bytes; "problem", an error of NCCL; "show_end", whether to print how NCCL
ended. A rank that starts a process fails, because MPI forbids that.
"""

import atexit
import json
import os
import sys
from contextlib import nullcontext

import numpy as np

from npgpt.backend import get_device
from npgpt.models.parameters import Gradients, Param
from npgpt.parallel import Single, buckets, world, world_on
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training import evaluation
from npgpt.training.config import TrainingConfig
from npgpt.training.setup import distribute
from npgpt.training.step import batches_of_step, train_step
from tests import double
from tests.double import array
from tests.models.families import tiny

CASES = {
    "gpt, adamw": ("gpt", {}, {}),
    "gpt, muon": ("gpt", {"tie_weights": False, "head_bias": True}, {"optimizer": "muon"}),
    "llama, adamw": ("llama", {"tie_weights": False}, {"grad_clip": 0.0}),
    "llama, muon": ("llama", {"n_kv_head": 1, "qk_norm": True}, {"optimizer": "muon"}),
}
STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}


def steps(name, device, comm):
    """Take some steps of a case -> name -> array: losses, norms, parameters and the optimiser's
    state. The first rank has all of them, the others all but the state."""
    family, options, training = CASES[name]
    c = TrainingConfig(batch_size=5, grad_accum=2, seed=3, **{"grad_clip": 0.5} | training)
    data = Dataset(TokenSource.from_text("abcdefghijk" * 20), 8, device)
    model = tiny(family, "float64", seed=comm.rank, device=device, dropout=0.2, **options)
    optimizer, buffers = distribute(model, c, comm)
    grads = model.gradients(buffers[comm.rank])
    optimizer.set_rank(comm.rank, comm.size, comm.ranges(model.params))
    found = []
    with double.no_waiting() if device.name == "gpu" else nullcontext():
        for step in range(3):
            batches = batches_of_step(data, c, step, comm)
            found.append(train_step(model, optimizer, batches, grads, comm, lr=0.01,
                                    grad_clip=c.grad_clip))
    state = {name: np.concatenate([np.empty(0), *comm.collect(array, slices)])
             for name, (_, array, slices) in optimizer.whole_state.items()}
    losses, norms = ([float(device.to_host(x)) for x in of] for of in zip(*found))
    return {"losses": np.array(losses), "norms": np.array(norms),
            "parameters": device.to_host(model.params.flat)} | (state if comm.is_first else {})


def all_steps(path):
    """Take the steps of all cases. The first rank writes what they give to a file, with the names
    of the ranks' communicators."""
    gpu = get_device("gpu")
    found = {}
    for name in CASES:
        comm = world_on(gpu)
        found |= {f"{name}: {what}": array for what, array in steps(name, gpu, comm).items()}
        parameters = comm.exchange(found[f"{name}: parameters"])
        assert all((other == parameters[0]).all() for other in parameters)
    found |= comm.launch(lambda: small_things(comm, gpu))
    found["used"] = np.array(comm.exchange([gpu.address(), type(comm).__name__]))
    if comm.is_first:
        np.savez(path, **found)


def small_things(comm, gpu):
    """-> name -> array: sums of gradients that no backward has completed, their norm, the sum of a
    scalar, and flags."""
    n = comm.size
    architecture = {"a.bias": Param((n,), "vector", uses=2), "b.bias": Param((7,), "vector")}
    shards = [[slice(r, r + 1)] for r in range(n)]
    shards[-1].append(slice(n, n + 7))
    buffer = comm.buffers(gpu.xp.zeros(n + 7))[comm.rank]
    buffer[...] = 9.0
    grads = Gradients(architecture, buffer)
    comm.begin(grads, shards, 1)
    grads.add("a.bias", gpu.xp.full(n, comm.rank + 1.0))
    flat = comm.reduce_scatter(grads, shards)
    on_host = gpu.to_host(flat)
    sums = comm.exchange(np.concatenate([on_host[part] for part in shards[comm.rank]]))
    norm = float(gpu.to_host(comm.norm(flat, shards)))
    scalar = gpu.to_host(comm.all_reduce(gpu.to_device(0.1 + comm.rank, "float32")))
    flags = [comm.any(comm.rank == n - 1 and turn == 2) for turn in range(5)]
    return {"sums": np.concatenate(sums), "norm": np.array(comm.exchange(norm)),
            "scalar": scalar, "flags": np.array(comm.exchange(flags))}


def alone(name):
    """-> what the steps of a case give in one process on the CPU."""
    return steps(name, get_device("cpu"), Single())


def main(settings, what, *arguments):
    settings, rank = json.loads(settings), int(os.environ["PMI_RANK"])
    sys.addaudithook(_refuse_processes)
    double.cupy.GPUs.visible = tuple(settings["gpus"][rank])
    double.nccl.available = settings.get("nccl", True)
    double.nccl.NcclCommunicator.problem = settings.get("problem")
    array.MEMORY = settings.get("memory", array.MEMORY)
    double.install()
    if what == "train":
        import train
        evaluation.SAMPLE_TOKENS = 20
        if "show_end" in settings:           # in the opposite order: after all that npgpt does
            atexit.register(lambda: print(f"NCCL: {', '.join(double.nccl.ended)}"))
        return train.main(list(arguments))
    buckets.SIZE = 100                   # so that there are several
    return world().run("steps", lambda: all_steps(*arguments))


def _refuse_processes(event, arguments):
    if event in STARTS:
        raise RuntimeError(f"{event}: a rank of MPI may not start processes")


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
