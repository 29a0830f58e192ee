"""Run as ranks by tests/parallel/test_nccl.py: calls that the double of NCCL refuses in each rank,
because NCCL would fail, wait without end, or return wrong numbers."""

import json
import sys

from mpi4py import MPI

from tests.double import cupy, nccl
from tests.double.stream import Race, Stream

rank = MPI.COMM_WORLD.rank
cupy.GPUs.visible = json.loads(sys.argv[1])["gpus"][rank]
cupy.GPUs.choose(rank)
group = nccl.NcclCommunicator(2, MPI.COMM_WORLD.bcast(nccl.get_unique_id()), rank)
x = cupy.asarray([1.0, 2.0, 3.0, 4.0])
aside, F64, ADD = Stream(non_blocking=True), nccl.NCCL_FLOAT64, nccl.NCCL_SUM


def at(array):
    return array.data.ptr


def unequal_counts():
    n = 2 + rank
    group.allReduce(at(x[:n]), at(x[:n]), n, F64, ADD, 0)


def different_calls():
    if rank:
        group.allReduce(at(x), at(x), 4, F64, ADD, 0)
    else:
        group.broadcast(at(x), at(x), 4, F64, 0, 0)


def without_waiting():
    x[0] = 5.0
    group.allReduce(at(x), at(x), 4, F64, ADD, aside.ptr)


def once_more():
    nccl.NcclCommunicator(2, nccl.get_unique_id(), rank)


REFUSED = {
    "unequal counts": unequal_counts,
    "different calls": different_calls,
    "different roots": lambda: group.reduce(at(x), at(x), 4, F64, ADD, rank, 0),
    "no such root": lambda: group.reduce(at(x), at(x), 4, F64, ADD, 2, 0),
    "another type": lambda: group.allReduce(at(x), at(x), 4, nccl.NCCL_FLOAT32, ADD, 0),
    "too many": lambda: group.reduceScatter(at(x), at(x[:3]), 3, F64, ADD, 0),
    "wrong place": lambda: group.allGather(at(x[1:3]), at(x), 2, F64, 0),
    "no wait for what was written": without_waiting,
    "different ids": once_more,
}

accepted = []
for name, call in REFUSED.items():
    try:
        call()
        accepted.append(name)
    except (nccl.NcclError, Race):
        pass
everywhere = MPI.COMM_WORLD.allgather(accepted)
if rank == 0:
    print(f"accepted: {everywhere}")
