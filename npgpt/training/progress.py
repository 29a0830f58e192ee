"""The output of training: a header, a progress bar, losses and samples.

In a terminal the bar stays at the bottom of the screen and everything else scrolls above it. If the
output goes to a file, there are plain lines instead, at most one every ten seconds apart from
evaluations.
"""

import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from npgpt.cli.screen import PLAIN_SECONDS, Screen
from npgpt.training.estimate import duration


class Progress:
    """A context manager: the bar is shown inside."""

    def __init__(self, max_iters, first_step=0, console=None):
        self.console = console or Screen(sys.stdout)
        self.max_iters = max_iters
        self._said = time.monotonic()
        self._step, self._numbers = first_step, ""
        self._bar = Bar(
            BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=max_iters, completed=first_step, numbers="")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        self._bar.stop()

    def header(self, facts):
        """Print a line for each name and text."""
        width = max(map(len, facts))
        for name, text in facts.items():
            self.say(f"{name:{width}}  {text}")

    def say(self, text, style=None):
        """Print a line above the bar."""
        self.console.print(text, style=style, soft_wrap=True)

    def step(self, step, loss, tokens_per_second, seconds_left):
        """Show the latest numbers: loss in nats per token."""
        numbers = (f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  "
                   f"{duration(seconds_left)} left")
        self._step = step
        self._show(numbers)
        self._say_sometimes(f"step {step}/{self.max_iters}  {numbers}")

    def evaluating(self, done, total):
        """Show how many batches of an evaluation are done, which the bar counts until the last."""
        if done == total:
            self._show(self._numbers)
        else:
            text = f"evaluation, batch {done:,} of {total:,}"
            self._bar.update(self._task, completed=done, total=total, numbers=text)
            self._say_sometimes(text)

    def evaluation(self, step, train_loss, val_loss, bits, sample):
        """Show losses in nats per token, the second one also in bits per byte, and a sample of
        text."""
        self._said = time.monotonic()
        self._step = step
        self._show(self._numbers)
        self.say(f"step {step}/{self.max_iters}  train {train_loss:.4f}  val {val_loss:.4f}  "
                 f"{bits:.4f} bits/byte", style="bold")
        for line in sample.strip("\n").splitlines():
            self.say(f"    {line}", style="dim")

    def _show(self, numbers):
        """Let the bar count steps, with these numbers beside it."""
        self._numbers = numbers
        self._bar.update(self._task, completed=self._step, total=self.max_iters, numbers=numbers)

    def _say_sometimes(self, text):
        """Print a line where there is no bar, unless one was printed a moment ago."""
        if not self.console.is_terminal and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            self.say(text)
