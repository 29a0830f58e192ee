"""Buckets: parts of the buffer of gradients, each of which is summed over the ranks as soon as the
backward has completed it, while it goes on with the layers before.

A bucket is a range of the buffer, and contains whole parameters of one group. The last layers are
complete first. All ranks sum the buckets in the same order, whatever they compute.
"""

from dataclasses import dataclass

SIZE = 2**20      # numbers from which on a bucket is full: 4 MB


@dataclass(frozen=True)
class Bucket:
    """A range of the buffer of gradients."""

    start: int
    stop: int
    names: tuple[str, ...]      # of the parameters in it


def buckets(params, size=None):
    """Parameters or Gradients -> the Buckets of the trainable ones, in the order in which a
    backward completes them. size: the number of elements from which on a bucket is full."""
    found = []
    for name, where in params.slices.items():
        param = params.architecture[name]
        if not param.trainable:
            break                                    # frozen parameters are last
        last = found[-1] if found else None
        if (last and params.architecture[last.names[0]].group == param.group
                and last.stop - last.start < (size or SIZE)):
            found[-1] = Bucket(last.start, where.stop, (*last.names, name))
        else:
            found.append(Bucket(where.start, where.stop, (name,)))
    use = {name: number for number, name in enumerate(params.architecture)}
    return sorted(found, key=lambda bucket: -min(use[name] for name in bucket.names))


def runs(shards, start=0, stop=None):
    """shards: rank -> slices of the buffer -> lists of pairs of a rank and its slice, for the range
    from start to stop. In a list the slices are neighbours and the ranks ascend, so that one
    collective serves them all."""
    pieces = sorted(((part.start, rank, part) for rank, shard in enumerate(shards)
                     for part in shard if start <= part.start < (stop or part.stop)))
    found = []
    for _, rank, part in pieces:
        if found and found[-1][-1][1].stop == part.start and found[-1][-1][0] < rank:
            found[-1].append((rank, part))
        else:
            found.append([(rank, part)])
    return found


class Reduction:
    """Starts the sums of the buckets of Gradients during the last backward pass of a step."""

    def __init__(self, grads, shards, start, drive):
        """shards: rank -> slices of the buffer. start(pieces): starts the sum over all ranks of
        such a list as `runs` returns, without waiting for it. drive(): called with every gradient
        that is complete, for sums that need it to go on."""
        self.grads = grads
        self.flat = grads.flat               # the buffer
        self._start, self._drive = start, drive
        self._buckets = buckets(grads)
        self._runs = {b: runs(shards, b.start, b.stop) for b in self._buckets}
        self._of = {name: bucket for bucket in self._buckets for name in bucket.names}

    def begin(self, passes):
        """Set the gradients to 0. passes: the number of backward passes that add to them."""
        self._missing = {bucket: len(bucket.names) for bucket in self._buckets}
        self._waiting = list(reversed(self._buckets))
        self.grads.zero(passes, self._completed)

    def finish(self):
        """Start the sums that have not been started."""
        self.grads.fill()
        while self._waiting:
            self._start_next()

    def _completed(self, name):
        self._missing[self._of[name]] -= 1
        while self._waiting and not self._missing[self._waiting[-1]]:
            self._start_next()
        self._drive()

    def _start_next(self):
        for pieces in self._runs[self._waiting.pop()]:
            self._start(pieces)
