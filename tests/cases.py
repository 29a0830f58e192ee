"""Test cases for every layer, composite and model: a forward, a backward and inputs, for random
dimensions and options.

Dimensions are pairwise distinct, because equal ones hide swapped axes. Hypothesis draws dimensions
and a seed, never numbers, so a failure shrinks to "B=1, T=2, C=3, seed=0".
"""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from npgpt import layers
from npgpt.backend import array_module
from npgpt.layers import LAYERS, Key, causal_mask, rotation
from npgpt.models import blocks, llama_blocks, postnorm
from npgpt.models.gpt import GPTConfig, gpt_backward, gpt_forward
from npgpt.models.llama import LlamaConfig, llama_backward, llama_forward
from npgpt.models.parameters import Gradients, count, flatten, nest
from npgpt.models.projection import projection_backward, projection_forward
from npgpt.models.trained import trained
from npgpt.models.transformer import (
    TransformerConfig,
    transformer_backward,
    transformer_forward,
)


@dataclass
class Case:
    """A forward and a backward to check, with their inputs."""

    forward: object
    backward: object
    inputs: list
    options: dict = field(default_factory=dict)
    smooth: bool = True                              # no input of a ReLU is close to 0

    def __repr__(self):
        shapes = [getattr(x, "shape", x if not isinstance(x, dict) else "parameters")
                  for x in self.inputs]
        options = {n: v for n, v in self.options.items()
                   if n not in ("mask", "rotation", "cos", "sin")}
        return f"Case({shapes}, {options}, smooth={self.smooth})"


def normal(seed):
    """-> function of dimensions that draws normal numbers, different in each call."""
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape)


@st.composite
def sizes(draw, names, largest=7):
    """-> a size for each letter, pairwise distinct."""
    values = draw(st.lists(st.integers(1, largest), min_size=len(names), max_size=len(names),
                           unique=True))
    return dict(zip(names, values))


SEEDS = st.integers(0, 2**32 - 1)
DROPOUTS = st.sampled_from([0.0, 0.25, 0.6])


def _pair(name, inputs, **options):
    forward, backward = LAYERS[name]
    if not options:
        return Case(forward, backward, inputs)
    return Case(_with(forward, options), backward, inputs, options)


def _with(forward, options):
    """-> forward with these options. Angles get the dtype of the first input, as in a model."""
    def call(*inputs):
        dtype = inputs[0].real.dtype
        angles = {name: options[name].astype(dtype) for name in ("cos", "sin") if name in options}
        if "rotation" in options:
            angles["rotation"] = tuple(x.astype(dtype) for x in options["rotation"])
        return forward(*inputs, **options | angles)
    return call


@st.composite
def linear(draw):
    s, n = draw(sizes("BTCV")), normal(draw(SEEDS))
    b = n(s["V"]) if draw(st.booleans()) else None
    return _pair("linear", [n(s["B"], s["T"], s["C"]), n(s["C"], s["V"]), b])


@st.composite
def embedding(draw):
    s, seed = draw(sizes("BTCV")), draw(SEEDS)
    V = draw(st.sampled_from([s["V"], 60]))      # more rows than tokens use another algorithm
    idx = np.random.default_rng(seed).integers(V, size=(s["B"], s["T"]))
    return _pair("embedding", [idx, normal(seed)(V, s["C"])])


@st.composite
def positional(draw):
    s, n = draw(sizes("BTC")), normal(draw(SEEDS))
    start = draw(st.integers(0, 3))
    x, w = n(s["B"], s["T"], s["C"]), n(s["T"] + start + draw(st.integers(0, 2)), s["C"])
    return _pair("positional", [x, w], start=start)


@st.composite
def layernorm(draw):
    s, n = draw(sizes("BTC")), normal(draw(SEEDS))
    C = s["C"] + 2        # one and two channels are tested in test_layernorm
    scale = draw(st.sampled_from([1e-2, 1.0, 1e3]))
    return _pair("layernorm", [n(s["B"], s["T"], C) * scale, n(C), n(C)])


@st.composite
def relu(draw):
    s, n = draw(sizes("BTC")), normal(draw(SEEDS))
    x = n(s["B"], s["T"], s["C"])
    return _pair("relu", [x + np.where(x > 0, 0.1, -0.1)])


@st.composite
def gelu(draw):
    s, n = draw(sizes("BTC")), normal(draw(SEEDS))
    return _pair("gelu", [n(s["B"], s["T"], s["C"]) * draw(st.sampled_from([0.1, 1.0, 3.0]))])


