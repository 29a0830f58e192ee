"""Small random inputs for each subject of explain, and random gradients of their outputs.

The numbers have two decimals, so that the reader can check a line with pencil and paper. None is 0,
because ReLU has no derivative there. A function takes the sizes and a Draw, and returns the
arguments of the forward by name, in their order. A combination of sizes that does not work raises
UserError.
"""

import math
from collections.abc import Mapping

import numpy as np

from npgpt.errors import UserError
from npgpt.layers import Key, causal_mask, cross_entropy_backward, cross_entropy_forward, rotation
from npgpt.models.gpt import GPTConfig
from npgpt.models.llama import LlamaConfig
from npgpt.models.parameters import nest

DROPOUT = 0.25
TILE = 2               # queries and keys in a tile
PART = 3               # tokens in a part


class Draw:
    """Draws random numbers from a seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape, scale=1.0):
        """-> normal numbers with two decimals, none of them 0."""
        x = (self.rng.standard_normal(shape) * scale).round(2)
        x[x == 0] = 0.01
        return x

    def integers(self, stop, *shape):
        return self.rng.integers(stop, size=shape)

    def parameters(self, shapes):
        """Shapes by name, also nested -> arrays by name. Matrices are scaled so that a product
        has numbers of the same size as its input."""
        return {
            name: self.parameters(shape) if isinstance(shape, Mapping)
            else self(*shape, scale=shape[0] ** -0.5 if len(shape) == 2 else 0.5)
            for name, shape in shapes.items()
        }


def linear(s, draw):
    return {"x": draw(s["B"], s["T"], s["I"]), "w": draw(s["I"], s["O"]), "b": draw(s["O"])}


def embedding(s, draw):
    return {"idx": draw.integers(s["V"], s["B"], s["T"]), "w": draw(s["V"], s["C"])}


def positional(s, draw):
    if s["P"] < s["T"]:
        raise UserError(f"P must be at least T={s['T']}, got {s['P']}; "
                        f"add P={s['T']} to `shape`")
    return {"x": draw(s["B"], s["T"], s["C"]), "w": draw(s["P"], s["C"])}


def layernorm(s, draw):
    return {"x": draw(s["B"], s["T"], s["C"]), "w": draw(s["C"]), "b": draw(s["C"])}


def rmsnorm(s, draw):
    return {"x": draw(s["B"], s["T"], s["C"]), "w": draw(s["C"])}


def activation(s, draw):
    return {"x": draw(s["T"], s["C"])}


def dropout(s, draw):
    key = Key(seed=int(draw.integers(2**32)), step=0)
    return {"x": draw(s["B"], s["T"], s["C"]), "p": DROPOUT, "key": key}


def attention(s, draw):
    if s["Tk"] < s["Tq"]:
        raise UserError(f"Tk must be at least Tq={s['Tq']}, got {s['Tk']}; "
                        f"add Tk={s['Tq']} to `shape`")
    _check_groups(s)
    queries, keys = (s["B"], s["H"], s["Tq"], s["D"]), (s["B"], s["G"], s["Tk"], s["D"])
    return {"q": draw(*queries), "k": draw(*keys), "v": draw(*keys),
            "mask": causal_mask(np, s["Tq"], s["Tk"])}


def tiled_attention(s, draw):
    q, k, v, _ = attention(s, draw).values()
    return {"q": q, "k": k, "v": v, "mask": None, "p": 0.0, "key": None, "causal": True,
            "tile": TILE}


def _check_groups(s):
    if s["H"] % s["G"]:
        raise UserError(f"H must be a multiple of G={s['G']}, got {s['H']}; "
                        f"give G={math.gcd(s['H'], s['G'])} in `shape`")


def cross_entropy(s, draw):
    targets = draw.integers(s["V"], s["B"], s["T"])
    if targets.size > 1:
        targets[-1, -1] = -1
    return {"logits": draw(s["B"], s["T"], s["V"]), "targets": targets}


def linear_cross_entropy(s, draw):
    targets = cross_entropy(s, draw)["targets"]
    return {"x": draw(s["B"], s["T"], s["C"]), "w": draw(s["C"], s["V"]), "b": draw(s["V"]),
            "targets": targets, "count": None, "gradients": True, "frozen": False, "tokens": PART}


def lora(s, draw):
    return {"x": draw(s["B"], s["T"], s["I"]), "A": draw(s["I"], s["R"]), "B": draw(s["R"], s["O"])}


def rope(s, draw):
    cos, sin = _angles(s)
    return {"x": draw(s["B"], s["H"], s["T"], s["D"]), "cos": cos, "sin": sin}


def _angles(s):
    if s["D"] % 2:
        raise UserError(f"D must be even, because RoPE rotates pairs of channels, got {s['D']}; "
                        f"give D={s['D'] + 1} in `shape`")
    return rotation(np, s["T"], s["D"], dtype="float64")


def swiglu(s, draw):
    return {"gate": draw(s["T"], s["F"]), "up": draw(s["T"], s["F"])}


def _check_heads(s):
    if s["C"] % s["H"]:
        multiple = max(s["C"] // s["H"], 1) * s["H"]
        raise UserError(f"C must be a multiple of H={s['H']}, got {s['C']}; "
                        f"give C={multiple} in `shape`")


def _config(s):
    _check_heads(s)
    return GPTConfig(vocab_size=s.get("V", 1), block_size=s["T"], n_layer=s.get("L", 1),
                     n_head=s["H"], n_embd=s["C"])


def block(s, draw):
    p = draw.parameters({name: shape for name, shape in _config(s).shapes().items()
                         if name.startswith("h.0.")})
    return {"x": draw(s["B"], s["T"], s["C"]), "p": nest(p)["h"][0], "n_head": s["H"],
            "mask": causal_mask(np, s["T"], s["T"])}


def _llama_part(s, draw, part=None):
    """-> parameters of a block of Llama, or of a part of it. Attention alone is Qwen3's, with
    QK-norm."""
    config = LlamaConfig(vocab_size=1, block_size=1, n_layer=1, n_head=s.get("H", 1),
                         n_kv_head=s.get("G", 1), n_embd=s["C"], head_dim=s.get("D", 2),
                         n_inner=s.get("F", 1), qk_norm=part == "self_attn")
    block = nest(config.shapes())["layers"][0]
    return draw.parameters(block[part] if part else block)


def gated_mlp(s, draw):
    return {"x": draw(s["B"], s["T"], s["C"]), "p": _llama_part(s, draw, "mlp")}


def grouped_attention(s, draw, part="self_attn"):
    _check_heads(s)
    _check_groups(s)
    angles = _angles(s)
    return {"x": draw(s["B"], s["T"], s["C"]), "p": _llama_part(s, draw, part),
            "n_head": s["H"], "n_kv_head": s["G"], "rotation": angles,
            "mask": causal_mask(np, s["T"], s["T"])}


def llama_block(s, draw):
    return grouped_attention(s, draw, part=None)


def gpt(s, draw):
    config = _config(s)
    return {"idx": draw.integers(s["V"], s["B"], s["T"]),
            "p": nest(draw.parameters(config.shapes())), "config": config}


def one(loss, inputs, draw):
    return np.ones_like(loss), "the gradient of the loss with respect to itself"


def from_loss(logits, inputs, draw):
    """The gradient of the loss for random targets."""
    targets = draw.integers(logits.shape[-1], *logits.shape[:-1])
    loss, cache = cross_entropy_forward(logits, targets)
    return cross_entropy_backward(np.ones_like(loss), cache), f"for a loss of {loss:.4g}"
