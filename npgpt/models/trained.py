"""What is trained of a model: all of it, all but its embeddings, or adapters alone.

A table of parameters says which of them are trainable. Frozen ones have no gradients and no
moments. Adapters are two matrices for each matrix of the blocks, A (I, r) and B (r, O): see
npgpt.layers.lora. At first A is random and B is 0, so that the model is unchanged. A has the
variance that Hugging Face's peft gives it, 1 / (3 I).
"""

import math
from dataclasses import replace

import numpy as np

from npgpt.errors import UserError
from npgpt.models.parameters import Param

FREEZE = ("nothing", "embeddings")      # the embeddings and the head: the group of tables
A, B = "lora_A", "lora_B"               # a matrix's adapters, as peft calls them


def trained(config, lora_rank=0, freeze="nothing"):
    """-> name -> Param: the table of a configuration, with the parameters that are not trained
    frozen. lora_rank: r of the adapters, which alone are trained; 0: there are none. freeze: one of
    FREEZE. Raises UserError for an invalid rank or `freeze`, and for both together."""
    table = config.architecture()
    if freeze not in FREEZE:
        raise UserError(f"`freeze` must be one of {', '.join(FREEZE)}, got {freeze!r}")
    if lora_rank < 0:
        raise UserError(f"`lora_rank` must be at least 0, got {lora_rank}")
    if lora_rank and freeze != "nothing":
        raise UserError("`freeze` has no effect with `lora_rank`, which freezes all but the "
                        f"adapters, got {freeze}; leave it out")
    if lora_rank:
        return {name: replace(param, trainable=False) for name, param in table.items()
                } | adapters(config, lora_rank)
    return {name: replace(param, trainable=freeze == "nothing" or param.group != "table")
            for name, param in table.items()}


def adapters(config, rank):
    """-> name -> Param of the adapters of all matrices of the blocks; none if the rank is 0. Raises
    UserError."""
    found = {}
    for name, param in config.architecture().items() if rank else ():
        for module, columns in modules(config, name, param):
            I, O = param.shape[0], columns.stop - columns.start
            if rank > min(I, O):
                raise UserError(f"`lora_rank` must be at most {min(I, O)}, the smaller side of "
                                f"{module}, got {rank}")
            found[f"{module}.{A}"] = Param((I, rank), "matrix", 1 / math.sqrt(3 * I))
            found[f"{module}.{B}"] = Param((rank, O), "matrix")
    return found


def modules(config, name, param):
    """-> for each matrix that is side by side in a parameter, and has adapters of its own, its name
    and its columns; none if it is not a matrix of the blocks."""
    if param.group != "matrix":
        return []
    *path, layer, _ = name.split(".")
    names = config.modules.get(layer, (layer,))
    widths = param.widths if len(names) > 1 else param.shape[-1:]
    ends = [sum(widths[:i + 1]) for i in range(len(widths))]
    return [(".".join([*path, module]), slice(end - width, end))
            for module, width, end in zip(names, widths, ends)]


def merged(config, values, changes):
    """Pairs of names and NumPy arrays, the parameters of a model -> the same with adapters merged
    into them: w + A @ B. changes: name -> array, of adapters of some or all of its matrices."""
    table = config.architecture()
    for name, w in values:
        found = [(module, columns) for module, columns in modules(config, name, table[name])
                 if f"{module}.{A}" in changes]
        if found:
            w = np.array(w, np.result_type(w, np.float32))          # a copy
        for module, columns in found:
            w[:, columns] += changes[f"{module}.{A}"] @ changes[f"{module}.{B}"]
        yield name, w