@st.composite
def dropout(draw):
    s, seed = draw(sizes("BTC")), draw(SEEDS)
    return _pair("dropout", [normal(seed)(s["B"], s["T"], s["C"]), draw(DROPOUTS), Key(seed, 3)])


@st.composite
def attention(draw):
    s, seed = draw(sizes("BHQKD")), draw(SEEDS)
    B, H, Tq, Tk, D = s.values()
    n, rng = normal(seed), np.random.default_rng(seed)
    mask = draw(st.sampled_from(["none", "causal", "random", "empty row"]))
    hidden = None
    if mask == "causal":
        Tq, Tk = min(Tq, Tk), max(Tq, Tk)
        hidden = causal_mask(np, Tq, Tk)
    elif mask != "none":
        hidden = rng.random((B, 1, Tq, Tk)) < 0.6
        hidden[..., 0, :] &= mask != "empty row"
    G = draw(st.sampled_from([G for G in range(1, H + 1) if H % G == 0]))
    q, k, v = n(B, H, Tq, D), n(B, G, Tk, D), n(B, G, Tk, D)
    return _pair("attention", [q, k, v, hidden, draw(DROPOUTS), Key(seed, 5)])


@st.composite
def tiled_attention(draw):
    case = draw(attention())
    return _pair("tiled_attention", case.inputs, causal=draw(st.booleans()),
                 tile=draw(st.integers(1, 3)))


@st.composite
def linear_cross_entropy(draw):
    s, seed = draw(sizes("BTCV")), draw(SEEDS)
    n, rng = normal(seed), np.random.default_rng(seed)
    targets = rng.integers(-1 if draw(st.booleans()) else 0, s["V"], (s["B"], s["T"]))
    b = n(s["V"]) if draw(st.booleans()) else None
    inputs = [n(s["B"], s["T"], s["C"]), n(s["C"], s["V"]), b, targets,
              draw(st.sampled_from([None, 3]))]
    return _pair("linear_cross_entropy", inputs, tokens=draw(st.sampled_from([None, 1, 2, 5])))


@st.composite
def lora(draw):
    s, seed = draw(sizes("BTIOR")), draw(SEEDS)
    n = normal(seed)
    return _pair("lora", [n(s["B"], s["T"], s["I"]), n(s["I"], s["R"]), n(s["R"], s["O"])])


@st.composite
def cross_entropy(draw):
    s, seed = draw(sizes("BTV")), draw(SEEDS)
    rng = np.random.default_rng(seed)
    targets = rng.integers(-1 if draw(st.booleans()) else 0, s["V"], (s["B"], s["T"]))
    logits = normal(seed)(s["B"], s["T"], s["V"]) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    return _pair("cross_entropy", [logits, targets, draw(st.sampled_from([None, 3]))])


@st.composite
def rmsnorm(draw):
    s, n = draw(sizes("BTC")), normal(draw(SEEDS))
    scale = draw(st.sampled_from([1e-2, 1.0, 1e3]))
    eps = draw(st.sampled_from([1e-5, 0.1]))
    return _pair("rmsnorm", [n(s["B"], s["T"], s["C"]) * scale, n(s["C"])], eps=eps)


@st.composite
def rope(draw):
    s, n = draw(sizes("BHTD")), normal(draw(SEEDS))
    B, H, T, D = s["B"], s["H"], s["T"], 2 * s["D"]
    theta, start = draw(st.sampled_from([100.0, 1e4])), draw(st.integers(0, 3))
    cos, sin = rotation(np, T, D, theta, start, "float64")
    return _pair("rope", [n(B, H, T, D)], cos=cos, sin=sin)


@st.composite
def swiglu(draw):
    s, n = draw(sizes("BTC")), normal(draw(SEEDS))
    scale = draw(st.sampled_from([0.1, 1.0, 3.0]))
    return _pair("swiglu", [n(s["B"], s["T"], s["C"]) * scale, n(s["B"], s["T"], s["C"])])


def parameters(shapes, n):
    """Random parameters of these shapes, large enough for every term to matter; n draws a shape."""
    return {name: n(shape) / shape[0] ** 0.5 if len(shape) == 2 else n(shape) * 0.5 + 0.5
            for name, shape in shapes.items()}


