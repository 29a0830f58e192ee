"""How many threads BLAS uses.

OpenBLAS divides a product among its threads. One that has finished its part spins until the others
have finished theirs, and does not give up its core meanwhile. If another program has the core of
one of them, all the others wait for it in every product. So small products have one thread, and
generation, whose results do not have to be the same bits in every run, leaves other programs the
cores that they use.
"""

import time

from npgpt.host import Load

SMALL_PRODUCT = 50_000_000   # multiplications; up to this size one thread is enough
SMALL_MODEL = 4_000_000      # parameters; the same for generation, a token at a time
PERIOD = 0.5                 # seconds between two looks at the load


def limit_blas(threads=1):
    """Limit BLAS to a number of threads in this process."""
    from threadpoolctl import threadpool_limits
    threadpool_limits(threads)


def choose_threads(computing, tokens, channels):
    """-> the number of BLAS's threads in each rank of a training run that computes; None: as many
    as BLAS has. It follows from numbers that are the same in every run, so its bits are, too.

    computing: the number of ranks that compute. tokens: in a forward pass. channels: a product of
    the model's has about tokens * channels² multiplications.
    """
    return 1 if computing > 1 or tokens * channels**2 <= SMALL_PRODUCT else None


def free_threads(threads, cores, others):
    """-> at most this number of threads, and at least 1: as many as other programs leave cores.
    others: the number of cores that those keep busy; None: unknown."""
    return threads if others is None else max(1, min(threads, cores - round(others)))


class Generating:
    """The threads of BLAS while a model generates. Create it before the model is loaded: the load
    of the machine is measured from then on."""

    def __init__(self, load=None):
        from threadpoolctl import ThreadpoolController
        self._load = load or Load()
        self._pools = ThreadpoolController().select(user_api="blas").lib_controllers
        self._most = max((pool.num_threads for pool in self._pools), default=1)
        self._threads, self._due = self._most, None

    def begin(self, parameters):
        """Choose the threads for a model with this number of parameters."""
        if parameters < SMALL_MODEL:
            self._set(1)
        else:
            self._due = 0
            self.look()

    def look(self):
        """Choose again, if it is time and the model is large."""
        if self._due is not None and time.monotonic() >= self._due:
            self._set(free_threads(self._most, self._load.cores, self._load.others()))
            self._due = time.monotonic() + PERIOD

    def _set(self, threads):
        if threads != self._threads:
            for pool in self._pools:
                pool.set_num_threads(threads)
            self._threads = threads
