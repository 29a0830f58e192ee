"""What can be explained, and small random inputs for it.

The numbers have two decimals, so that the reader can check a line with pencil and paper. None is 0,
because ReLU has no derivative there. The sizes differ, so that the axes can be told apart; only
attention has as many keys as queries, as in training.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from npgpt.errors import UserError
from npgpt.layers import LAYERS, Key, causal_mask, cross_entropy_backward, cross_entropy_forward
from npgpt.models import blocks, gpt
from npgpt.models.parameters import nest

DROPOUT = 0.25
LARGEST = 8            # the largest size


@dataclass(frozen=True)
class Subject:
    """Two functions and the inputs to call them with."""

    sizes: dict[str, int]        # letter -> default size
    inputs: Callable             # (sizes, Draw) -> name -> argument, in the order of the arguments
    functions: Callable          # () -> forward, backward; looked up at each call
    output: str = "y"            # the name of the forward's result
    notes: dict[str, str] = field(default_factory=dict)      # input -> note
    upstream: Callable | None = None         # (y, inputs, Draw) -> dy and its note
    adds: bool = False           # the backward adds the gradients of its one mapping to a Gradients
    brief: bool = False          # show only shapes and norms

    @property
    def text(self):
        """The docstring of its file, which has the formula."""
        return inspect.getdoc(inspect.getmodule(self.functions()[0])) or ""

    @property
    def summary(self):
        """The first sentence of that docstring, without its reference."""
        paragraph = " ".join(self.text.partition("\n\n")[0].split())
        return re.sub(r" \([^()]*\d{4}[^()]*\)", "", paragraph).partition(". ")[0].rstrip(".")

    def sizes_from(self, text):
        """"T=5,C=2", or None for the defaults -> every size. Raises UserError for a wrong text."""
        given = {}
        for part in text.split(",") if text is not None else []:
            letter, equals, size = part.partition("=")
            if not equals:
                raise UserError(f"`shape` takes sizes as {_example(self.sizes)}, got {part!r}")
            if letter not in self.sizes:
                raise UserError(f"`shape` takes the sizes {', '.join(self.sizes)} here, "
                                f"got {letter!r}; give them as {_example(self.sizes)}")
            if not size.isdecimal() or not 1 <= int(size) <= LARGEST:
                raise UserError(f"{letter} in `shape` must be a whole number from 1 to {LARGEST}, "
                                f"got {size!r}")
            if letter in given:
                raise UserError(f"{letter} is twice in `shape`, got {text!r}; give it once")
            given[letter] = int(size)
        return self.sizes | given


def _example(sizes):
    return ",".join(f"{letter}={size}" for letter, size in list(sizes.items())[:2])


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


def _linear(s, draw):
    return {"x": draw(s["B"], s["T"], s["I"]), "w": draw(s["I"], s["O"]), "b": draw(s["O"])}


def _embedding(s, draw):
    return {"idx": draw.integers(s["V"], s["B"], s["T"]), "w": draw(s["V"], s["C"])}


def _positional(s, draw):
    if s["P"] < s["T"]:
        raise UserError(f"P must be at least T={s['T']}, got {s['P']}; "
                        f"add P={s['T']} to `shape`")
    return {"x": draw(s["B"], s["T"], s["C"]), "w": draw(s["P"], s["C"])}


def _layernorm(s, draw):
    return {"x": draw(s["B"], s["T"], s["C"]), "w": draw(s["C"]), "b": draw(s["C"])}


def _activation(s, draw):
    return {"x": draw(s["T"], s["C"])}


def _dropout(s, draw):
    key = Key(seed=int(draw.integers(2**32)), step=0)
    return {"x": draw(s["B"], s["T"], s["C"]), "p": DROPOUT, "key": key}


def _attention(s, draw):
    if s["Tk"] < s["Tq"]:
        raise UserError(f"Tk must be at least Tq={s['Tq']}, got {s['Tk']}; "
                        f"add Tk={s['Tq']} to `shape`")
    queries, keys = (s["B"], s["H"], s["Tq"], s["D"]), (s["B"], s["H"], s["Tk"], s["D"])
    return {"q": draw(*queries), "k": draw(*keys), "v": draw(*keys),
            "mask": causal_mask(np, s["Tq"], s["Tk"])}


def _cross_entropy(s, draw):
    targets = draw.integers(s["V"], s["B"], s["T"])
    if targets.size > 1:
        targets[-1, -1] = -1
    return {"logits": draw(s["B"], s["T"], s["V"]), "targets": targets}


def _config(s):
    if s["C"] % s["H"]:
        multiple = max(s["C"] // s["H"], 1) * s["H"]
        raise UserError(f"C must be a multiple of H={s['H']}, got {s['C']}; "
                        f"give C={multiple} in `shape`")
    return gpt.GPTConfig(vocab_size=s.get("V", 1), block_size=s["T"], n_layer=s.get("L", 1),
                         n_head=s["H"], n_embd=s["C"])


def _block(s, draw):
    p = draw.parameters({name: shape for name, shape in _config(s).shapes().items()
                         if name.startswith("h.0.")})
    return {"x": draw(s["B"], s["T"], s["C"]), "p": nest(p)["h"][0], "n_head": s["H"],
            "mask": causal_mask(np, s["T"], s["T"])}


def _gpt(s, draw):
    config = _config(s)
    return {"idx": draw.integers(s["V"], s["B"], s["T"]),
            "p": nest(draw.parameters(config.shapes())), "config": config}


def _one(loss, inputs, draw):
    return np.ones_like(loss), "the gradient of the loss with respect to itself"


def _from_loss(logits, inputs, draw):
    """The gradient of the loss for random targets."""
    targets = draw.integers(logits.shape[-1], *logits.shape[:-1])
    loss, cache = cross_entropy_forward(logits, targets)
    return cross_entropy_backward(np.ones_like(loss), cache), f"for a loss of {loss:.4g}"


def _layer(name, sizes, inputs, **more):
    return Subject(sizes, inputs, lambda: LAYERS[name], **more)


MASK = {"mask": "causal: a query sees its own position and earlier ones"}
SUBJECTS = {
    "linear": _layer("linear", {"B": 2, "T": 3, "I": 4, "O": 5}, _linear),
    "embedding": _layer("embedding", {"B": 2, "T": 3, "C": 4, "V": 5}, _embedding,
                        notes={"idx": "random token ids", "w": "random; a row for each token"}),
    "positional": _layer("positional", {"B": 2, "T": 3, "C": 4, "P": 5}, _positional,
                         notes={"w": "random; a row for each position"}),
    "layernorm": _layer("layernorm", {"B": 2, "T": 3, "C": 4}, _layernorm),
    "relu": _layer("relu", {"T": 3, "C": 4}, _activation),
    "gelu": _layer("gelu", {"T": 3, "C": 4}, _activation),
    "dropout": _layer("dropout", {"B": 2, "T": 3, "C": 4}, _dropout),
    "attention": _layer("attention", {"B": 1, "H": 2, "Tq": 3, "Tk": 3, "D": 4}, _attention,
                        notes=MASK),
    "cross_entropy": _layer("cross_entropy", {"B": 2, "T": 3, "V": 5}, _cross_entropy,
                            output="loss", upstream=_one,
                            notes={"targets": "random token ids; -1 means no target"}),
    "block": Subject({"B": 1, "H": 2, "T": 3, "C": 4}, _block,
                     lambda: (blocks.block_forward, blocks.block_backward), notes=MASK),
    "gpt": Subject({"B": 1, "H": 2, "T": 3, "C": 4, "V": 5, "L": 2}, _gpt,
                   lambda: (gpt.gpt_forward, gpt.gpt_backward), output="logits",
                   notes={"idx": "random token ids"}, upstream=_from_loss, adds=True, brief=True),
}
