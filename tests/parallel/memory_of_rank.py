"""Run under mpiexec by test_mpi.py: the peak of everything NumPy allocates for the model and two
steps of a rank, and the estimate of it."""

import sys
import tracemalloc

from npgpt import GPT, GPTConfig
from npgpt.parallel import world
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training.config import TrainingConfig
from npgpt.training.estimate import memory_needed
from npgpt.training.setup import distribute
from npgpt.training.step import batches_of_step, train_step


def main():
    comm, rows, channels = world(), *map(int, sys.argv[1:])
    config = GPTConfig(vocab_size=65, block_size=64, n_layer=3, n_head=4, n_embd=channels)
    training = TrainingConfig(batch_size=rows)
    data = Dataset(TokenSource.from_text("abcdefg" * 200), 64)
    tracemalloc.start()
    model = GPT(config)
    optimizer, buffers = distribute(model, training, comm)
    grads = model.gradients(buffers[comm.rank])
    for step in range(2):
        train_step(model, optimizer, batches_of_step(data, training, step, comm), grads, comm,
                   lr=1e-3, grad_clip=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    needed = memory_needed(config, training, model.device, comm.size, separate=True)
    sys.stderr.write(f"{peak} {needed}\n")


if __name__ == "__main__":
    world().run("memory", main)
