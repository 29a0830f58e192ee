"""The communication between ranks, with MPI's names.

Ranks run the same program. Each computes the gradients of its rows of a batch, sums its shard of
the gradients over all ranks, updates that shard of the parameters, and gathers the rest:

    comm.begin(grads, optimizer.shards, passes)
    ...                                       each backward adds to grads
    flat = comm.reduce_scatter(grads, optimizer.shards)
    norm = comm.norm(flat, optimizer.shards)
    optimizer.step(flat, lr, clip_scale(norm, grad_clip))
    comm.all_gather(model.params.flat, optimizer.shards)

In some implementations `launch` forks the ranks, in others a launcher has started them. Some share
memory and have one copy of the parameters; in others each rank has its own. The methods are
collective: every rank calls them in the same order. A sum over the ranks has the same order in
every run with an implementation and a number of ranks, so these runs are identical to the last bit.
"""

from npgpt.backend import array_module, device_of, to_host
from npgpt.parallel.norm import squared_norm


class Communicator:
    """The interface, implemented for a single rank. Subclasses override what differs with more."""

    rank, size = 0, 1
    local_rank, local_size = 0, 1      # among the ranks of this machine
    computing = 1            # the number of ranks that compute gradients: the first ones
    description = ""         # shown to the user, may be empty
    library = ""             # the MPI library and its version
    launched = False         # whether a launcher such as mpiexec started the ranks
    shares_memory = True     # whether there is one copy of parameters and state for all ranks

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

    def run(self, name, command):
        """Call command() -> its exit status. The ranks of a launcher begin with this. If it fails
        in some of them, all end, and one tells why. name: the command's, for messages."""
        return command()

    def broadcast(self, make):
        """Call make() in rank 0 only -> its result, in every rank; so is a UserError."""
        return make()

    def exchange(self, value):
        """-> the values of all ranks, a list."""
        return [value]

    def share(self, array):
        """The array, in memory that all ranks of this machine share if they can."""
        return array

    def ranges(self, params):
        """-> slices of the buffer of trainable parameters, each of which an optimiser divides among
        the ranks; None: the whole buffer."""

    def buffers(self, like):
        """rank -> zeros like this array, for that rank's gradients; None if it computes none. At
        least for this rank."""
        return [array_module(like).zeros_like(like)]

    def same(self, flat):
        """Give every rank rank 0's buffer of parameters."""

    def scatter(self, whole, array, slices):
        """Copy to this rank's `array` its part of a whole NumPy array of rank 0, which consists of
        slices[rank]."""
        array[...] = device_of(array).to_device(whole)

    def launch(self, work, kept=None):
        """Run work() in every rank -> what it returns in rank 0. kept(), for the message if a rank
        ends early: what is kept."""
        return work()

    # --- in every rank ---

    def barrier(self):
        """Return when every rank has called it."""

    def all_reduce(self, number):
        """The sum over all ranks of a scalar."""
        return number

    def begin(self, grads, shards, passes):
        """Set this rank's Gradients to 0, in its buffer from `buffers`, before this number of
        backward passes. Sums may start before these have ended. shards: rank -> slices of the
        buffer."""
        grads.zero()

    def reduce_scatter(self, grads, shards):
        """-> a buffer whose slices shards[rank] are the sum over all ranks of the gradients."""
        return grads.flat

    def norm(self, flat, shards):
        """The Euclidean norm of a buffer whose shards are in different ranks, a float64 scalar."""
        total = self.all_reduce(squared_norm(flat, shards[self.rank]))
        return array_module(total).sqrt(total)

    def all_gather(self, flat, shards):
        """Give every rank the shards of all ranks of a buffer, which is then the same in all."""

    def collect(self, array, slices):
        """The inverse of `scatter` -> in rank 0, the whole array in parts, NumPy arrays in order;
        other ranks return when rank 0 has taken theirs."""
        return [to_host(array)]

    def any(self, flag):
        """Whether any rank has set its flag; the same result in every rank. It does not wait, so a
        flag may take effect only at the next call. Between two calls there must be a barrier or
        another collective."""
        return flag

    def any_so_far(self, flag):
        """Whether any rank has set its flag by now. Not collective: ranks may call it as often as
        they like, and get different results at the same moment."""
        return flag
