"""Train a GPT on a text: `python train.py`, or `python train.py --help` for all that can be chosen.

This is the whole of training: step by step, take a batch, compute its loss and the gradients, and
move the parameters against them. Which batch belongs to a step, and what dropout drops in it,
follow from the seed and the step's number alone, so a run that was stopped goes on as if it never
had been.
"""

import math
import sys
import time

import numpy as np

from npgpt.backend import get_device, to_host
from npgpt.bundle import command_line
from npgpt.errors import RunError, run_command
from npgpt.layers import Key
from npgpt.training.interrupt import Interrupt
from npgpt.training.optim import clip_scale, gradient_norm, learning_rate
from npgpt.training.progress import Progress
from npgpt.training.setup import prepare

MOST_UNUSABLE = 10       # steps in a row whose gradients are not finite, before training gives up
SAMPLE_TOKENS = 200      # written at each evaluation


def main(arguments=None):
    """Train as the command line says -> exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with np.errstate(all="ignore"):       # a step that overflows is counted below, not warned of
        return run_command("train.py", lambda: train(arguments))


def default_config(device):
    """The configuration for a device, where none is named."""
    return "baby" if get_device(device).name == "gpu" else "laptop"


def train(arguments):
    t = prepare(arguments, default_config)
    c, xp = t.config, t.device.xp
    grads = t.model.params.on(xp.zeros_like(t.model.params.flat))
    unusable = xp.zeros((), dtype="int64")     # lives on the device, which no step waits for

    with Progress(c.max_iters, t.step) as progress, Interrupt() as interrupt:
        progress.header(t.facts())
        t.run.begin(t.step)
        began = time.perf_counter() - t.seconds
        if t.step == 0:
            evaluate(t, progress)
        clock = time.perf_counter(), t.step

        while t.step < c.max_iters and not interrupt.signal:
            rate = learning_rate(t.step, c)
            loss = compute_gradients(t, grads)
            norm = gradient_norm(grads, t.device)
            scale = clip_scale(norm, c.grad_clip, t.device)
            t.optimizer.step(t.model.params, grads, rate, scale, t.step + 1)
            unusable = (unusable + 1) * (scale == 0)
            t.step += 1
            t.seconds = time.perf_counter() - began

            if t.step % c.log_interval == 0:
                loss, norm = float(to_host(loss)), float(to_host(norm))      # here it waits
                pace = (time.perf_counter() - clock[0]) / (t.step - clock[1])    # seconds a step
                clock = time.perf_counter(), t.step
                t.run.log(step=t.step, loss=loss, learning_rate=rate, grad_norm=norm,
                          tokens_per_second=tokens_in_step(t) / pace, seconds=t.seconds)
                progress.step(t.step, loss, tokens_in_step(t) / pace, (c.max_iters - t.step) * pace)
                if int(to_host(unusable)) >= MOST_UNUSABLE:
                    raise RunError(
                        f"the gradients of {MOST_UNUSABLE} steps in a row, up to {t.step}, are not "
                        "finite; the last checkpoint is whole. Try a lower --learning-rate"
                    )
            if t.step % c.eval_interval == 0 or t.step == c.max_iters:
                evaluate(t, progress)
                clock = time.perf_counter(), t.step
            elif interrupt.signal:
                t.save()

        if interrupt.signal:
            progress.say(f"stopped at step {t.step}; to go on: "
                         f"{command_line('train')} --resume --out-dir {t.run.path}")
            return interrupt.status
        whole = mean_loss(t, t.data.val)
        t.run.log(step=t.step, seconds=t.seconds, whole_val_loss=whole)
        progress.say(f"validation loss {whole:.4f} over the whole split, after {t.seconds:.0f} s")
        progress.say(f"the model is in {t.run.checkpoint('best')}; to read what it writes: "
                     f"{command_line('sample')} --out-dir {t.run.path}")
    return 0


def compute_gradients(t, grads):
    """The gradients of the batch of step t.step into grads -> its loss, a scalar of the device.
    A batch that comes in grad_accum parts is the same batch: each adds its share of one mean."""
    c = t.config
    rows = c.batch_size * c.grad_accum
    grads.flat[...] = 0
    loss = 0
    for row in range(0, rows, c.batch_size):
        idx, targets = t.data.batch(c.seed, t.step, rows, row, row + c.batch_size)
        part, _ = t.model.loss_and_grads(idx, targets, Key(c.seed, t.step, row), into=grads,
                                         count=tokens_in_step(t))
        loss = loss + part
    return loss


def tokens_in_step(t):
    return t.config.batch_size * t.config.grad_accum * t.data.block_size


def evaluate(t, progress):
    """Losses, a sample and, but at the very beginning, a checkpoint."""
    windows = t.config.eval_iters * t.config.batch_size
    train_loss, val_loss = (mean_loss(t, split, windows) for split in (t.data.train, t.data.val))
    sample = t.model.generate(t.data.tokenizer.start[None], SAMPLE_TOKENS, temperature=0.8,
                              seed=t.config.seed)
    progress.evaluation(t.step, train_loss, val_loss, t.data.tokenizer.decode(sample[0]))
    t.run.log(step=t.step, seconds=t.seconds, train_loss=train_loss, val_loss=val_loss)
    if not math.isfinite(val_loss):
        raise RunError(f"the validation loss at step {t.step} is not finite; the last checkpoint "
                       "is whole. Try a lower --learning-rate")
    is_best = val_loss < t.best_val_loss
    t.best_val_loss = min(val_loss, t.best_val_loss)
    if t.step > 0:
        t.save(is_best)


def mean_loss(t, split, windows=None):
    """The loss over windows of a split, always the same ones; None: over all of it, window after
    window. In nats per token."""
    offsets = t.data.offsets(split, windows)
    parts = np.split(offsets, range(t.config.batch_size, len(offsets), t.config.batch_size))
    losses = [float(to_host(t.model.loss(*t.data.windows(split, part)))) for part in parts]
    return float(np.average(losses, weights=[len(part) for part in parts]))


if __name__ == "__main__":
    raise SystemExit(main())
