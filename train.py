"""Train a GPT on a text: `python train.py`, or `python train.py --help` for all options.

This is the training loop: each step takes a batch, computes its loss and the gradients, and updates
the parameters. The batch of a step and its dropout masks depend only on the seed and the step. So a
run that is stopped and resumed gives the same result as an uninterrupted one.
"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While the modules are imported, Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from contextlib import suppress

import numpy as np
from threadpoolctl import threadpool_limits

from npgpt.backend import get_device
from npgpt.cli.command import run_command
from npgpt.host import keep_freed_memory
from npgpt.optim import learning_rate
from npgpt.parallel import world
from npgpt.training.estimate import LESS_MEMORY
from npgpt.training.evaluation import Interrupted, evaluate
from npgpt.training.monitor import Monitor
from npgpt.training.request import read_command_line
from npgpt.training.run import save
from npgpt.training.setup import build_run
from npgpt.training.step import batches_of_step, train_step


def train(run):
    """Train; every rank runs this -> exit status."""
    c, model, optimizer, comm, data = run.config, run.model, run.optimizer, run.comm, run.data
    grads = model.gradients(run.buffers[comm.rank])
    optimizer.set_rank(comm.rank, comm.size, comm.ranges(model.params))

    with Monitor(run, grads) as monitor:       # the screen, the metrics, Ctrl-C
        with suppress(Interrupted):            # in an evaluation
            while True:
                if run.evaluation_is_due:
                    losses = evaluate(model, data, c, comm, monitor.after_batch)
                    monitor.evaluation(losses)
                    if run.step > 0:
                        save(run, losses[1])
                    monitor.restart_clock()

                if run.step == c.max_iters or comm.any(monitor.interrupted):
                    break
                lr = learning_rate(run.step, c)
                batches = batches_of_step(data, c, run.step, comm)
                loss, grad_norm = train_step(
                    model, optimizer, batches, grads, comm, lr=lr, grad_clip=c.grad_clip
                )
                run.step += 1
                monitor.step(lr, loss, grad_norm)

        return monitor.finish()


def main(arguments=None):
    """Train with the options of the command line -> exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Monitor counts non-finite steps; several processes limit BLAS's threads, until they end.
    with np.errstate(all="ignore"), threadpool_limits():
        return run_command("train.py", lambda: world().run("train.py", lambda: start(arguments)),
                           LESS_MEMORY)


def start(arguments):
    keep_freed_memory()
    run = build_run(read_command_line(arguments, default_config))
    try:
        return run.comm.launch(lambda: train(run), lambda: run.kept)
    finally:
        run.directory.close()


def default_config(device, family):
    """The name of the default configuration for a device, and for a family if one is given."""
    if get_device(device).name == "gpu":
        return "baby"
    return "laptop" if family == "gpt" else "modern"


if __name__ == "__main__":
    raise SystemExit(main())
