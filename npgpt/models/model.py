"""The base class of the models: parameters on a device, precision, checks of token ids, files.

A family of models adds a configuration that gives its architecture, a table of parameters, and a
forward and a backward like those of every layer:

    logits, cache = forward(*tokens, p, config, key, layers=layers)
    backward(dlogits, cache, grads)       adds the gradients to grads, a Gradients

In training the head is left out of both, `head=False`, and is one layer with the loss, so that the
logits are never in memory all at once.

Precision belongs to the model. float64 and float32 compute in that dtype. tf32 and bfloat16 have
float32 parameters and round the inputs of matrix products: tf32 to 10 bits of mantissa, by a math
mode of the device that is set while the model computes; bfloat16 to 8 bits of precision, by other
versions of layers, `model.layers`.
"""

from itertools import chain
from types import MappingProxyType

import numpy as np

from npgpt.backend import get_device, to_host
from npgpt.cli.options import Options
from npgpt.errors import UserError
from npgpt.kernels import layers_for
from npgpt.models.parameters import Parameters, count
from npgpt.models.trained import adapters, merged, trained

ATTENTION = ("auto", "plain", "tiled")


class ModelConfig(Options):
    """Base of the configurations. Each has a method `architecture`, which gives the table of its
    parameters in the order in which the model uses them, and `head`, the name of the weight (V, C)
    that maps channels to logits. A head's bias is "lm_head.bias"."""

    modules = MappingProxyType({})   # a layer of the blocks -> the names of matrices in its weight

    def shapes(self):
        """-> name -> shape of every parameter."""
        return {name: param.shape for name, param in self.architecture().items()}


def is_tiled(attention, config, device):
    """Whether a model computes attention in tiles. attention: as for a new Model. With "auto" the
    longest context decides, so that a run always computes in the same way."""
    if attention not in ATTENTION:
        raise UserError(f"`attention` must be one of {', '.join(ATTENTION)}, got {attention!r}")
    context = getattr(config, "block_size", 0)
    return attention == "tiled" or (attention == "auto" and context > device.longest_plain)


