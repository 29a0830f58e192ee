"""Ctrl-C and SIGTERM: the first asks the run to stop when its step is done, the second is obeyed
at once."""

import signal


class Interrupt:
    """While the `with` block runs, remembers the first signal to stop in `signal` (else None)."""

    def __init__(self):
        self.signal = None
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:      # as under nohup
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error):
        self._restore()

    @property
    def status(self):
        """The exit status that tells a shell which signal ended the program."""
        return 128 + self.signal

    def _receive(self, number, frame):
        self.signal = number
        self._restore()               # so that the next one is not ours

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
