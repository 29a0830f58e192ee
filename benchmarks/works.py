"""The workloads of the CPU benchmarks: the trainer's own step, on random tokens.

A workload is a model, a batch size and a name. In a `Race` the sides alternate, each in a separate
process, and the peak memory of each, including all its child processes, is measured.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npgpt import GPT, GPTConfig
from npgpt.backend import get_device
from npgpt.host import keep_freed_memory
from npgpt.models.parameters import count
from npgpt.optim import learning_rate
from npgpt.parallel import choose_ranks, choose_threads, make_communicator
from npgpt.training.config import TrainingConfig
from npgpt.training.setup import distribute
from npgpt.training.step import batches_of_step, train_step

WORKS = {
    "a": ("nanoGPT's CPU recipe", 12,
          {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}),
    "b": ("small lecture model", 16,
          {"vocab_size": 65, "block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}),
    "c": ("GPT-2 124M", 4, {"block_size": 64}),
    "d": ("baby, batch of 2", 2,
          {"vocab_size": 65, "block_size": 512, "n_layer": 6, "n_head": 6, "n_embd": 384}),
}
SAMPLE_SECONDS = 0.5      # between readings of the memory, which slow the processes down


@dataclass
class Tokens:
    """Random batches, in place of a text."""

    model: GPTConfig

    @property
    def block_size(self):
        return self.model.block_size

    def batch(self, seed, step, rows, start=0, stop=None):
        """As npgpt.text.dataset.Dataset.batch."""
        rng = np.random.default_rng(step % 4)
        tokens = rng.integers(self.model.vocab_size, size=(rows, self.block_size + 1))[start:stop]
        return tokens[:, :-1], tokens[:, 1:]


def communicator(model, batch_size, workers=None):
    """GPTConfig -> a Communicator with as many ranks, and threads of BLAS, as the
    trainer would choose."""
    size, computing = choose_ranks(workers, batch_size, count(model.architecture()),
                                   get_device("cpu"))
    threads = choose_threads(computing, batch_size * model.block_size, model.n_embd)
    return make_communicator(size, computing, threads)


def time_npgpt(model, batch_size, steps, workers=None):
    """-> seconds of each step of training, after two to warm up."""
    keep_freed_memory()
    config = TrainingConfig(batch_size=batch_size, device="cpu")
    gpt, data, comm = GPT(model), Tokens(model), communicator(model, batch_size, workers)
    optimizer, buffers = distribute(gpt, config, comm)

    def work():
        optimizer.set_rank(comm.rank, comm.size, comm.ranges(gpt.params))
        grads, numbers = gpt.gradients(buffers[comm.rank]), itertools.count()

        def step():
            number = next(numbers)
            batches = batches_of_step(data, config, number, comm)
            train_step(gpt, optimizer, batches, grads, comm, lr=learning_rate(number, config),
                       grad_clip=config.grad_clip)
        return timed(step, steps)
    return comm.launch(work)


def time_torch(model, batch_size, steps, compiled=False):
    """The same in PyTorch, eager or compiled, with its threads on all cores."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    torch.manual_seed(0)
    gpt = TorchGPT(model).train()
    loss_of = torch.compile(gpt) if compiled else gpt
    groups = [{"params": [p for p in gpt.parameters() if p.ndim == 2], "weight_decay": 0.1},
              {"params": [p for p in gpt.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3, (0.9, 0.99))
    data, number = Tokens(model), itertools.count()

    def step():
        idx, targets = map(torch.as_tensor, data.batch(0, next(number), batch_size))
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(idx, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()

    return timed(step, steps)


def timed(step, steps, warm_up=2, clock=time.perf_counter):
    """-> seconds of each call."""
    found = []
    for _ in range(warm_up + steps):
        began = clock()
        step()
        found.append(clock() - began)
    return found[warm_up:]


class Race:
    """Runs sides alternately: name -> arguments for `python -m benchmarks.MODULE`, which prints a
    JSON list of seconds as its last line. A side whose process fails is omitted. once: sides that
    run in the first round only. checkouts: name -> the directory that a side runs in."""

    def __init__(self, module, sides, rounds, once=(), checkouts=None):
        self.seconds, self.bytes = {}, {}
        self.medians = {}                 # name -> the median of each round
        for number in range(rounds):
            for name, words in sides.items():
                if number and name in once:
                    continue
                command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, words)]
                seconds, most = _watched(command, (checkouts or {}).get(name))
                if seconds:
                    self.seconds.setdefault(name, []).extend(seconds)
                    self.medians.setdefault(name, []).append(statistics.median(seconds))
                    self.bytes[name] = max(most, self.bytes.get(name, 0))

    def median(self, name):
        """Seconds, or None for a side that failed."""
        return statistics.median(self.seconds[name]) if name in self.seconds else None

    def ratio(self, name, other):
        """-> the median over the rounds of the ratio of one side's seconds to the other's, and its
        bootstrap interval of 95 %."""
        ratios = np.divide(self.medians[name], self.medians[other])
        draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
        return np.median(ratios), *np.percentile(np.median(draws, axis=1), [2.5, 97.5])


def _watched(command, directory=None):
    """-> the seconds that the command printed, or None; the total peak memory of its processes."""
    environment = os.environ | ({"PYTHONPATH": str(directory)} if directory else {})
    process = subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    most, ended = [0], threading.Event()

    def watch():
        while not ended.wait(SAMPLE_SECONDS):
            most[0] = max(most[0], sum(map(proportional_bytes, family(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        print(f"{' '.join(command[2:])} failed: {(err.strip() or 'no message').splitlines()[-1]}")
        return None, 0
    return json.loads(out.splitlines()[-1]), most[0]


def family(pid):
    """A process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(p for child in children for p in family(int(child)))]


def proportional_bytes(pid):
    """Memory of a process; memory shared by n processes counts for an n-th (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def machine():
    """The hardware and software of the measurement, in one line."""
    import torch
    from threadpoolctl import threadpool_info

    blas = ", ".join(f"{b['internal_api']} {b['version']} ({b.get('architecture', '?')})"
                     for b in threadpool_info() if b["user_api"] == "blas")
    return (f"{time.strftime('%Y-%m-%d')}, {len(os.sched_getaffinity(0))} cores, "
            f"NumPy {np.__version__} with {blas}, PyTorch {torch.__version__}")
