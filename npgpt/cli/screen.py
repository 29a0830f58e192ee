"""A terminal that may be closed at any time, for rich."""

import errno
from contextlib import contextmanager

from rich.console import Console

from npgpt.cli.command import discard

PLAIN_SECONDS = 10       # between two lines about work in progress where there is no terminal


class Output:
    """A stream of the process, as a file for rich. After its terminal is closed, what is written
    goes nowhere, because a run still has to be saved. Other errors are raised and name it."""

    def __init__(self, stream):
        self._stream = stream
        self._is_terminal = self._stream.isatty()

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        with self._failing():
            self._stream.write(text)

    def flush(self):
        with self._failing():
            self._stream.flush()

    @contextmanager
    def _failing(self):
        try:
            yield
        except OSError as error:
            discard(self._stream)
            if error.errno != errno.EIO or not self._is_terminal:
                raise OSError(error.errno, error.strerror, "the output") from error


class Screen(Console):
    """rich's console on a stream, None for one that is closed. A closed pipe raises
    BrokenPipeError."""

    def __init__(self, stream):
        super().__init__(file=stream and Output(stream), highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self):
        raise BrokenPipeError
