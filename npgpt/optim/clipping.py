"""The scale that limits the norm of the gradients."""

from npgpt.backend import array_module


def clip_scale(norm, grad_clip):
    """The factor that limits the norm of the gradients to grad_clip (0: no limit), as a float64
    scalar of the device; 0 if the norm is not finite. The 1e-6 is PyTorch's."""
    xp = array_module(norm)
    scale = xp.minimum(grad_clip / (norm + 1e-6), 1.0) if grad_clip else xp.ones_like(norm)
    return xp.where(xp.isfinite(norm), scale, 0.0)
