"""Recomputation: memory for time (Chen et al. 2016, arXiv:1604.06174).

The cache of a block contains a dozen arrays of its input's size, and all blocks keep theirs until
the backward. A recomputed block keeps its input alone, and its backward starts with one more
forward. Dropout has the same masks then, because they follow from its key.
"""


def recomputed(block):
    """block: a forward and a backward -> the same functions, but their cache has only the arguments
    of the forward."""
    block_forward, block_backward = block

    def forward(*arguments, **options):
        y, _ = block_forward(*arguments, **options)
        return y, (arguments, options)

    def backward(dy, cache):
        arguments, options = cache
        return block_backward(dy, block_forward(*arguments, **options)[1])

    return forward, backward
