"""Everything around the training steps: timing, metrics, output, Ctrl-C, the final report.

Every rank has a Monitor, and all ranks call the same methods. Only the first rank writes output.
"""

import math
import time
from contextlib import ExitStack

from npgpt.backend import to_host
from npgpt.cli.bundle import command_line
from npgpt.errors import RunError
from npgpt.training.estimate import size
from npgpt.training.evaluation import mean_loss, sample
from npgpt.training.header import header, trial_seconds
from npgpt.training.interrupt import Interrupt
from npgpt.training.progress import Progress
from npgpt.training.run import save
from npgpt.training.step import tokens_in_step

MOST_NONFINITE = 10      # consecutive steps with non-finite gradients after which training fails


class Monitor:
    """A context manager: the progress bar and the handling of signals are active inside."""

    def __init__(self, run, grads):
        self.run, self.grads = run, grads
        self.progress = Progress(run.config.max_iters, run.step)
        self.interrupt = Interrupt()
        self.nonfinite = run.model.device.xp.zeros((), "int64")     # lives on the device
        self._clock = time.perf_counter(), run.step

    def __enter__(self):
        run = self.run
        seconds = trial_seconds(run, self.grads)      # if memory runs out here, nothing is written
        with ExitStack() as stack:
            stack.enter_context(self.progress)
            stack.enter_context(self.interrupt)
            if run.comm.is_first:
                run.directory.begin(run.step)
            self.progress.header(header(run, seconds))
            self._stack = stack.pop_all()
        self._began = time.perf_counter() - run.seconds
        self._restart_clock()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    @property
    def interrupted(self):
        """Whether this rank received a signal to stop."""
        return self.interrupt.signal is not None

    def step(self, lr, loss, grad_norm):
        """Record a step. Waits for the device only in steps that write a line of metrics."""
        run, c, xp = self.run, self.run.config, self.run.model.device.xp
        run.seconds = time.perf_counter() - self._began
        self.nonfinite = xp.where(xp.isfinite(grad_norm), 0, self.nonfinite + 1)
        if run.step % c.log_interval:
            return
        loss, grad_norm = float(to_host(loss)), float(to_host(grad_norm))
        seconds, steps = self._restart_clock()
        speed = steps * tokens_in_step(c, run.data.block_size) / seconds
        self._log(step=run.step, loss=loss, learning_rate=lr, grad_norm=grad_norm,
                  tokens_per_second=speed, seconds=run.seconds)
        self.progress.step(run.step, loss, speed, (c.max_iters - run.step) * seconds / steps)
        if int(to_host(self.nonfinite)) >= MOST_NONFINITE:
            raise RunError(f"the gradients of {MOST_NONFINITE} steps in a row, up to {run.step}, "
                           f"are not finite; {run.kept}. Try a lower `learning_rate`")

    def evaluation(self, losses):
        """Record and show the losses of an evaluation, and a sample of text."""
        run, (train_loss, val_loss) = self.run, losses
        self._log(step=run.step, seconds=run.seconds, train_loss=train_loss, val_loss=val_loss)
        if not math.isfinite(val_loss):
            raise RunError(f"the validation loss at step {run.step} is not finite; {run.kept}. Try "
                           "a lower `learning_rate`")
        if run.comm.is_first:
            text = sample(run.model, run.data, run.config.seed)
            self.progress.evaluation(run.step, train_loss, val_loss, text)

    def saved(self):
        """Exclude the time of a checkpoint from the speed."""
        self._restart_clock()

    def finish(self):
        """Report the result; if the run was stopped, save and say how to resume -> exit status."""
        run, say = self.run, self.progress.say
        if run.step < run.config.max_iters:
            return self._stop()
        whole = mean_loss(run.model, run.data, run.data.val, run.config, run.comm)
        self._log(step=run.step, seconds=run.seconds, whole_val_loss=whole)
        say(f"validation loss {whole:.4f} over the whole split, after {run.seconds:.0f} s")
        # Ranks that only update share the first rank's memory, apart from a few MB. The others
        # share a part of it, which counts once.
        own = (run.model.device.peak_memory() or 0) - run.comm.shared_memory
        peak = run.comm.all_reduce(max(own, 0) if run.comm.computes else 0)
        if peak:
            say(f"peak memory: {size(peak)}")
        if run.comm.is_first:
            say(f"the model is in {run.best}; to generate text: "
                f"{command_line('sample')} --out-dir {run.directory.path}")
        return 0

    def _stop(self):
        run, say = self.run, self.progress.say
        if run.step and run.saved_step != run.step:
            save(run)
        if not run.comm.is_first:
            return 0
        if run.step == 0:
            run.directory.discard()
            say("stopped before the first step; nothing was saved")
        else:
            say(f"stopped at step {run.step}; to continue: {command_line('train')} --resume "
                f"--out-dir {run.directory.path}")
        return self.interrupt.status

    def _log(self, **values):
        if self.run.comm.is_first:
            self.run.directory.log(**values)

    def _restart_clock(self):
        """-> seconds and steps since it was started last."""
        (before, first), self._clock = self._clock, (time.perf_counter(), self.run.step)
        return self._clock[0] - before, self._clock[1] - first
