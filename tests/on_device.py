"""`pytest --device gpu`: the tests of the layers, as they stand, with every layer on the GPU.

Layers dispatch on the type of their first argument. Here each is given a version for NumPy's arrays
that takes them to the device, runs the layer there and brings the results back; the cache stays. So
a test that knows only NumPy, and models made of NumPy arrays too, have their numbers computed by
CuPy. `--device double` does the same with the double.
"""

from functools import wraps

import numpy as np

from npgpt.layers import LAYERS

MOVED = np.ndarray, np.generic, float      # the types that first arguments have on the host


def leave_every_layer():
    """Undo `move_every_layer`."""
    for function in (function for pair in LAYERS.values() for function in pair):
        for kind in MOVED:
            function.register(kind, function.dispatch(object))       # the plain one


def move_every_layer(device):
    """From now on each layer's forward and backward compute on the device."""
    for forward, backward in LAYERS.values():
        there = [function.dispatch(device.arrays[0]) for function in (forward, backward)]
        for kind in MOVED:
            forward.register(kind, _forward_on(device, there[0]))
            backward.register(kind, _backward_on(device, there[1]))


def _forward_on(device, forward):
    def through(x, *args, **kwargs):
        there = moved(x, device)
        y, cache = forward(there, *moved(args, device), **moved(kwargs, device))
        return x if y is there else device.to_host(y), cache     # dropout hands x on as it is
    return wraps(forward)(through)


def _backward_on(device, backward):
    def through(dy, cache):
        there = moved(dy, device)
        found = backward(there, cache)
        if isinstance(found, tuple):
            return tuple(dy if x is there else back(x, device) for x in found)
        return dy if found is there else back(found, device)
    return wraps(backward)(through)


def moved(x, device):
    """Arrays of the host, on their own or in tuples and mappings, to the device."""
    if isinstance(x, (np.ndarray, np.generic)):
        return device.to_device(x)
    if isinstance(x, dict):
        return {name: moved(part, device) for name, part in x.items()}
    if type(x) in (list, tuple):
        return type(x)(moved(part, device) for part in x)
    return x


def back(x, device):
    """The same way back."""
    if isinstance(x, device.arrays):
        return device.to_host(x)
    if isinstance(x, dict):
        return {name: back(part, device) for name, part in x.items()}
    return tuple(back(part, device) for part in x) if type(x) is tuple else x
