"""The communication between ranks, with MPI's names.

Ranks run the same program. Each computes the gradients of its rows of a batch, sums its shard of
the gradients over all ranks, updates that shard of the parameters, and gathers the rest:

    flat = comm.reduce_scatter(grads, optimizer.shard)
    norm = comm.norm(flat, optimizer.shard)
    optimizer.step(flat, lr, clip_scale(norm, grad_clip))
    comm.all_gather(model.params.flat, optimizer.shard)

In some implementations `launch` forks the ranks, in others a launcher has started them. Some share
memory and have one copy of the parameters; in others each rank has its own. The methods are
collective: every rank calls them in the same order. Sums are in the order of the ranks, so runs
with the same number of ranks are identical to the last bit.
"""

from npgpt.backend import array_module
from npgpt.parallel.norm import squared_norm


class Communicator:
    """The interface, implemented for a single rank. Subclasses override what differs with more."""

    rank, size = 0, 1
    local_rank = 0           # among the ranks of this machine: the index of its GPU
    computing = 1            # the number of ranks that compute gradients: the first ones
    description = ""         # shown to the user, may be empty

    @property
    def shared_memory(self):
        """Bytes of this rank's memory that are the first rank's as well."""
        return 0

    @property
    def is_first(self):
        """Whether this is rank 0, the only one that writes files and output."""
        return self.rank == 0

    @property
    def computes(self):
        """Whether this rank computes gradients."""
        return self.rank < self.computing

    def rows(self, count):
        """-> start, stop: which of `count` rows this rank computes."""
        first, last = (min(rank, self.computing) for rank in (self.rank, self.rank + 1))
        return first * count // self.computing, last * count // self.computing

    # --- before launch ---

    def broadcast(self, make):
        """Call make() in rank 0 only -> its result, in every rank."""
        return make()

    def share(self, array):
        """The array, in memory that all ranks of this machine share if they can."""
        return array

    def buffers(self, like):
        """rank -> zeros like this array, for that rank's gradients; None if it computes none. At
        least for this rank."""
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
        """grads: this rank's Gradients, in its buffer from `buffers` -> a buffer whose shard is the
        sum over all ranks."""
        return grads.flat

    def norm(self, flat, shard):
        """The Euclidean norm of a buffer whose shards are in different ranks, a float64 scalar."""
        total = self.all_reduce(squared_norm(flat, shard))
        return array_module(total).sqrt(total)

    def all_gather(self, flat, shard):
        """Give every rank the shards of all ranks of a buffer, which is then the same in all."""

    def any(self, flag):
        """Whether any rank has set its flag; the same result in every rank. It does not wait, so a
        flag may take effect only at the next call. Between two calls there must be a barrier or
        another collective."""
        return flag

    def any_so_far(self, flag):
        """Whether any rank has set its flag by now. Not collective: ranks may call it as often as
        they like, and get different results at the same moment."""
        return flag
