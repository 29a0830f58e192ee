"""The base class of the optimisers: parameters, a shard of them, a count of steps, named state.

An optimiser updates a part of the flat buffer of parameters. If several ranks train, each updates
its shard, a list of slices of the buffer; the shards of all ranks cover the optimiser's part
exactly once. The order of the buffer does not depend on the number of ranks.
"""

from npgpt.backend import device_of


class Optimizer:
    """Base of the optimisers.

    Each has `state`, name -> array, what a checkpoint keeps beside the parameters; `start`, where
    in the buffer of parameters these arrays begin; `_slices(rank, size)`, the shard of a rank; and
    `_update(grads, lr, scale)`."""

    start = 0

    def __init__(self, params):
        self.params = params
        self.device = device_of(params.flat)
        self.t = 0                      # steps done
        self.set_rank(0, 1)

    def set_rank(self, rank, size):
        """From now on, update the shard of this rank. size: the number of ranks."""
        self.shard = self._slices(rank, size)

    def step(self, grads, lr, scale=None):
        """Update the shard. grads: the buffer of gradients, with the sum over all ranks in the
        shard; it is not modified. lr: the learning rate. scale: a factor for the gradients, a
        float64 scalar of the device; None: 1; 0 leaves the parameters unchanged.
        """
        xp = self.device.xp
        self.t += 1
        self._update(grads, lr, xp.ones((), "float64") if scale is None else scale)

    @property
    def sharded_state(self):
        """Pairs of an array of the state and the slices of it that this rank keeps up to date."""
        own = [slice(s.start - self.start, s.stop - self.start) for s in self.shard]
        return [(array, own) for array in self.state.values()]

    def load_state(self, tensors, t):
        """Restore a checkpoint. tensors: name -> array, the state; t: the steps done."""
        for name, array in self.state.items():
            array[...] = self.device.to_device(tensors[name])
        self.t = t


class OptimizerGroup:
    """Several optimisers as one, each for its own part of the parameters."""

    def __init__(self, optimizers):
        self.optimizers = optimizers

    @property
    def shard(self):
        """The slices of the buffer that this rank updates."""
        return [s for optimizer in self.optimizers for s in optimizer.shard]

    @property
    def state(self):
        """name -> array."""
        return {name: array for o in self.optimizers for name, array in o.state.items()}

    @property
    def sharded_state(self):
        """As Optimizer.sharded_state."""
        return [pair for optimizer in self.optimizers for pair in optimizer.sharded_state]

    def set_rank(self, rank, size):
        """As Optimizer.set_rank."""
        for optimizer in self.optimizers:
            optimizer.set_rank(rank, size)

    def step(self, grads, lr, scale=None):
        """As Optimizer.step."""
        for optimizer in self.optimizers:
            optimizer.step(grads, lr, scale)

    def load_state(self, tensors, t):
        """As Optimizer.load_state."""
        for optimizer in self.optimizers:
            optimizer.load_state(tensors, t)