@st.composite
def configs(draw, vocab_size=5):
    """-> GPTConfig of a tiny model."""
    n_head = draw(st.integers(1, 3))
    return GPTConfig(
        vocab_size=vocab_size,
        block_size=draw(st.integers(1, 6)),
        n_layer=draw(st.integers(1, 2)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(3, 5)),
        dropout=draw(DROPOUTS),
        activation=draw(st.sampled_from(["gelu", "relu"])),
        tie_weights=draw(st.booleans()),
        attn_bias=draw(st.booleans()),
        head_bias=draw(st.booleans()),
        n_inner=draw(st.none() | st.integers(1, 9)),
        embd_dropout=draw(st.none() | DROPOUTS),
        attn_dropout=draw(st.none() | DROPOUTS),
        norm_eps=draw(st.sampled_from([1e-5, 0.1])),
    )


def _composite(draw, forward, backward, part, options_of):
    config, seed = draw(configs()), draw(SEEDS)
    n = normal(seed)
    B, T = draw(st.integers(1, 3)), config.block_size
    options = options_of(config, T) | {"dropout": config.dropout, "key": Key(seed, 7)}
    draw_shape = np.random.default_rng(seed).standard_normal
    p = nest(parameters(config.shapes(), draw_shape))["h"][0]
    p = p[part] if part else p
    return _part(forward, backward, [n(B, T, config.n_embd), p], options)


def _part(forward, backward, inputs, options):
    with kinks() as kink:
        forward(*inputs, **options)
    return Case(_with(forward, options), backward, inputs, options, kink.far)


@st.composite
def mlp(draw):
    return _composite(draw, blocks.mlp_forward, blocks.mlp_backward, "mlp",
                      lambda c, T: {"activation": c.activation})


@st.composite
def self_attention(draw):
    return _composite(draw, blocks.self_attention_forward, blocks.self_attention_backward, "attn",
                      lambda c, T: {"n_head": c.n_head, "mask": causal_mask(np, T, T),
                                    "attn_dropout": c.attn_dropout})


def _block_options(config, T):
    return {"n_head": config.n_head, "mask": causal_mask(np, T, T), "eps": config.norm_eps,
            "activation": config.activation, "attn_dropout": config.attn_dropout}


@st.composite
def block(draw):
    return _composite(draw, blocks.block_forward, blocks.block_backward, "", _block_options)


@st.composite
def gpt(draw):
    config, seed = draw(configs()), draw(SEEDS)
    rng = np.random.default_rng(seed)
    shape = draw(st.integers(1, 3)), draw(st.integers(1, config.block_size))
    idx = rng.integers(config.vocab_size, size=shape)
    targets = rng.integers(-1, config.vocab_size, shape)
    return _model(gpt_forward, gpt_backward, config, [idx], targets, seed)


def _model(model_forward, model_backward, config, tokens, targets, seed):
    """A model with its loss. tokens: the arguments of its forward before the parameters."""
    key = Key(seed, 11)

    def forward(*inputs):
        *tokens, targets, p = inputs
        logits, cache = model_forward(*tokens, nest(p), config, key)
        loss, ce = layers.cross_entropy_forward(logits, targets)
        return loss, (cache, ce)

    def backward(dloss, cache):
        cache, ce = cache
        zeros = array_module(dloss).zeros
        architecture = config.architecture()
        grads = Gradients(architecture, zeros(count(architecture), dtype=dloss.dtype))
        model_backward(layers.cross_entropy_backward(dloss, ce), cache, grads)
        return {name: grads[name] for name in architecture}

    inputs = [*tokens, targets,
              parameters(config.shapes(), np.random.default_rng(seed).standard_normal)]
    with kinks() as kink:
        forward(*inputs)
    return Case(forward, backward, inputs, vars(config), kink.far)


@st.composite
def llama_configs(draw, vocab_size=5):
    """-> LlamaConfig of a tiny model. A head's channels need not add up to those of a token."""
    n_kv_head, head_dim = draw(st.integers(1, 2)), 2 * draw(st.integers(1, 3))
    n_head, qk_norm = n_kv_head * draw(st.integers(1, 3)), draw(st.booleans())
    n_embd = draw(st.integers(1, 9)) if qk_norm else n_head * draw(st.integers(1, 3))
    return LlamaConfig(
        vocab_size=vocab_size,
        block_size=draw(st.integers(1, 6)),
        n_layer=draw(st.integers(1, 2)),
        n_head=n_head,
        n_kv_head=n_kv_head,
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=draw(st.integers(1, 9)),
        dropout=draw(DROPOUTS),
        attn_dropout=draw(st.none() | DROPOUTS),
        tie_weights=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=not qk_norm and draw(st.booleans()),
        qk_norm=qk_norm,
        rope_theta=draw(st.sampled_from([100.0, 1e4])),
        norm_eps=draw(st.sampled_from([1e-5, 0.1])),
    )


