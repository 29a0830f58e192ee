"""`pytest --device gpu`: run the unchanged tests of the layers with every layer on the GPU.

Each function of npgpt.layers is replaced by one that copies NumPy arrays to the device, runs the
layer there and copies the results back; the cache stays there. So tests written for NumPy, and
models of NumPy arrays, are computed by CuPy. `--device double` does the same with the double. The
functions are replaced before the tests are imported, so that the tests import the replacements.
"""

from functools import wraps

import numpy as np

from npgpt import layers

HOST = np.ndarray, np.generic, float      # the host types of first arguments
_device = None                            # where the layers compute; None: where their arrays are


class Moved(tuple):
    """The cache of a forward whose arrays were of the host."""


def move_every_layer(device):
    """Let each layer's forward and backward compute on the device."""
    global _device
    _device = device
    for name, record in layers.LAYERS.items():
        if hasattr(record.forward, "__wrapped__"):
            continue
        record = layers.Layer(_forward(record.forward), _backward(record.backward))
        layers.LAYERS[name] = record
        setattr(layers, f"{name}_forward", record.forward)
        setattr(layers, f"{name}_backward", record.backward)


def leave_every_layer():
    """Let them compute where their arrays are."""
    global _device
    _device = None


def _forward(forward):
    @wraps(forward)
    def through(x, *args, **kwargs):
        if _device is None or not isinstance(x, HOST):
            return forward(x, *args, **kwargs)
        device, there = _device, moved(x, _device)
        y, cache = forward(there, *moved(args, device), **moved(kwargs, device))
        cache = Moved(cache) if type(cache) is tuple else cache
        return x if y is there else device.to_host(y), cache     # dropout returns x itself
    return through


def _backward(backward):
    @wraps(backward)
    def through(dy, cache):
        # None stands for 1, and the cache tells where its arrays were.
        of_host = isinstance(dy, HOST) or (dy is None and isinstance(cache, Moved))
        if _device is None or not of_host:
            return backward(dy, cache)
        device, there = _device, moved(dy, _device)
        found = backward(there, cache)
        if isinstance(found, tuple):
            return tuple(dy if x is there else back(x, device) for x in found)
        return dy if found is there else back(found, device)
    return through


def moved(x, device):
    """Host arrays, also in tuples and mappings, copied to the device."""
    if isinstance(x, (np.ndarray, np.generic)):
        return device.to_device(x)
    if isinstance(x, dict):
        return {name: moved(part, device) for name, part in x.items()}
    if type(x) in (list, tuple):
        return type(x)(moved(part, device) for part in x)
    return x


def back(x, device):
    """Arrays of the device, copied to the host."""
    if isinstance(x, device.arrays):
        return device.to_host(x)
    if isinstance(x, dict):
        return {name: back(part, device) for name, part in x.items()}
    return tuple(back(part, device) for part in x) if type(x) is tuple else x
