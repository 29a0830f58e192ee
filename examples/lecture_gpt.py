"""The lecture's GPT, number for number: `python examples/lecture_gpt.py`, a few minutes on a CPU.

The model, its initial weights, its batches and its text are those of gpt.py of
https://github.com/karpathy/ng-video-lecture, at a size for a CPU. All random numbers come from
PyTorch's stream in PyTorch's order. With `--dtype float64` the output equals that of PyTorch in
float64. In float32 the two round differently; README.md in this directory shows the effect.
`--full` is the lecture's own size, for a GPU, with PyTorch's initial weights and npgpt's dropout.
"""

import argparse

import numpy as np

from npgpt import GPT, GPTConfig
from npgpt.backend import to_host
from npgpt.cli.command import run_command
from npgpt.layers import Key
from npgpt.lecture.torch_random import TorchRandom
from npgpt.optim import AdamW
from npgpt.text.dataset import Dataset
from npgpt.text.source import load_source
from npgpt.training.step import train_step

SEED = 1337
EVAL_INTERVAL = 500       # steps from one evaluation to the next
EVAL_ITERS = 200          # batches of each split in an evaluation
STD = np.float32(0.02)    # of the initial weights
LECTURE = {"activation": "relu", "tie_weights": False, "attn_bias": False, "head_bias": True}
SMALL = {"block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64, "dropout": 0.0}
FULL = {"block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384, "dropout": 0.2}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5000, metavar="N", help="of training [5000]")
    parser.add_argument("--full", action="store_true", help="the lecture's size, for a GPU")
    parser.add_argument("--device", default="cpu", help="cpu, gpu or auto [cpu]")
    parser.add_argument("--dtype", default="float32", help="float32 or float64 [float32]")
    arguments = parser.parse_args()
    sizes = (FULL, 64, 3e-4) if arguments.full else (SMALL, 16, 1e-3)
    replay(*sizes, arguments.steps, arguments.device, arguments.dtype)


def replay(sizes, B, learning_rate, steps, device="cpu", dtype="float32"):
    """Train, with B sequences in a batch, and print as the lecture's gpt.py does."""
    random = TorchRandom(SEED)
    source = load_source("shakespeare")
    config = GPTConfig(vocab_size=source.tokenizer.vocab_size, **sizes, **LECTURE)
    model = GPT(config, device=device, dtype=dtype, values=initial_values(config, random))
    data = Dataset(source, config.block_size, model.device)
    print(f"{model.params.flat.size / 1e6} M parameters")

    params = model.params
    params.n_decayed = params.flat.size          # PyTorch's default: biases and norms decay too
    optimizer = AdamW(params, beta1=0.9, beta2=0.999, weight_decay=0.01)
    grads = model.gradients()
    for step in range(steps):
        if step % EVAL_INTERVAL == 0 or step == steps - 1:
            train, val = (mean_loss(model, data, split, B, random)
                          for split in (data.train, data.val))
            print(f"step {step}: train loss {train:.4f}, val loss {val:.4f}", flush=True)
        tokens = batch(data, data.train, B, random)
        train_step(model, optimizer, [(*tokens, Key(SEED, step))], grads, lr=learning_rate)

    print(data.tokenizer.decode(write(model, 500, random)))


def initial_values(config, random):
    """Every parameter as PyTorch draws it -> pairs of names and arrays.

    Each layer draws PyTorch's default values when it is created. Then gpt.py draws all weights
    again, with STD, so the first values only advance the stream."""
    layers = list(layers_in_order(config))
    for name, shape in layers:
        if name in ("wte.weight", "wpe.weight"):
            random.embedding(*shape)
        else:
            random.linear(shape[1], shape[0], bias="c_attn" not in name)
    drawn = {name: random.randn(shape) * STD for name, shape in layers}

    for name, param in config.architecture().items():
        if param.group == "vector":
            yield name, param.draw(name, SEED)                                   # norms 1, biases 0
        elif param.parts:
            heads = [drawn[f"{name}.{part}.{head}"] for part in ("query", "key", "value")
                     for head in range(config.n_head)]
            yield name, np.concatenate(heads).T                                  # (C, 3C)
        else:
            yield name, drawn[name].T if param.group == "matrix" else drawn[name]


def layers_in_order(config):
    """Name and shape (out, in) of each layer with random weights, in the order in which gpt.py
    creates them. There each head has its own matrices, which are columns of c_attn here."""
    V, T, C, H = config.vocab_size, config.block_size, config.n_embd, config.n_head
    yield "wte.weight", (V, C)
    yield "wpe.weight", (T, C)
    for layer in range(config.n_layer):
        for head in range(H):
            for part in ("key", "query", "value"):
                yield f"h.{layer}.attn.c_attn.weight.{part}.{head}", (C // H, C)
        yield f"h.{layer}.attn.c_proj.weight", (C, C)
        yield f"h.{layer}.mlp.c_fc.weight", (4 * C, C)
        yield f"h.{layer}.mlp.c_proj.weight", (C, 4 * C)
    yield "lm_head.weight", (V, C)


def batch(data, split, B, random):
    """B random windows of a split -> idx, targets (B, T)."""
    return data.windows(split, random.randint(len(split) - data.block_size, (B,)))


def mean_loss(model, data, split, B, random):
    """The loss over EVAL_ITERS batches of a split."""
    losses = [model.loss(*batch(data, split, B, random)) for _ in range(EVAL_ITERS)]
    return np.mean([to_host(loss) for loss in losses])


def write(model, n, random):
    """-> (n + 1,) int: token 0 and n more."""
    idx = np.zeros((1, 1), np.int64)
    for _ in range(n):
        logits = to_host(model.logits(idx[:, -model.config.block_size:])[:, -1])     # (1, V)
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        idx = np.append(idx, random.multinomial(probs)[:, None], axis=1)
    return idx[0]


if __name__ == "__main__":
    raise SystemExit(run_command("lecture_gpt.py", main))