def _llama_part(draw, forward, backward, part, options_of):
    config, seed = draw(llama_configs()), draw(SEEDS)
    B, T = draw(st.integers(1, 3)), config.block_size
    options = options_of(config, T) | {"dropout": config.dropout, "key": Key(seed, 7)}
    draw_shape = np.random.default_rng(seed).standard_normal
    p = nest(parameters(config.shapes(), draw_shape))["layers"][0]
    p = p[part] if part else p
    return _part(forward, backward, [normal(seed)(B, T, config.n_embd), p], options)


def _attention_options(config, T):
    angles = rotation(np, T, config.head_dim, config.rope_theta, dtype="float64")
    return {"n_head": config.n_head, "n_kv_head": config.n_kv_head, "rotation": angles,
            "mask": causal_mask(np, T, T), "attn_dropout": config.attn_dropout,
            "eps": config.norm_eps}


@st.composite
def gated_mlp(draw):
    return _llama_part(draw, llama_blocks.gated_mlp_forward, llama_blocks.gated_mlp_backward, "mlp",
                       lambda c, T: {})


@st.composite
def grouped_attention(draw):
    return _llama_part(draw, llama_blocks.grouped_attention_forward,
                       llama_blocks.grouped_attention_backward, "self_attn", _attention_options)


@st.composite
def llama_block(draw):
    return _llama_part(draw, llama_blocks.llama_block_forward, llama_blocks.llama_block_backward,
                       "", _attention_options)


@st.composite
def llama(draw):
    config, seed = draw(llama_configs()), draw(SEEDS)
    rng = np.random.default_rng(seed)
    shape = draw(st.integers(1, 3)), draw(st.integers(1, config.block_size))
    idx = rng.integers(config.vocab_size, size=shape)
    targets = rng.integers(-1, config.vocab_size, shape)
    return _model(llama_forward, llama_backward, config, [idx], targets, seed)


@st.composite
def projection(draw):
    """A linear layer with adapters: of its own, or of several matrices side by side."""
    s, n = draw(sizes("BTIRUVW", largest=8)), normal(draw(SEEDS))
    names = draw(st.sampled_from([("c",), ("q",), ("q", "k"), ("q", "k", "v")]))
    widths = [s[letter] for letter in "UVW"[:len(names)]]
    p = {"c.bias": n(sum(widths))} if draw(st.booleans()) else {}
    for name, width in zip(names, widths):
        p |= {f"{name}.lora_A": n(s["I"], s["R"]), f"{name}.lora_B": n(s["R"], width)}
    modules = () if names == ("c",) else names

    def forward(x, p):
        return projection_forward(x, p, "c", layers, modules)

    def backward(dy, cache):
        dp = {}
        return projection_backward(dy, cache, dp), dp

    weight = {"c.weight": n(s["I"], sum(widths))}
    return Case(_frozen(forward, weight), backward, [n(s["B"], s["T"], s["I"]), p],
                {"modules": modules})


def _frozen(forward, frozen):
    """-> forward, whose parameters p are those that have gradients. frozen: name -> array, those
    that have none, of the dtype and the module of x in each call."""
    def call(x, p, **options):
        xp = array_module(x)
        constants = {name: xp.asarray(w.astype(x.real.dtype)) for name, w in frozen.items()}
        return forward(x, nest(flatten(p) | constants), **options)
    return call


def _adapted(draw, config, block, forward, backward, options_of):
    """A block, named block in the table, with adapters: its matrices are frozen, and everything
    else is checked."""
    seed, n_rows = draw(SEEDS), draw(st.integers(1, 3))
    smallest = min(width for param in config.architecture().values() if param.group == "matrix"
                   for width in (param.shape[0], *param.widths))
    table = trained(config, lora_rank=min(draw(st.integers(1, 3)), smallest))
    values = parameters({name: param.shape for name, param in table.items()},
                        np.random.default_rng(seed).standard_normal)
    values = {name.removeprefix(block): value for name, value in values.items()
              if name.startswith(block)}
    frozen = {name: w for name, w in values.items()
              if w.ndim == 2 and ".lora_" not in name}
    p = nest({name: value / 2 if ".lora_" in name else value       # a change is smaller than w
              for name, value in values.items() if name not in frozen})
    options = options_of(config, config.block_size) | {
        "dropout": config.dropout, "key": Key(seed, 7)}
    x = normal(seed)(n_rows, config.block_size, config.n_embd)
    return _part(_frozen(forward, frozen), backward, [x, p], options)


