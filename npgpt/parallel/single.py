"""One process."""

from npgpt.parallel.communicator import Communicator


class Single(Communicator):
    """The only rank."""
