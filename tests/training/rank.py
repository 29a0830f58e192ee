"""A rank of a launcher that this process pretends to be, to try each rank in turn."""

import numpy as np

from npgpt.parallel import Single


class Rank(Single):
    """One of the ranks of a launcher. told: what the first rank sends, in order. others: what the
    other ranks exchange; None: the same as this one."""

    launched, shares_memory = True, False

    def __init__(self, rank=0, size=2, told=(), others=None):
        self.rank, self.size, self.told, self.others = rank, size, iter(told), others
        self.said = []           # what this rank sends, if it is the first one

    def broadcast(self, make):
        if not self.is_first:
            return next(self.told)
        self.said.append(make())
        return self.said[-1]

    def exchange(self, value):
        others = [value] * (self.size - 1) if self.others is None else self.others
        return [*others[:self.rank], value, *others[self.rank:]]

    def same(self, flat):
        flat[...] = self.broadcast(flat.copy)

    def scatter(self, whole, array, slices):
        whole = self.broadcast(lambda: whole)
        array[...] = np.concatenate([whole[part] for part in slices[self.rank]])
