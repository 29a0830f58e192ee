"""GPT: a decoder-only transformer (Radford et al. 2019), and the class that holds its parameters.

    x      = dropout(wte[idx] + wpe)
    x      = block(x)                    L times
    logits = layernorm(x) @ head.T       the head is wte itself when the weights are tied

`gpt_forward` and `gpt_backward` are functions like every layer's; `GPT` gives them parameters,
a device and a convenient face. Parameters have GPT-2's names: wte and wpe are the embeddings of
tokens and positions, h.3 is block 3, ln a layernorm, c_attn, c_fc and c_proj are linear layers. A
cache is named after the parameters of its layer.
"""

from dataclasses import dataclass

import numpy as np

from npgpt.backend import array_module, get_device
from npgpt.checkpoints import gpt2 as checkpoint
from npgpt.cli.options import Options, option
from npgpt.durable import atomic_directory
from npgpt.errors import UserError
from npgpt.layers import (
    causal_mask,
    cross_entropy_backward,
    cross_entropy_forward,
    dropout_backward,
    dropout_forward,
    embedding_backward,
    embedding_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    positional_backward,
    positional_forward,
)
from npgpt.models.blocks import ACTIVATIONS, block_backward, block_forward
from npgpt.models.generate import Sampling, generate
from npgpt.models.parameters import Parameters, count, initial_values, under


@dataclass(frozen=True)
class GPTConfig(Options):
    """The architecture. The defaults are GPT-2's, 124 million parameters.

    Raises UserError, a ValueError, for a value that cannot be.
    """

    vocab_size: int = option(50257, "tokens in the vocabulary, V", at_least=1, at_most=10**7)
    block_size: int = option(1024, "tokens in the context, T", at_least=1, at_most=10**6)
    n_layer: int = option(12, "transformer blocks, L", at_least=1, at_most=1000)
    n_head: int = option(12, "attention heads in a block, H", at_least=1, at_most=10**4)
    n_embd: int = option(768, "channels of a token, C", at_least=1, at_most=10**5)
    dropout: float = option(0.0, "share of elements dropped in training", at_least=0, below=1)
    activation: str = option("gelu", "of the MLP", choices=tuple(ACTIVATIONS))
    tie_weights: bool = option(True, "one matrix is both token embedding and head")
    attn_bias: bool = option(True, "queries, keys and values have a bias")
    head_bias: bool = option(False, "the head has a bias")

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd must be a multiple of n_head; {self.n_embd} is not one of {self.n_head}"
            )

    def shapes(self):
        """name -> shape of every parameter, in the order the model uses them."""
        V, T, C = self.vocab_size, self.block_size, self.n_embd
        shapes = {"wte.weight": (V, C), "wpe.weight": (T, C)}
        block = {
            "ln_1.weight": (C,), "ln_1.bias": (C,),
            "attn.c_attn.weight": (C, 3 * C), "attn.c_attn.bias": (3 * C,),
            "attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,),
            "ln_2.weight": (C,), "ln_2.bias": (C,),
            "mlp.c_fc.weight": (C, 4 * C), "mlp.c_fc.bias": (4 * C,),
            "mlp.c_proj.weight": (4 * C, C), "mlp.c_proj.bias": (C,),
        }
        if not self.attn_bias:
            del block["attn.c_attn.bias"]
        for layer in range(self.n_layer):
            shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
        shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
        if not self.tie_weights:
            shapes["lm_head.weight"] = (V, C)
        if self.head_bias:
            shapes["lm_head.bias"] = (V,)
        return shapes


def gpt_forward(idx, p, config, key=None, kv=None):
    """idx (B, T) -> logits (B, T, V). kv: a KVCache of what came before, for generation."""
    start = kv.length if kv else 0
    x, wte = embedding_forward(idx, p["wte.weight"])                            # (B, T, C)
    x, wpe = positional_forward(x, p["wpe.weight"], start)
    x, drop = dropout_forward(x, config.dropout, key and key.at(0))
    mask = causal_mask(array_module(x), idx.shape[1], start + idx.shape[1])     # (T, start + T)
    blocks = []
    for layer in range(config.n_layer):
        x, block = block_forward(
            x, under(p, f"h.{layer}."), config.n_head, mask, config.activation, config.dropout,
            key and key.at(1 + layer), kv and kv.layers[layer],
        )
        blocks.append(block)
    x, ln_f = layernorm_forward(x, p["ln_f.weight"], p["ln_f.bias"])
    head = p["wte.weight"] if config.tie_weights else p["lm_head.weight"]       # (V, C)
    logits, lm_head = linear_forward(x, head.T, p.get("lm_head.bias"))          # (B, T, V)
    return logits, (wte, wpe, drop, blocks, ln_f, lm_head, config)


def gpt_backward(dlogits, cache, grads):
    """dlogits (B, T, V) -> None: the gradients are added to `grads`, a mapping like p.

    Each block's cache is taken from the list as it is used, so a cache serves for one backward.
    """
    wte, wpe, drop, blocks, ln_f, lm_head, config = cache

    def add(dp, prefix=""):
        while dp:                                    # each is dropped as soon as it is added
            name, d = dp.popitem()
            grads[prefix + name] += d

    dx, dhead, dbias = linear_backward(dlogits, lm_head)
    add({"wte.weight" if config.tie_weights else "lm_head.weight": dhead.T})
    if dbias is not None:
        add({"lm_head.bias": dbias})
    dx, dw, db = layernorm_backward(dx, ln_f)
    add({"ln_f.weight": dw, "ln_f.bias": db})
    for layer in reversed(range(config.n_layer)):
        dx, dp = block_backward(dx, blocks.pop())
        add(dp, f"h.{layer}.")
    dx = dropout_backward(dx, drop)
    dx, dw = positional_backward(dx, wpe)
    add({"wpe.weight": dw, "wte.weight": embedding_backward(dx, wte)})    # tied: beside the head's


