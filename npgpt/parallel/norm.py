"""The norm of gradients that are divided among ranks: each sums the squares of its shard."""

from npgpt.backend import device_of


def squared_norm(flat, slices=None):
    """The sum of squares of a buffer (n,), over some slices of it (None: all), as a float64 scalar
    of the device. The squares of finite float32 numbers cannot overflow in float64."""
    device = device_of(flat)
    total = device.xp.zeros((), dtype="float64")
    for whole in [slice(0, flat.size)] if slices is None else slices:
        for part in device.slices(whole.start, whole.stop):
            g = flat[part].astype("float64")
            total = total + g @ g
    return total
