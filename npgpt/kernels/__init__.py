"""Fused versions of layers for CUDA: layer norm and GELU. Not yet run on a GPU, so only on request.

The kernels are in `layers.cu`, their mathematics in `npgpt/layers`. `install(device)` puts them in
the place of the plain functions for that device's arrays, and nothing else changes: same names,
same arguments, results of the same shape and dtype. They take float32 and float64; whatever else
comes (complex numbers, other dtypes, mixed ones, nothing at all) goes to the plain function.

A launch returns before the GPU has begun, and nothing here waits for it.
"""

from npgpt import layers
from npgpt.errors import UserError
from npgpt.kernels.activations import fused_gelu
from npgpt.kernels.launch import compile_kernels
from npgpt.kernels.layernorm import fused_layernorm


def fused(device):
    """-> name in `npgpt.layers` -> fused function for arrays of this device. Compiles the kernels.

    Raises UserError if it is no CUDA device.
    """
    if not hasattr(device.xp, "RawModule"):
        raise UserError(f"the fused kernels are for CUDA, and device {device.name!r} has none; "
                        "use --device gpu")
    launch = compile_kernels(device.xp)
    return fused_layernorm(device.xp, launch) | fused_gelu(device.xp, launch)


def install(device):
    """Let `npgpt.layers` take the fused functions for arrays of this device: see `fused`."""
    for name, function in fused(device).items():
        getattr(layers, name).register(device.arrays[0], function)
