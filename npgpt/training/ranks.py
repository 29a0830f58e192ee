"""What the ranks of a launcher are: where they run, what they have installed, which data they find,
whether they can train together, and how fast they exchange gradients."""

import os
import platform
import socket
import statistics
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_info

from npgpt import host
from npgpt.backend import get_device
from npgpt.cli.options import version
from npgpt.errors import RunError, UserError
from npgpt.models.parameters import Param, Parameters
from npgpt.optim import AdamW
from npgpt.parallel.buckets import SIZE
from npgpt.text.load import SHAKESPEARE
from npgpt.text.source import Found, look_for

TIMES = 10                           # measurements, after one that is not counted
VERSIONS = ("npgpt", "python", "numpy")
NAMES = {"npgpt": "npgpt", "python": "Python", "numpy": "NumPy", "device": "the device"}


@dataclass(frozen=True)
class Rank:
    """The facts of one rank."""

    host: str
    process: int
    device: str                      # the first words of its description; "": there is a problem
    kind: str                        # "cpu" or "gpu"
    cores: int                       # that it may use
    allowed: tuple[int, ...]         # their numbers, if the system tells them
    blas: int                        # threads of BLAS
    python: str
    numpy: str
    npgpt: str
    found: Found                     # its data
    problem: str = ""                # with the device
    data_problem: str = ""


def this_rank(device, data, comm):
    """The values of `device` and `data` -> Rank. All ranks call this: if the first one finds a
    token file, the others look for it at the same path."""
    kind = described = problem = data_problem = ""
    try:
        there = get_device(device)
        kind, described = there.name, there.description.split(",")[0]
    except UserError as error:
        problem = error.message
    found = Found()
    if comm.is_first:
        found, data_problem = _look_for(data)
    first = comm.broadcast(lambda: found)
    if not comm.is_first:
        found, data_problem = _look_for(first.path if first.digest else data)
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return Rank(socket.gethostname(), os.getpid(), described, kind, host.cores(),
                tuple(sorted(allowed)), max(blas, default=0), platform.python_version(),
                np.__version__, version().removeprefix("npgpt "), found, problem, data_problem)


def _look_for(data):
    """-> Found, and what is wrong with the data."""
    try:
        return look_for(data), ""
    except (UserError, OSError) as error:
        return Found(), getattr(error, "message", str(error))


def problems(ranks):
    """Ranks -> why they cannot train together, a list of lines."""
    lines = _grouped([rank.problem for rank in ranks])
    if text := differences("npgpt", [rank.npgpt for rank in ranks]):
        lines.append(f"{text}; install the same version on every host")
    if not lines and (text := differences("the device", [rank.kind for rank in ranks])):
        lines.append(f"{text}; choose a `device` that every rank has")
    first = ranks[0].found
    if ranks[0].data_problem:
        lines.append(f"rank 0: {ranks[0].data_problem}")
    elif first.digest:
        lines += _grouped([rank.data_problem or (rank.found != first and (
            f"{first.path} has other tokens than rank 0's; copy the directory from there"))
            for rank in ranks])
    return lines


def _grouped(texts):
    """rank -> a text, or nothing -> "ranks 0, 1: text", a line for each text."""
    return [f"{_ranks([i for i, other in enumerate(texts) if other == text])}: {text}"
            for text in dict.fromkeys(texts) if text]


def notes(ranks):
    """Ranks -> what else is worth knowing, a list of lines."""
    lines = [differences(NAMES[name], [getattr(rank, name) for rank in ranks])
             for name in ("python", "numpy")]
    if len({rank.kind for rank in ranks}) == 1:
        lines.append(differences("the device", [rank.device for rank in ranks]))
    if ranks[0].kind == "cpu":
        lines += [_crowded(place, [rank for rank in ranks if rank.host == place])
                  for place in dict.fromkeys(rank.host for rank in ranks)]
    return [line for line in [*lines, *_about_data(ranks)] if line]


def _about_data(ranks):
    """The notes on a text that rank 0 reads for all."""
    first, *others = ranks
    if first.data_problem or first.found.digest:
        return
    if first.found.path:
        several = len({rank.host for rank in ranks}) > 1
        yield (f"the texts are not encoded yet: rank 0 does it when training starts, into "
               f"{first.found.path}{', a directory that all hosts must share' * several}")
    elif not first.found.fingerprint:
        yield f"{SHAKESPEARE} is missing; rank 0 downloads it when training starts"
    elif without := [i for i, rank in enumerate(others, 1) if rank.found != first.found]:
        yield (f"{_ranks(without)} {'do' if len(without) > 1 else 'does'} not have this text; rank "
               "0 reads it for all")


def _crowded(place, ranks):
    """The note on a host if it has more ranks than cores, else ""."""
    allowed = {number for rank in ranks for number in rank.allowed}
    limited = any(rank.cores < len(rank.allowed) for rank in ranks)         # a container's quota
    cores = max(rank.cores for rank in ranks) if limited or not allowed else len(allowed)
    if len(ranks) <= cores:
        return ""
    return (f"{len(ranks)} ranks on {place} share {cores} core{'s' * (cores > 1)}, and are slower "
            f"than {cores}")


def differences(name, values):
    """What the ranks have, rank -> value, which should be the same -> "rank 2 has NumPy 2.3.1, the
    others 2.4.6", or "" if it is."""
    (common, _), *others = Counter(values).most_common()
    if not others:
        return ""
    where = {value: [i for i, found in enumerate(values) if found == value] for value, _ in others}
    text = ", ".join(f"{_ranks(at)} {'has' if len(at) == 1 else 'have'} {name} {value or 'none'}"
                     for value, at in where.items())
    rest = values.count(common)
    return f"{text}, {f'rank {values.index(common)}' if rest == 1 else 'the others'} {common}"


def _ranks(numbers):
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def exchange_seconds(comm, device, numbers):
    """The median time in seconds of a sum of gradients over all ranks, as in a training step:
    reduce-scatter and all-gather. numbers: how many gradients, of float32. Raises RunError if a sum
    is wrong."""
    names = {f"h.{i}.weight": Param((min(SIZE, numbers - at),), "matrix")
             for i, at in enumerate(range(0, numbers, SIZE))}
    params = Parameters(names, device.xp.zeros(numbers, "float32"))
    optimizer = AdamW(params, comm=comm)
    grads, seconds = params.gradients(comm.buffers(params.flat)[comm.rank]), []
    for _ in range(1 + TIMES):
        comm.begin(grads, optimizer.shards, 1)
        for name in names:
            grads[name] = comm.rank + 1
        first, flat = _timed(comm, device, lambda: comm.reduce_scatter(grads, optimizer.shards))
        for part in optimizer.shard:
            params.flat[part] = flat[part]
        second, _ = _timed(comm, device, lambda: comm.all_gather(params.flat, optimizer.shards))
        seconds.append(first + second)
        if not bool((params.flat == comm.size * (comm.size + 1) // 2).all()):
            raise RunError(f"rank {comm.rank} on {socket.gethostname()} got a wrong sum of the "
                           "gradients of all ranks")
    return statistics.median(seconds[1:])


def _timed(comm, device, work):
    """-> seconds until all ranks have done it, and what work() returns."""
    device.synchronize()
    comm.barrier()
    start = time.perf_counter()
    result = work()
    device.synchronize()
    comm.barrier()
    return time.perf_counter() - start, result
