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

from npgpt.backend import get_device, keep_freed_memory, to_host
from npgpt.cli.bundle import command_line
from npgpt.cli.command import run_command
from npgpt.errors import RunError
from npgpt.layers import Key
from npgpt.optim.optim import clip_scale, learning_rate, squared_norm
from npgpt.parallel.ranks import WorkerEnded
from npgpt.training.estimate import LESS_MEMORY, size
from npgpt.training.interrupt import Interrupt
from npgpt.training.progress import Progress
from npgpt.training.setup import prepare

MOST_UNUSABLE = 10       # steps in a row whose gradients are not finite, before training gives up
SAMPLE_TOKENS = 200      # written at each evaluation


def main(arguments=None):
    """Train as the command line says -> exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with np.errstate(all="ignore"):       # a step that overflows is counted below, not warned of
        return run_command("train.py", lambda: train(arguments), LESS_MEMORY)


def default_config(device):
    """The configuration for a device, where none is named."""
    return "baby" if get_device(device).name == "gpu" else "laptop"


def train(arguments):
    keep_freed_memory()
    run = prepare(arguments, default_config)
    try:
        return run.ranks.launch(lambda: loop(run))
    except WorkerEnded as error:
        raise RunError(f"{error}; {run.checkpoints()}") from error


def loop(run):
    """The whole of training, in every rank alike -> exit status."""
    c, xp, ranks = run.config, run.device.xp, run.ranks
    unusable = xp.zeros((), dtype="int64")     # lives on the device, which no step waits for

    with Progress(c.max_iters, run.step) as progress:
        with Interrupt() as interrupt:
            if run.is_first:
                run.directory.begin(run.step)
            progress.header(run.facts())
            began = time.perf_counter() - run.seconds
            if run.step == 0:
                evaluate(run, progress)
            clock = time.perf_counter(), run.step
            stopped = False

            while run.step < c.max_iters and not stopped:
                rate = learning_rate(run.step, c)
                loss, norm, stopped = gradients_of_batch(run, interrupt)
                scale = clip_scale(norm, c.grad_clip, run.device)
                for optimizer, share in zip(run.optimizers, run.shares):
                    optimizer.step(run.model.params, run.grads_of[0], rate, scale, run.step + 1,
                                   share)
                ranks.barrier()                                  # all have moved their share
                unusable = (unusable + 1) * (scale == 0)         # 0 again after a usable step
                run.step += 1
                run.seconds = time.perf_counter() - began

                if run.step % c.log_interval == 0:
                    loss, norm = float(to_host(loss)), float(to_host(norm))     # here it waits
                    pace = (time.perf_counter() - clock[0]) / (run.step - clock[1])
                    clock = time.perf_counter(), run.step
                    speed = run.tokens_in_step / pace
                    run.log(step=run.step, loss=loss, learning_rate=rate, grad_norm=norm,
                            tokens_per_second=speed, seconds=run.seconds)
                    progress.step(run.step, loss, speed, (c.max_iters - run.step) * pace)
                    if int(to_host(unusable)) >= MOST_UNUSABLE:
                        raise RunError(
                            f"the gradients of {MOST_UNUSABLE} steps in a row, up to {run.step}, "
                            f"are not finite; {run.checkpoints()}. Try a lower --learning-rate"
                        )
                if run.step % c.eval_interval == 0 or run.step == c.max_iters:
                    evaluate(run, progress)
                    clock = time.perf_counter(), run.step

        if run.step < c.max_iters:
            return stop(run, progress, interrupt) if run.is_first else 0
        whole = mean_loss(run, run.data.val)
        run.log(step=run.step, seconds=run.seconds, whole_val_loss=whole)
        progress.say(f"validation loss {whole:.4f} over the whole split, after {run.seconds:.0f} s")
        # What ranks hold that only update is the first one's too, but for a few MB.
        (held,) = ranks.sum(run.device.held() or 0 if ranks.computes else 0)
        if held:
            progress.say(f"memory held: {size(held)} at most")
        if run.is_first:
            progress.say(f"the model is in {run.directory.checkpoint('best')}; to read what it "
                         f"writes: {command_line('sample')} --out-dir {run.directory.path}")
    return 0


def gradients_of_batch(run, interrupt):
    """The gradients of the batch of step run.step, each rank's share of them in run.grads_of[0] ->
    loss and norm, on the device, and whether somebody asked to stop. A batch that comes in
    grad_accum parts, and these in rows for each rank, is the same batch: each adds its share of one
    mean."""
    c = run.config
    rows = c.batch_size * c.grad_accum
    start, stop = run.ranks.rows(c.batch_size)
    loss = 0
    if run.ranks.computes:
        run.grads.flat[...] = 0
        for part in range(0, rows, c.batch_size):
            idx, targets = run.data.batch(c.seed, run.step, rows, part + start, part + stop)
            key = Key(c.seed, run.step, part + start)
            part_loss, _ = run.model.loss_and_grads(idx, targets, key, into=run.grads,
                                                    count=run.tokens_in_step)
            loss = loss + part_loss

    mine = [span for share in run.shares for span in share]
    run.ranks.add_up([grads.flat for grads in run.grads_of], mine)
    squares = squared_norm(run.grads_of[0], run.device, mine)
    loss, squares, stopped = run.ranks.sum(loss, squares, interrupt.signal is not None)
    return loss, run.device.xp.sqrt(squares), stopped


def evaluate(run, progress):
    """Losses and a sample; and a checkpoint, unless no step has been done."""
    windows = run.config.eval_iters * run.config.batch_size
    train_loss, val_loss = (mean_loss(run, split, windows)
                            for split in (run.data.train, run.data.val))
    run.log(step=run.step, seconds=run.seconds, train_loss=train_loss, val_loss=val_loss)
    if not math.isfinite(val_loss):
        raise RunError(f"the validation loss at step {run.step} is not finite; "
                       f"{run.checkpoints()}. Try a lower --learning-rate")
    if run.is_first:
        tokenizer = run.data.tokenizer
        sample = run.model.generate(tokenizer.start[None], SAMPLE_TOKENS, temperature=0.8,
                                    seed=run.config.seed)
        progress.evaluation(run.step, train_loss, val_loss, tokenizer.decode(sample[0]))
    if run.step > 0:
        is_best = val_loss < run.best_val_loss
        run.best_val_loss = min(val_loss, run.best_val_loss)
        run.save(is_best)


def mean_loss(run, split, windows=None):
    """The loss over windows of a split, always the same ones; None: over all of it, window after
    window. In nats per token."""
    offsets = run.data.offsets(split, windows)
    parts = np.split(offsets, range(run.config.batch_size, len(offsets), run.config.batch_size))
    start, stop = run.ranks.rows(len(parts))
    total = sum(len(part) * float(to_host(run.model.loss(*run.data.windows(split, part))))
                for part in parts[start:stop])
    return float(run.ranks.sum(total)[0] / len(offsets))


def stop(run, progress, interrupt):
    """Save what was not saved, and say how to go on -> exit status."""
    if run.step == 0:
        run.directory.discard()
        progress.say("stopped before the first step: there is nothing to keep")
    else:
        if run.saved_step != run.step:
            run.save()
        progress.say(f"stopped at step {run.step}; to go on: "
                     f"{command_line('train')} --resume --out-dir {run.directory.path}")
    return interrupt.status


if __name__ == "__main__":
    raise SystemExit(main())
