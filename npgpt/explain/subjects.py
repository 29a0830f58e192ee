"""What can be explained: functions, the sizes of their inputs, and what is said about them.

The sizes differ, so that the axes can be told apart; only attention has as many keys as queries, as
in training, and as many heads of keys as of queries, as in GPT.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from npgpt.errors import UserError
from npgpt.explain import inputs
from npgpt.layers import LAYERS
from npgpt.models import blocks, gpt, llama_blocks

LARGEST = 8            # the largest size


@dataclass(frozen=True)
class Subject:
    """Two functions and the inputs to call them with."""

    sizes: dict[str, int]        # letter -> default size
    inputs: Callable             # (sizes, Draw) -> name -> argument, in the order of the arguments
    functions: Callable          # () -> forward, backward; looked up at each call
    title: str = ""              # what it is, if the file has several functions
    output: str = "y"            # the name of the forward's result
    notes: dict[str, str] = field(default_factory=dict)      # input -> note
    constants: tuple[str, ...] = ()          # the last inputs: floats without a gradient
    follows: dict[str, str] = field(default_factory=dict)    # letter -> that of its default size
    upstream: Callable | None = None         # (y, inputs, Draw) -> dy and its note
    adds: bool = False           # the backward adds the gradients of its one mapping to a Gradients
    brief: bool = False          # show only shapes and norms

    @property
    def text(self):
        """The docstring of its file, which has the formula."""
        return inspect.getdoc(inspect.getmodule(self.functions()[0])) or ""

    @property
    def summary(self):
        """The title, or the first sentence of that docstring without its reference."""
        if self.title:
            return self.title
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
        following = {letter: given[other] for letter, other in self.follows.items()
                     if other in given}
        return self.sizes | following | given


def _example(sizes):
    return ",".join(f"{letter}={size}" for letter, size in list(sizes.items())[:2])


def _layer(name, sizes, draw, **more):
    return Subject(sizes, draw, lambda: LAYERS[name], **more)


def _llama(name, sizes, draw, **more):
    return Subject(
        sizes, draw, lambda: (getattr(llama_blocks, f"{name}_forward"),
                              getattr(llama_blocks, f"{name}_backward")),
        notes=MASK | {"rotation": "cos and sin of the angles at each position"}, **more)


MASK = {"mask": "causal: a query sees its own position and earlier ones"}
SUBJECTS = {
    "linear": _layer("linear", {"B": 2, "T": 3, "I": 4, "O": 5}, inputs.linear),
    "embedding": _layer("embedding", {"B": 2, "T": 3, "C": 4, "V": 5}, inputs.embedding,
                        notes={"idx": "random token ids", "w": "random; a row for each token"}),
    "positional": _layer("positional", {"B": 2, "T": 3, "C": 4, "P": 5}, inputs.positional,
                         notes={"w": "random; a row for each position"}),
    "layernorm": _layer("layernorm", {"B": 2, "T": 3, "C": 4}, inputs.layernorm),
    "relu": _layer("relu", {"T": 3, "C": 4}, inputs.activation),
    "gelu": _layer("gelu", {"T": 3, "C": 4}, inputs.activation),
    "dropout": _layer("dropout", {"B": 2, "T": 3, "C": 4}, inputs.dropout),
    "attention": _layer("attention", {"B": 1, "H": 2, "G": 2, "Tq": 3, "Tk": 3, "D": 4},
                        inputs.attention, notes=MASK, follows={"G": "H"}),
    "cross_entropy": _layer("cross_entropy", {"B": 2, "T": 3, "V": 5}, inputs.cross_entropy,
                            output="loss", upstream=inputs.one,
                            notes={"targets": "random token ids; -1 means no target"}),
    "rmsnorm": _layer("rmsnorm", {"B": 2, "T": 3, "C": 4}, inputs.rmsnorm),
    "rope": _layer("rope", {"B": 1, "H": 2, "T": 3, "D": 4}, inputs.rope, constants=("cos", "sin"),
                   notes={"cos": "of the angles: positions 0, 1, 2, … times each frequency",
                          "sin": "of the same angles"}),
    "swiglu": _layer("swiglu", {"T": 3, "F": 4}, inputs.swiglu),
    "tiled_attention": _layer(
        "tiled_attention", {"B": 1, "H": 2, "G": 2, "Tq": 4, "Tk": 4, "D": 3},
        inputs.tiled_attention, follows={"G": "H"},
        notes={"causal": "a query sees its own position and earlier ones",
               "tile": "queries and keys in a tile"}),
    "linear_cross_entropy": _layer(
        "linear_cross_entropy", {"B": 2, "T": 3, "C": 4, "V": 5}, inputs.linear_cross_entropy,
        output="loss", upstream=inputs.one,
        notes={"targets": "random token ids; -1 means no target", "tokens": "in a part"}),
    "lora": _layer("lora", {"B": 1, "T": 3, "I": 4, "O": 5, "R": 2}, inputs.lora,
                   notes={"B": "random; 0 at the beginning of a training"}),
    "block": Subject({"B": 1, "H": 2, "T": 3, "C": 4}, inputs.block,
                     lambda: (blocks.block_forward, blocks.block_backward), notes=MASK),
    "gpt": Subject({"B": 1, "H": 2, "T": 3, "C": 4, "V": 5, "L": 2}, inputs.gpt,
                   lambda: (gpt.gpt_forward, gpt.gpt_backward), output="logits",
                   notes={"idx": "random token ids"}, upstream=inputs.from_loss, adds=True,
                   brief=True),
    "gated_mlp": _llama("gated_mlp", {"B": 1, "T": 3, "C": 4, "F": 5}, inputs.gated_mlp,
                        title="The MLP of Llama's block, with SwiGLU"),
    "grouped_attention": _llama(
        "grouped_attention", {"B": 1, "H": 2, "G": 1, "T": 3, "C": 6, "D": 4},
        inputs.grouped_attention,
        title="The attention of Llama's block: RoPE, and heads that share keys and values"),
    "llama_block": _llama(
        "llama_block", {"B": 1, "H": 2, "G": 1, "T": 3, "C": 6, "D": 4, "F": 5}, inputs.llama_block,
        title="The transformer block of Llama"),
}
