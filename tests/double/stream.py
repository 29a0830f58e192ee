"""The double of CUDA's streams and events.

The double computes at once, which is what the default stream does. Work on another stream is done
as late as possible: when the default stream waits for an event after it. So if a wait is missing,
results are missing too. The other direction is checked: work that is given to a stream must wait
for everything that the default stream was given before. If it need not, it would be a race on a
GPU, and raises one here.
"""

import itertools

from tests.double import array


class Race(AssertionError):
    """A stream may begin before the default stream has written what it reads."""


def _given():
    """A number that grows with the work that the default stream was given."""
    return array.Work.operations + array.Work.assignments


class Event:
    """A point in the work of a stream."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.stream, self.point = None, 0


class Default:
    """The default stream."""

    ptr = 0

    def synchronize(self):
        array.wait("synchronize")

    def record(self, event=None):
        event = event or Event()
        event.stream, event.point = self, _given()
        return event

    def wait_event(self, event):
        if isinstance(event.stream, Stream):
            event.stream.finish(event.point)

    def enqueue(self, work):
        work()


class Stream:
    """A stream that does not wait for the default stream by itself."""

    null = None
    _addresses = itertools.count(4096, 4096)

    def __init__(self, null=False, non_blocking=False, ptds=False, *, priority=None):
        if null or ptds or not non_blocking:
            raise NotImplementedError("the double has only streams that are non-blocking")
        self.ptr = next(self._addresses)
        streams[self.ptr] = self
        self._waiting, self._done = [], 0        # functions; the number of those that were called
        self._seen = 0                           # the work of the default stream that it waits for

    def record(self, event=None):
        event = event or Event()
        event.stream, event.point = self, self._done + len(self._waiting)
        return event

    def wait_event(self, event):
        if event.stream is DEFAULT:
            self._seen = max(self._seen, event.point)
        elif event.stream not in (None, self):
            raise NotImplementedError("the double's streams wait only for the default stream")

    def enqueue(self, work):
        if self._seen < _given():
            raise Race("a stream does not wait for what the default stream was given before")
        self._waiting.append(work)

    def finish(self, point):
        """Do the work up to the point of an event."""
        while self._waiting and self._done < point:
            self._waiting.pop(0)()
            self._done += 1

    def synchronize(self):
        array.wait("synchronize")
        self.finish(self._done + len(self._waiting))


DEFAULT = Stream.null = Default()
streams = {DEFAULT.ptr: DEFAULT}             # address -> stream