class Model:
    """Base of the models. `params` maps names to arrays, views of the one buffer `params.flat`.

    Token ids may be lists or NumPy arrays, which are checked, or arrays of the device, which are
    not checked, because that would wait for the device.
    """

    Config = ModelConfig        # of the family
    forward = backward = None   # the family's functions

    def __init__(self, config, *, seed=1337, device="cpu", dtype="float32", fused=False,
                 attention="auto", recompute=False, lora_rank=0, freeze="nothing", values=None,
                 share=lambda buffer: buffer):
        """seed: of the initial weights. device: "cpu", "gpu" or "auto". dtype: "float32",
        "float64", "tf32" or "bfloat16", the last two on a GPU. fused: use the GPU's fused kernels.
        attention: "plain", "tiled", or "auto": tiled for long contexts on a CPU. recompute: the
        backward computes each block again, and memory has the activations of one block at a time.
        lora_rank: the rank of the adapters, which are then the only trainable parameters; 0: there
        are none. freeze: "embeddings": neither these nor the head are trainable. values: pairs of
        names and NumPy arrays, the parameters; adapters may be missing; None: random ones. share:
        buffer -> the one to use for the parameters, as Communicator.share. Raises UserError if the
        device or the precision is not available."""
        self.config = config
        self.device = get_device(device)
        self.dtype = dtype
        self.recompute = recompute
        tiled = is_tiled(attention, config, self.device)
        self.layers = layers_for(self.device, dtype, fused, tiled)
        self.lora_rank = lora_rank
        architecture = trained(config, lora_rank, freeze)
        self.params = Parameters(architecture, share(self._zeros(count(architecture))))
        drawn = architecture if values is None else adapters(config, lora_rank)
        random = ((name, param.draw(name, seed)) for name, param in drawn.items())
        missing = set(self.params)
        for name, value in chain(random, values or ()):
            if name not in architecture or architecture[name].shape != np.shape(value):
                raise UserError(f"this architecture has no parameter {name} {np.shape(value)}")
            self.params[name] = self.device.to_device(value)
            missing.discard(name)
        if missing:
            raise UserError(f"values for {', '.join(sorted(missing))} are missing")

    def __repr__(self):
        return (f"{type(self).__name__}({self.config}, {self.params.flat.size:,} parameters, "
                f"{self.dtype} on {self.device.name})")

    def gradients(self, flat=None):
        """-> Gradients of the trainable parameters, all 0. flat: the buffer to use."""
        if flat is None:
            flat = self._zeros(self.params.n_trainable)
        grads = self.params.gradients(flat)
        grads.zero()
        return grads

    def merged(self):
        """-> a model on the CPU that computes the same, with its adapters merged into its weights;
        itself if it has none."""
        if not self.lora_rank:
            return self
        values = {name: to_host(array) for name, array in self.params.items()}
        changes = {name: values.pop(name) for name in adapters(self.config, self.lora_rank)}
        dtype = "float64" if self.dtype == "float64" else "float32"
        return type(self)(self.config, dtype=dtype,
                          values=merged(self.config, values.items(), changes))

    def save_pretrained(self, directory):
        """Write a model directory, which Hugging Face's transformers can load if it knows the
        architecture. Adapters are merged. An existing model there is replaced atomically. Raises
        UserError if the directory contains other files."""
        from npgpt.checkpoints import save_model
        save_model(self, directory)

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype="float32", fused=False,
                        attention="auto", recompute=False):
        """Read a model directory that npgpt or transformers wrote, or a GGUF file -> a model of
        this family; of a base of several families, such as LanguageModel, of the one that the
        directory names. The other arguments: as for a new model. Raises UserError that says what
        is missing, unknown or damaged."""
        from npgpt.checkpoints import load_model
        return load_model(directory, cls, device=device, dtype=dtype, fused=fused,
                          attention=attention, recompute=recompute)

    def _zeros(self, n):
        return self.device.xp.zeros(n, "float64" if self.dtype == "float64" else "float32")

    def _forward(self, *tokens, **options):
        """The family's forward with the model's parameters, in its precision."""
        with self.device.math_mode(self.dtype):
            return self.forward(*tokens, self.params.tree, self.config, layers=self.layers,
                                **options)

    def _loss(self, tokens, targets):
        """-> mean cross-entropy in nats per token, a scalar of the device, without dropout."""
        x, _ = self._forward(*tokens, head=False, recompute=True)   # keeps each block's input only
        return self._loss_of(x, targets)

    def _loss_of(self, x, targets, count=None):
        """x (B, T, C), what the head maps to logits -> the loss, without gradients."""
        with self.device.math_mode(self.dtype):
            return self._head_forward(x, targets, count, gradients=False)[0]

    def _head_forward(self, x, targets, count, **options):
        name = self.config.head
        return self.layers.linear_cross_entropy_forward(
            x, self.params[name].T, self.params.get("lm_head.bias"), targets, count,
            frozen=not self.params.architecture[name].trainable, **options)

    def _loss_and_grads(self, tokens, targets, key, count, grads):
        """-> loss, grads. key, count: as in loss_and_grads. grads: to add to, or None."""
        layers, grads = self.layers, self.gradients() if grads is None else grads
        with self.device.math_mode(self.dtype):
            x, cache = self.forward(*tokens, self.params.tree, self.config, key, layers=layers,
                                    head=False, recompute=self.recompute)
            loss, head = self._head_forward(x, targets, count)
            dx, dw, db = layers.linear_cross_entropy_backward(None, head)
            if dw is not None:
                grads.add(self.config.head, dw.T)
            grads.add("lm_head.bias", db)
            gradient = [dx]
            del x, head, dx, dw              # dw is large if the vocabulary is
            # pop() passes on the only reference to dx, so the backward can free it.
            self.backward(gradient.pop(), cache, grads)
        return loss, grads

    def _tokens(self, idx, V, lowest=0, name="idx"):
        """Token ids (B, T), T >= 1, as an array of the device; those from the host are checked."""
        if not isinstance(idx, (np.ndarray, list, tuple)):
            return idx
        idx = np.asarray(idx)
        if idx.ndim != 2 or idx.dtype.kind not in "iu":
            raise UserError(f"{name} must be whole numbers of shape (B, T), got {idx.dtype} of "
                            f"shape {idx.shape}")
        if idx.size and not lowest <= idx.min() <= idx.max() < V:
            wrong = idx.max() if idx.max() >= V else idx.min()
            raise UserError(f"{name} must be token ids from {lowest} to {V - 1}, got {wrong}")
        return self.device.to_device(idx)

    def _same_shape(self, idx, targets):
        if idx.shape != targets.shape:
            raise UserError(f"idx and targets must have the same shape, got {idx.shape} and "
                            f"{targets.shape}")
