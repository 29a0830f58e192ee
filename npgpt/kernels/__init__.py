"""Faster versions of layers for CUDA, with the names and arguments of npgpt.layers and results of
the same shape and dtype.

    fused       layer norm, GELU, dropout and attention's softmax as CUDA kernels, for float32 and
                float64: the .cu files
    bfloat16    linear layers with products in bfloat16

The versions are a property of a model: `layers_for` selects them once, by device and precision, and
the model passes them to its blocks. Launches are asynchronous, and nothing here waits for them.
"""

from functools import partial
from types import SimpleNamespace

from npgpt import layers
from npgpt.errors import UserError
from npgpt.kernels.activations import fused_gelu
from npgpt.kernels.attention import fused_attention
from npgpt.kernels.dropout import fused_dropout
from npgpt.kernels.launch import compile_kernels
from npgpt.kernels.layernorm import fused_layernorm


def layers_for(device, dtype, fused=False, tiled=False):
    """-> the layers of a model with this precision on this device: npgpt.layers, or an object with
    the same names. tiled: its attention is computed in tiles. Raises UserError if the device does
    not support the precision or CUDA."""
    if dtype not in device.dtypes:
        raise UserError(f"`dtype` must be one of {', '.join(device.dtypes)} on {device.description}"
                        f", got {dtype!r}")
    with device.math_mode(dtype):             # raises now, not in the first step, without cuBLAS
        pass
    faster = {}
    if dtype == "bfloat16":
        from npgpt.kernels import bfloat16  # needs ml_dtypes
        linear = bfloat16.linear_forward, bfloat16.linear_backward
        faster["linear"] = layers.Layer(*linear)
        faster["linear_cross_entropy"] = layers.Layer(
            partial(layers.linear_cross_entropy_forward, linear=linear),
            layers.linear_cross_entropy_backward)
    if fused:
        faster |= fused_layers(device)
    if tiled:
        faster["attention"] = layers.LAYERS["tiled_attention"]
    return with_versions(faster) if faster else layers


def with_versions(faster):
    """name -> Layer -> an object with the names of npgpt.layers, with these layers replaced."""
    records = layers.LAYERS | faster
    functions = {f"{name}_{way}": getattr(record, way)
                 for name, record in records.items() for way in ("forward", "backward")}
    return SimpleNamespace(**{name: getattr(layers, name) for name in layers.__all__} | functions
                           | {"LAYERS": records})


def fused_layers(device):
    """-> name -> Layer of the fused layers for arrays of this device. Compiles the kernels. Raises
    UserError if it is not a CUDA device."""
    if not hasattr(device.xp, "RawModule"):
        raise UserError(f"`fused` kernels need CUDA, and the device {device.name!r} has none")
    launch = compile_kernels(device.xp)
    makers = {"layernorm": fused_layernorm, "gelu": fused_gelu, "dropout": fused_dropout,
              "attention": fused_attention}
    return {name: layers.Layer(*make(device.xp, launch)) for name, make in makers.items()}