class GPT:
    """A GPT with its parameters on a device.

        model = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
        loss, grads = model.loss_and_grads(idx, targets)

    `params` maps names to arrays, views of the one buffer `params.flat`. Token ids may be lists,
    NumPy arrays, which are checked, or arrays of the device, which are taken as they are, so that
    nothing waits for the device.
    """

    def __init__(self, config, *, seed=1337, device="cpu", dtype="float32", values=None):
        """seed: of the initial weights. device: "cpu", "gpu" or "auto". dtype: "float32", or
        "float64" for proofs. values: pairs of names and NumPy arrays to take as parameters,
        instead of drawing them. Raises UserError if the device cannot be had."""
        if dtype not in ("float32", "float64"):
            raise UserError(f"dtype must be float32 or float64, not {dtype!r}")
        self.config = config
        self.device = get_device(device)
        self.dtype = dtype
        self.params = Parameters(config.shapes(), self._zeros())
        if values is None:
            values = initial_values(config.shapes(), config.n_layer, seed)
        missing = set(self.params)
        for name, value in values:
            if self.params.shapes.get(name) != np.shape(value):
                raise UserError(f"{name} {np.shape(value)} is no parameter of this architecture")
            self.params[name] = self.device.to_device(value)
            missing.remove(name)
        if missing:
            raise UserError(f"values for {', '.join(sorted(missing))} are missing")

    def _zeros(self):
        return self.device.xp.zeros(count(self.config.shapes()), dtype=self.dtype)

    def logits(self, idx, kv=None):
        """idx (B, T) -> (B, T, V): at each place, the unnormalised log-probabilities of the next
        token. kv: a KVCache; idx then goes on where it ends. Raises UserError for ids outside
        0..V-1, or for more of them than the context holds."""
        idx = self._tokens(idx, read=kv.length if kv else 0)
        return gpt_forward(idx, self.params, self.config, kv=kv)[0]

    def loss(self, idx, targets):
        """idx, targets (B, T) -> mean cross-entropy in nats a token, a scalar of the device.
        Targets of -1 are left out. Nothing is dropped."""
        idx, targets = self._pair(idx, targets)
        return cross_entropy_forward(gpt_forward(idx, self.params, self.config)[0], targets)[0]

    def loss_and_grads(self, idx, targets, key=None, into=None, count=None):
        """idx, targets (B, T) -> loss, a scalar of the device, and the mapping of its gradients.

        key: dropout's Key; None: nothing is dropped. into: a mapping like params to add the
        gradients to, else they start from 0. count: what the summed loss is divided by, for a
        batch that comes in parts; else the number of targets that are not -1.
        """
        grads = self.params.on(self._zeros()) if into is None else into
        idx, targets = self._pair(idx, targets)
        logits, cache = gpt_forward(idx, self.params, self.config, key)
        loss, ce = cross_entropy_forward(logits, targets, count)
        del logits
        gpt_backward(cross_entropy_backward(self.device.xp.ones_like(loss), ce), cache, grads)
        return loss, grads

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=None):
        """idx (B, T) -> (B, max_new_tokens) int, a NumPy array: what the model writes after idx.
        The arguments are those of npgpt.models.generate.Sampling."""
        return generate(self, idx, Sampling(max_new_tokens, temperature, top_k, top_p, seed))

    def save_pretrained(self, directory):
        """Write a model directory that Hugging Face's transformers can open. Whole or not at all:
        an older model there is replaced only when the new one is complete. Raises UserError if the
        directory holds anything else."""
        with atomic_directory(directory, checkpoint.FILES) as folder:
            checkpoint.write_model(folder, self)

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype="float32"):
        """Read a model directory: one of npgpt's, or a GPT-2 that transformers saved.
        Raises UserError that says what is missing, unknown or damaged."""
        architecture, values = checkpoint.read_model(directory, lambda v: GPTConfig(**v).shapes())
        return cls(GPTConfig(**architecture), device=device, dtype=dtype, values=values)

    def _pair(self, idx, targets):
        """Token ids and targets, which must have one shape, as arrays of the device."""
        idx, targets = self._tokens(idx), self._tokens(targets, lowest=-1)
        if idx.shape != targets.shape:
            raise UserError(f"idx {idx.shape} and targets {targets.shape} must have one shape")
        return idx, targets

    def _tokens(self, idx, lowest=0, read=0):
        """Token ids as an array of the device; those that come from the host are checked.
        read: how many tokens of the context are taken already."""
        if not isinstance(idx, (np.ndarray, list, tuple)):
            return idx
        idx = np.asarray(idx)
        V = self.config.vocab_size
        if idx.ndim != 2 or idx.dtype.kind not in "iu":
            raise UserError(f"token ids must be whole numbers (B, T), not {idx.dtype} {idx.shape}")
        if read + idx.shape[1] > self.config.block_size:
            raise UserError(f"{read + idx.shape[1]} tokens are more than the context of "
                            f"{self.config.block_size} holds")
        if idx.size and not lowest <= idx.min() <= idx.max() < V:
            raise UserError(
                f"token ids must lie in {lowest}..{V - 1}, and these in {idx.min()}..{idx.max()}"
            )
        return self.device.to_device(idx)