@st.composite
def adapted_block(draw):
    return _adapted(draw, draw(configs()), "h.0.", blocks.block_forward, blocks.block_backward,
                    _block_options)


@st.composite
def adapted_llama_block(draw):
    return _adapted(draw, draw(llama_configs()), "layers.0.", llama_blocks.llama_block_forward,
                    llama_blocks.llama_block_backward, _attention_options)


@st.composite
def transformer_configs(draw):
    """-> TransformerConfig of a tiny model, its two vocabularies of unequal size."""
    n_head = draw(st.integers(1, 3))
    return TransformerConfig(
        source_vocab_size=draw(st.integers(3, 5)),
        target_vocab_size=draw(st.integers(6, 8)),
        n_layer=draw(st.integers(1, 2)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(3, 5)),
        dropout=draw(DROPOUTS),
        tie_weights=draw(st.booleans()),
    )


def _postnorm(draw, stack, part=""):
    """-> x, memory, p, the masks of x and of memory, options: the arguments of a part of an encoder
    or decoder block. The memory has its own width, distinct from all others."""
    config, seed = draw(transformer_configs()), draw(SEEDS)
    n, rng = normal(seed), np.random.default_rng(seed)
    B, T, S, M = draw(sizes("BTSM")).values()
    C = config.n_embd
    M += 15 * (M == C)
    shapes = config.shapes()
    if stack == "decoder":
        shapes["decoder.h.0.crossattention.c_attn.weight"] = M, 2 * C
    p = nest(parameters(shapes, rng.standard_normal))[stack]["h"][0]
    p = p[part] if part else p
    mask = rng.random((B, 1, T, T)) < 0.7
    memory_mask = rng.random((B, 1, 1, S)) < 0.7         # it may mask a whole row
    options = {"n_head": config.n_head, "dropout": config.dropout, "key": Key(seed, 13)}
    return n(B, T, C), n(B, S, M), p, mask, memory_mask, options


@st.composite
def cross_attention(draw):
    x, memory, p, _, mask, options = _postnorm(draw, "decoder", "crossattention")
    return _part(blocks.cross_attention_forward, blocks.cross_attention_backward, [x, memory, p],
                 options | {"mask": mask})


@st.composite
def encoder_block(draw):
    x, _, p, mask, _, options = _postnorm(draw, "encoder")
    return _part(postnorm.encoder_block_forward, postnorm.encoder_block_backward, [x, p],
                 options | {"mask": mask})


@st.composite
def decoder_block(draw):
    x, memory, p, mask, memory_mask, options = _postnorm(draw, "decoder")
    return _part(postnorm.decoder_block_forward, postnorm.decoder_block_backward, [x, memory, p],
                 options | {"mask": mask, "memory_mask": memory_mask})


@st.composite
def transformer(draw):
    """Padding can be anywhere, and a source can be only padding."""
    config, seed = draw(transformer_configs()), draw(SEEDS)
    rng = np.random.default_rng(seed)
    B, T, S = draw(sizes("BTS", 5)).values()
    source = rng.integers(config.source_vocab_size, size=(B, S))
    source[0] *= draw(st.booleans())
    idx = rng.integers(config.target_vocab_size, size=(B, T))
    targets = rng.integers(-1, config.target_vocab_size, (B, T))
    return _model(transformer_forward, transformer_backward, config, [source, idx], targets, seed)


class kinks:
    """Context manager: records whether any input of a ReLU is close to its kink."""

    def __enter__(self):
        self.far = True
        self._before = LAYERS["relu"]

        def watched(x):
            self.far &= bool((np.abs(x) > 1e-3).all())
            return self._before.forward(x)

        LAYERS["relu"] = self._before._replace(forward=watched)
        return self

    def __exit__(self, *error):
        LAYERS["relu"] = self._before


CASES = {case.__name__: case for case in (
    linear, embedding, positional, layernorm, relu, gelu, dropout, attention, cross_entropy,
    mlp, self_attention, block, gpt, cross_attention, encoder_block, decoder_block, transformer,
    rmsnorm, rope, swiglu, gated_mlp, grouped_attention, llama_block, llama,
    tiled_attention, linear_cross_entropy, lora, projection, adapted_block, adapted_llama_block,
)}
USED_UP = ("gpt", "transformer", "llama")     # a model's backward consumes its cache
