"""What ranks say to each other, in MPI's words, and what every implementation has to keep to.

Ranks run the same program. Each computes the gradients of its rows of a batch, sums its shard of
the gradients over all ranks, updates that shard of the parameters, and collects the rest:

    flat = comm.reduce_scatter(grads, optimizer.shard)
    norm = comm.norm(flat, optimizer.shard)
    optimizer.step(flat, lr, clip_scale(norm, grad_clip))
    comm.all_gather(model.params.flat, optimizer.shard)

Some implementations start the ranks (`launch` forks them), in others they are there from the start.
Some share memory, so that there is one copy of the parameters, in others each rank has its own. The
methods are collective: every rank calls them in the same order. Sums are taken in the order of the
ranks, so that a run with the same number of ranks is the same to the last bit.
"""

from npgpt.backend import array_module
from npgpt.parallel.norm import squared_norm


class Communicator:
    """One rank, alone: every method is what it comes down to with one rank. Other implementations
    override those that need more."""

    rank, size = 0, 1
    local_rank = 0           # among the ranks of this machine: the number of its GPU
    computing = 1            # how many of the ranks compute gradients: the first ones
    description = ""         # for a person to read, if there is something to say

    @property
    def is_first(self):
        """Whether this is rank 0, the only one that writes files and talks to the user."""
        return self.rank == 0

    @property
    def computes(self):
        """Whether this rank computes gradients."""
        return self.rank < self.computing

    def rows(self, count):
        """The first of `count` rows that this rank computes, and the one after the last."""
        first, last = (min(rank, self.computing) for rank in (self.rank, self.rank + 1))
        return first * count // self.computing, last * count // self.computing

    # --- before launch ---

    def broadcast(self, make):
        """What make() returns in rank 0, in every rank. make runs in rank 0 alone."""
        return make()

    def share(self, array):
        """The array, where all ranks of this machine see it if they can share memory."""
        return array

    def buffers(self, like):
        """rank -> zeros like this array, for the gradients of that rank. Has at least its own."""
        return [array_module(like).zeros_like(like)]

    def launch(self, work):
        """Run work() in every rank -> what it returns in rank 0."""
        return work()

    # --- in every rank ---

    def barrier(self):
        """Return when every rank has called it."""

    def all_reduce(self, number):
        """The sum over all ranks of a scalar."""
        return number

    def reduce_scatter(self, grads, shard):
        """grads: this rank's Gradients, over its one of `buffers`. -> a buffer that has, in the
        shard, the sum over all ranks."""
        return grads.flat

    def norm(self, flat, shard):
        """The Euclidean norm of a buffer of which every rank has its shard, a float64 scalar."""
        total = self.all_reduce(squared_norm(flat, shard))
        return array_module(total).sqrt(total)

    def all_gather(self, flat, shard):
        """Give every rank the shards of all ranks of a buffer, which is then the same in all."""

    def any(self, flag):
        """Whether any rank has raised its flag; the same answer in every rank. It waits for nobody,
        so a flag may be seen only at the next call; between two calls there must be a barrier or
        another collective."""
        return flag
