"""The base class of the optimisers: parameters, a shard of them, a count of steps, named state.

An optimiser updates a part of the flat buffer of parameters. If several ranks train, each updates
its shard, a list of slices of the buffer; the shards of all ranks cover the optimiser's part
exactly once. The order of the buffer does not depend on the number of ranks. Ranks that share
memory have one state together. Otherwise each rank has the state of its shard alone, as in ZeRO's
stage 1 (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

from npgpt.backend import device_of
from npgpt.parallel import Single


class Optimizer:
    """Base of the optimisers.

    Each has `state`, name -> array (n,), what a checkpoint keeps beside the parameters;
    `_slices(rank, size, ranges)`, the shard of a rank; and `_update(grads, lr, scale)`."""

    def __init__(self, params, part, comm=None):
        """part: the slice of the buffer that it updates. comm: the Communicator of the ranks; None:
        this is the only process."""
        self.params, self.part = params, part
        self.device = device_of(params.flat)
        self.comm = comm or Single()
        self.t = 0                      # steps done
        self.set_rank(self.comm.rank, self.comm.size, self.comm.ranges(params))

    def set_rank(self, rank, size, ranges=None):
        """From now on, update the shard of this rank. size: the number of ranks. ranges: slices of
        the buffer, each of which is divided among the ranks; None: the whole buffer. `shards` has
        the slices of every rank, `shard` those of this one, in the order of the buffer."""
        ranges = [self.part] if ranges is None else ranges
        self.shards = [[slice(*ends) for ends in sorted(
            (s.start, s.stop) for s in self._slices(r, size, ranges))] for r in range(size)]
        self.shard = self.shards[rank]
        self._in_state, at = {}, 0       # start of a slice of the shard -> where it is in the state
        for part in self.shard:
            where = part.start - self.part.start if self.comm.shares_memory else at
            self._in_state[part.start] = slice(where, where + part.stop - part.start)
            at += part.stop - part.start

    def step(self, grads, lr, scale=None):
        """Update the shard. grads: the buffer of gradients, with the sum over all ranks in the
        shard; it is not modified. lr: the learning rate. scale: a factor for the gradients, a
        float64 scalar of the device; None: 1; 0 leaves the parameters unchanged.
        """
        xp = self.device.xp
        self.t += 1
        self._update(grads, lr, xp.ones((), "float64") if scale is None else scale)

    @property
    def whole_state(self):
        """name -> the shape of the whole array of the state, this rank's part of it, and the slices
        of the whole of which the parts of all ranks consist, rank -> list."""
        start, shape = self.part.start, (self.part.stop - self.part.start,)
        slices = [[slice(s.start - start, s.stop - start) for s in shard] for shard in self.shards]
        return {name: (shape, array, slices) for name, array in self.state.items()}

    def load_state(self, tensors, t):
        """Restore a checkpoint. tensors: name -> whole array of the state; None in other ranks than
        the first. t: the steps done."""
        for name, (_, array, slices) in self.whole_state.items():
            self.comm.scatter(tensors and tensors[name], array, slices)
        self.t = t

    def _scaled(self, g, scale):
        """g times scale, a scalar of the device; 0 if scale is 0, even where g is not finite."""
        if self.device.queues:                       # looking at scale would wait
            scaled = g * scale
            self.device.xp.copyto(scaled, 0, where=scale == 0)       # inf * 0 is NaN
            return scaled
        return g * scale if scale else self.device.xp.zeros_like(g)

    def _zeros(self):
        """-> zeros for an array of the state."""
        held = [self.part] if self.comm.shares_memory else self.shard
        n = sum(s.stop - s.start for s in held)
        return self.comm.share(self.device.xp.zeros(n, self.params.flat.dtype))


class OptimizerGroup:
    """Several optimisers as one, each for its own part of the parameters."""

    def __init__(self, optimizers):
        self.optimizers = optimizers
        self._join_shards()

    @property
    def state(self):
        """name -> array."""
        return {name: array for o in self.optimizers for name, array in o.state.items()}

    @property
    def whole_state(self):
        """As Optimizer.whole_state."""
        return {name: of for o in self.optimizers for name, of in o.whole_state.items()}

    def set_rank(self, rank, size, ranges=None):
        """As Optimizer.set_rank."""
        for optimizer in self.optimizers:
            optimizer.set_rank(rank, size, ranges)
        self._join_shards()

    def _join_shards(self):
        self.shards = [[s for shard in of_rank for s in shard]
                       for of_rank in zip(*(o.shards for o in self.optimizers))]
        self.shard = [s for o in self.optimizers for s in o.shard]

    def step(self, grads, lr, scale=None):
        """As Optimizer.step."""
        for optimizer in self.optimizers:
            optimizer.step(grads, lr, scale)

    def load_state(self, tensors, t):
        """As Optimizer.load_state."""
        for optimizer in self.optimizers:
            optimizer.load_state(tensors, t)
