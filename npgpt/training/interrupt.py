"""Ctrl-C, SIGTERM, and SIGHUP, which a closed terminal sends: the first signal stops the run after
the current step or batch of an evaluation, the second one stops it immediately."""

import signal

from npgpt.parallel import SIGNALS


class Interrupt:
    """Context manager: stores the first of these signals in `signal`, which is None before."""

    def __init__(self):
        self.signal = None
        self._before = {}

    def __enter__(self):
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:      # as under nohup
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error):
        self._restore()

    @property
    def status(self):
        """The exit status that tells a shell which signal ended the program."""
        return 128 + (self.signal or signal.SIGINT)      # it may be another rank that was told to

    def _receive(self, number, frame):
        self.signal = number
        self._restore()               # the previous handler gets the next signal

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
