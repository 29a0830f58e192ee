"""A progress bar on stderr for work that is measured in bytes or in another unit."""

import sys
import time

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from npgpt.cli.screen import PLAIN_SECONDS, Screen


class Bar:
    """A context manager: inside, bar(text, done, total) shows how far the work is. If stderr is not
    a terminal, it prints a line every ten seconds instead."""

    def __init__(self, console=None):
        self._console = console or Screen(sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(),
            TimeRemainingColumn(), console=self._console, transient=True,
            disable=not self._console.is_terminal)
        self._task = None
        self._said = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.stop()

    def __call__(self, text, done, total):
        if sys.stderr is None:                # it is closed
            return
        if self._task is None:
            self._task = self._bar.add_task(text)
            self._bar.start()
        self._bar.update(self._task, description=text, completed=done, total=total or 1)
        if not self._console.is_terminal and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            self._console.print(f"{text}, {100 * done // (total or 1)} %", soft_wrap=True)
