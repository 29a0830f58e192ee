"""The lecture's bigram model, number for number: `python examples/bigram.py`.

The simplest model of a text: a table (V, V) whose row v holds the logits of the token that follows
v. Looking up a row is an embedding, and the loss is cross-entropy. There are no other layers.

All random numbers come from PyTorch's stream, in the order in which bigram.py of
https://github.com/karpathy/ng-video-lecture draws them: the table, then the batches, then the text.
So the losses and the text are those that PyTorch prints.
"""

import argparse

import numpy as np

from npgpt.backend import get_device
from npgpt.cli.command import run_command
from npgpt.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
    embedding_forward,
)
from npgpt.lecture.torch_random import TorchRandom
from npgpt.models.parameters import Param, Parameters
from npgpt.optim import AdamW
from npgpt.text.dataset import Dataset
from npgpt.text.source import load_source

SEED = 1337
B, T = 32, 8              # sequences in a batch, tokens in a sequence
LEARNING_RATE = 1e-2
EVAL_INTERVAL = 300       # steps from one evaluation to the next
EVAL_ITERS = 200          # batches of each split in an evaluation


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="of training [3000]")
    replay(parser.parse_args().steps)


def replay(steps):
    """Train and print as the lecture's bigram.py does."""
    cpu = get_device("cpu")
    data = Dataset(load_source("shakespeare"), T, cpu)
    V = data.tokenizer.vocab_size
    random = TorchRandom(SEED)

    params = Parameters({"table.weight": Param((V, V), "table")}, np.zeros(V * V, np.float32))
    params["table.weight"] = random.embedding(V, V)
    optimizer = AdamW(params, beta1=0.9, beta2=0.999, weight_decay=0.01)     # PyTorch's defaults

    for step in range(steps):
        if step % EVAL_INTERVAL == 0:
            train, val = (mean_loss(params["table.weight"], data, split, random)
                          for split in (data.train, data.val))
            print(f"step {step}: train loss {train:.4f}, val loss {val:.4f}", flush=True)
        idx, targets = batch(data, data.train, random)
        dtable = gradient(params["table.weight"], idx, targets)
        optimizer.step(dtable.reshape(-1), LEARNING_RATE)

    print(data.tokenizer.decode(write(params["table.weight"], 500, random)))


def batch(data, split, random):
    """B random windows of a split -> idx, targets (B, T)."""
    return data.windows(split, random.randint(len(split) - T, (B,)))


def loss_forward(table, idx, targets):
    """table (V, V), idx and targets (B, T) -> loss, the mean over all B * T tokens."""
    logits, embedding = embedding_forward(idx, table)                # (B, T, V)
    loss, cross_entropy = cross_entropy_forward(logits, targets)
    return loss, (embedding, cross_entropy)


def gradient(table, idx, targets):
    """-> dtable (V, V)."""
    loss, (embedding, cross_entropy) = loss_forward(table, idx, targets)
    dlogits = cross_entropy_backward(np.ones_like(loss), cross_entropy)
    return embedding_backward(dlogits, embedding)


def mean_loss(table, data, split, random):
    """The loss over EVAL_ITERS batches of a split."""
    losses = [loss_forward(table, *batch(data, split, random))[0] for _ in range(EVAL_ITERS)]
    return np.mean(losses)


def write(table, n, random):
    """-> list of n + 1 ints: token 0 and n more, each drawn from the logits of the last one."""
    tokens = [0]
    for _ in range(n):
        logits = table[tokens[-1:]]                                  # (1, V)
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        tokens.append(int(random.multinomial(probs)[0]))
    return tokens


if __name__ == "__main__":
    raise SystemExit(run_command("bigram.py", main))
