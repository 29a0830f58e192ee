"""The norm of the gradients, and the scale that limits it. Both stay on the device as scalars."""

from npgpt.backend import array_module, device_of


def squared_norm(flat, slices=None):
    """The sum of squares of a buffer (n,), over these slices (None: all), as a float64 scalar of
    the device. Squares of finite float32 numbers cannot overflow in float64."""
    device = device_of(flat)
    total = device.xp.zeros((), dtype="float64")
    for whole in [slice(0, flat.size)] if slices is None else slices:
        for part in device.slices(whole.start, whole.stop):
            g = flat[part].astype("float64")
            g *= g
            total = total + g.sum()
    return total


def clip_scale(norm, grad_clip):
    """The factor that limits the norm of the gradients to grad_clip (0: no limit), as a float64
    scalar of the device; 0 if the norm is not finite. The 1e-6 is PyTorch's."""
    xp = array_module(norm)
    scale = xp.minimum(grad_clip / (norm + 1e-6), 1.0) if grad_clip else xp.ones_like(norm)
    return xp.where(xp.isfinite(norm), scale, 0.0)
