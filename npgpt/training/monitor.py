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
from npgpt.training.evaluation import Interrupted, bits_per_byte, mean_loss, sample
from npgpt.training.header import header, trial_seconds
from npgpt.training.interrupt import Interrupt
from npgpt.training.progress import Progress
from npgpt.training.run import failing_write, save
from npgpt.training.step import tokens_in_step

# Consecutive steps with non-finite gradients after which training fails. Reading their number waits
# for the device, so at most every ten steps.
MOST_NONFINITE = CHECK_INTERVAL = 10


class Monitor:
    """A context manager: the progress bar and the handling of signals are active inside."""

    def __init__(self, run, grads):
        self.run, self.grads = run, grads
        self.progress = Progress(run.config.max_iters, run.step)
        self.interrupt = Interrupt()
        # Live on the device: the number of such steps now, and the largest so far.
        self.nonfinite = self.most_nonfinite = run.model.device.xp.zeros((), "int64")
        self._first_step = run.step
        self._bytes_per_token = {}           # number of windows -> of the validation split
        self._clock = time.perf_counter(), run.step

    def __enter__(self):
        run = self.run
        seconds = trial_seconds(run, self.grads)      # if memory runs out here, nothing is written
        with ExitStack() as stack:
            stack.enter_context(self.progress)
            stack.enter_context(self.interrupt)
            if run.comm.is_first:
                with failing_write(run, "the metrics"):
                    run.directory.begin(run.step)
            self.progress.header(header(run, seconds))
            self._stack = stack.pop_all()
        self._began = time.perf_counter() - run.seconds
        self.restart_clock()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    @property
    def interrupted(self):
        """Whether this rank received a signal to stop."""
        return self.interrupt.signal is not None

    def step(self, lr, loss, grad_norm):
        """Record a step. Waits for the device only in steps that write a line of metrics, and every
        ten steps."""
        run, c, xp = self.run, self.run.config, self.run.model.device.xp
        run.seconds = time.perf_counter() - self._began
        self.nonfinite = xp.where(xp.isfinite(grad_norm), 0, self.nonfinite + 1)
        self.most_nonfinite = xp.maximum(self.most_nonfinite, self.nonfinite)
        if run.step % c.log_interval == 0:
            self._log_step(lr, loss, grad_norm)
        if run.step % min(c.log_interval, CHECK_INTERVAL) == 0 or run.step == c.max_iters:
            self._check_finite()

    def _log_step(self, lr, loss, grad_norm):
        run, c = self.run, self.run.config
        loss, grad_norm = float(to_host(loss)), float(to_host(grad_norm))
        seconds, steps = self.restart_clock()
        speed = steps * tokens_in_step(c, run.data.block_size) / seconds
        self._log(step=run.step, loss=loss, learning_rate=lr, grad_norm=grad_norm,
                  tokens_per_second=speed, seconds=run.seconds)
        self.progress.step(run.step, loss, speed, (c.max_iters - run.step) * seconds / steps)

    def _check_finite(self):
        """Raise RunError after ten non-finite steps in a row, or at the end if all steps were."""
        run = self.run
        count = int(to_host(self.most_nonfinite))
        if count >= min(MOST_NONFINITE, run.config.max_iters - self._first_step):
            raise RunError(f"by step {run.step} the gradients of {count} steps in a row were not "
                           f"finite; {run.kept}. Try a lower `learning_rate`")

    def after_batch(self, done, total):
        """Show the progress of an evaluation -> whether to stop it."""
        self.progress.evaluating(done, total)
        return self.interrupted

    def evaluation(self, losses):
        """Record and show the losses of an evaluation, and a sample of text."""
        run, (train_loss, val_loss) = self.run, losses
        run.evaluated_step = run.step
        bits = self._bits_per_byte(val_loss, run.config.eval_iters * run.config.batch_size)
        self._log(step=run.step, seconds=run.seconds, train_loss=train_loss, val_loss=val_loss,
                  val_bits_per_byte=bits)
        if not math.isfinite(val_loss):
            raise RunError(f"the validation loss at step {run.step} is not finite; {run.kept}. Try "
                           "a lower `learning_rate`")
        if run.comm.is_first:
            text = sample(run.model, run.data, run.config.seed)
            self.progress.evaluation(run.step, train_loss, val_loss, bits, text)

    def _bits_per_byte(self, loss, windows):
        """A loss over a number of windows of the validation split, None: all -> bits per byte."""
        data = self.run.data
        if windows not in self._bytes_per_token:
            offsets = data.offsets(data.val, windows)
            self._bytes_per_token[windows] = data.bytes_per_token(data.val, offsets)
        return bits_per_byte(loss, self._bytes_per_token[windows])

    def finish(self):
        """Report the result; if the run was stopped, save and say how to resume -> exit status."""
        run, say = self.run, self.progress.say
        if run.step < run.config.max_iters or run.evaluation_is_due:
            return self._stop()
        limit = run.config.final_windows or None
        try:
            loss = mean_loss(run.model, run.data, run.data.val, run.config, run.comm, limit,
                             self.after_batch)
        except Interrupted:
            return self._stop()
        windows = run.data.count(run.data.val)
        if limit is None or windows <= limit:
            values, over = {"whole_val_loss": loss}, "the whole split"
        else:
            values = {"final_val_loss": loss, "windows": limit}
            over = f"{limit:,} of the split's {windows:,} windows"
        bits = self._bits_per_byte(loss, limit)
        self._log(step=run.step, seconds=run.seconds, **values, bits_per_byte=bits)
        say(f"validation loss {loss:.4f} ({bits:.4f} bits per byte) over {over}, after "
            f"{run.seconds:.0f} s")
        own = run.model.device.peak_memory() or 0
        peak = run.comm.all_reduce(own)
        if peak:
            most = "" if run.comm.shares_memory else (
                f", at most {size(max(run.comm.exchange(own)))} in one rank")
            say(f"peak memory: {size(peak)}{most}")
        if run.comm.is_first:
            say(f"the model is in {run.best}; to generate text: "
                f"{command_line('sample')} --model {run.directory.path}")
        return 0

    def _stop(self):
        run, say = self.run, self.progress.say
        if run.step and run.saved_step != run.step:
            save(run)
        if not run.comm.is_first:
            return self.interrupt.status
        if run.step == 0:
            run.directory.discard()
            say("stopped before the first step; nothing was saved")
        else:
            where = f"at step {run.step}"
            if run.step == run.config.max_iters:
                where = "in the last evaluation, after all steps"
            say(f"stopped {where}; to continue: {command_line('train')} --resume "
                f"--out-dir {run.directory.path}")
        return self.interrupt.status

    def _log(self, **values):
        if self.run.comm.is_first:
            with failing_write(self.run, "the metrics"):
                self.run.directory.log(**values)

    def restart_clock(self):
        """Exclude what has taken time until now from the speed -> seconds and steps since the last
        restart."""
        (before, first), self._clock = self._clock, (time.perf_counter(), self.run.step)
        return self._clock[0] - before, self._clock[1] - first
