"""The original Transformer: an encoder that reads and a decoder that writes (Vaswani et al. 2017,
arXiv:1706.03762).

    memory = √C * encoder.wte[source] + sinusoid        then L encoder blocks
    x      = √C * decoder.wte[idx]    + sinusoid        then L decoder blocks, which read memory
    logits = x @ head.T                                 the head is decoder.wte if weights are tied

Each token of the source sees the whole source. Each token of the target sees those before it and,
by cross-attention, the whole source. Every decoder block reads the same memory, so its gradient is
the sum of what they all send back:

    dmemory = sum over the decoder blocks of their dmemory

Two stacks and two vocabularies serve two domains: dates as people write them and as computers do,
or two languages. Where what is read and what is written are one domain, the source is only the
earlier part of the text. Causal self-attention over the whole then does what cross-attention does
here, with one set of weights, and what is read can be learnt from as well. What is left is the
decoder alone without its cross-attention: GPT.

Sequences of unequal length are filled up with PAD, which no token sees. An answer ends with END,
and the decoder is given START to begin with.
"""

from dataclasses import dataclass

import numpy as np

from npgpt.backend import get_device, to_host
from npgpt.cli.options import Options, option
from npgpt.errors import UserError
from npgpt.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    linear_backward,
    linear_forward,
)
from npgpt.models.parameters import Parameters, count, drawn_values, is_table, under
from npgpt.models.stacks import (
    PAD,
    add,
    decoder_backward,
    decoder_forward,
    encoder_backward,
    encoder_forward,
    seen,
)

START, END = 1, 2       # after PAD, 0, in both vocabularies; the words follow from 3 on


@dataclass(frozen=True)
class TransformerConfig(Options):
    """The architecture. The defaults are the paper's base model, but for two vocabularies.

    Raises UserError, a ValueError, for a value that cannot be.
    """

    source_vocab_size: int = option(37000, "tokens that are read", at_least=3, at_most=10**7)
    target_vocab_size: int = option(37000, "tokens that are written, V", at_least=3, at_most=10**7)
    n_layer: int = option(6, "blocks of the encoder, and of the decoder, L", at_least=1,
                          at_most=1000)
    n_head: int = option(8, "attention heads in a block, H", at_least=1, at_most=10**4)
    n_embd: int = option(512, "channels of a token, C", at_least=1, at_most=10**5)
    dropout: float = option(0.1, "share of elements dropped in training", at_least=0, below=1)
    tie_weights: bool = option(True, "one matrix is both the decoder's embedding and the head")

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd must be a multiple of n_head; {self.n_embd} is not one of {self.n_head}"
            )

    def shapes(self):
        """name -> shape of every parameter, in the order the model uses them."""
        C = self.n_embd

        def linear(name, n_in, n_out):
            return {f"{name}.weight": (n_in, n_out), f"{name}.bias": (n_out,)}

        def norm(name):
            return {f"{name}.weight": (C,), f"{name}.bias": (C,)}

        attn = linear("attn.c_attn", C, 3 * C) | linear("attn.c_proj", C, C) | norm("ln_1")
        cross = (linear("crossattention.q_attn", C, C) | linear("crossattention.c_attn", C, 2 * C)
                 | linear("crossattention.c_proj", C, C) | norm("ln_cross_attn"))
        mlp = linear("mlp.c_fc", C, 4 * C) | linear("mlp.c_proj", 4 * C, C) | norm("ln_2")
        shapes = {}
        for stack, V, block in (("encoder", self.source_vocab_size, attn | mlp),
                                ("decoder", self.target_vocab_size, attn | cross | mlp)):
            shapes[f"{stack}.wte.weight"] = (V, C)
            for layer in range(self.n_layer):
                shapes |= {f"{stack}.h.{layer}.{name}": shape for name, shape in block.items()}
        if not self.tie_weights:
            shapes["lm_head.weight"] = (self.target_vocab_size, C)
        return shapes


def transformer_forward(source, idx, p, config, key=None, maps=None):
    """source (B, S), idx (B, T) -> logits (B, T, V)."""
    memory, encoder = encoder_forward(source, under(p, "encoder."), config, key and key.at(0))
    x, decoder = decoder_forward(
        idx, memory, seen(source), under(p, "decoder."), config, key and key.at(1), maps
    )
    logits, lm_head = linear_forward(x, p[head_name(config)].T)             # (B, T, V)
    return logits, (encoder, decoder, lm_head, config)


def transformer_backward(dlogits, cache, grads):
    """dlogits (B, T, V) -> None: the gradients are added to `grads`, a mapping like p.
    A cache serves for one backward."""
    encoder, decoder, lm_head, config = cache
    dx, dhead, _ = linear_backward(dlogits, lm_head)
    add({head_name(config): dhead.T}, grads)         # tied: beside the embedding's
    dmemory = decoder_backward(dx, decoder, under(grads, "decoder."))
    encoder_backward(dmemory, encoder, under(grads, "encoder."))


def head_name(config):
    """The parameter (V, C) that turns channels into logits."""
    return "decoder.wte.weight" if config.tie_weights else "lm_head.weight"


def teacher_forced(answers):
    """answers (B, T), each ended by END and filled up with PAD -> idx (B, T), what the decoder is
    given: START and the answer, one place later; targets (B, T): the answer, -1 for the padding.
    So all places are learnt at once, each with the right answer before it."""
    answers = np.asarray(answers)
    start = np.full((len(answers), 1), START)
    return (np.concatenate([start, answers[:, :-1]], axis=1),
            np.where(answers == PAD, -1, answers))


class Transformer:
    """An encoder-decoder Transformer with its parameters on a device.

        model = Transformer(TransformerConfig(source_vocab_size=40, target_vocab_size=14))
        loss, grads = model.loss_and_grads(source, *teacher_forced(answers))
        answers = model.translate(source, max_new_tokens=11)

    `params` maps names to arrays, views of the one buffer `params.flat`. source (B, S) and idx
    (B, T) are token ids, PAD where there is none; targets (B, T) the tokens that should follow
    those of idx, -1 where none is asked for. Lists and NumPy arrays are checked; arrays of the
    device are taken as they are, so that nothing waits for the device.
    """

    def __init__(self, config, *, seed=1337, device="cpu", dtype="float32"):
        """seed: of the initial weights. device: "cpu", "gpu" or "auto". dtype: "float32", or
        "float64" for proofs. Raises UserError if the device cannot be had.

        Embeddings begin with a variance of 1 once they are multiplied by √C, matrices with 1/√n
        for n inputs, so that what goes through them keeps its size."""
        if dtype not in ("float32", "float64"):
            raise UserError(f"dtype must be float32 or float64, not {dtype!r}")
        self.config = config
        self.device = get_device(device)
        self.dtype = dtype
        self.params = Parameters(config.shapes(), self._zeros())
        for name, value in drawn_values(
            config.shapes(), lambda name, shape: shape[is_table(name)] ** -0.5, seed
        ):
            self.params[name] = self.device.to_device(value)

    def _zeros(self):
        return self.device.xp.zeros(count(self.config.shapes()), dtype=self.dtype)

    def logits(self, source, idx):
        """-> (B, T, V): at each place of idx, the unnormalised log-probabilities of the next
        token. Raises UserError for token ids that cannot be."""
        source, idx = self._batch(source, idx)
        return transformer_forward(source, idx, self.params, self.config)[0]

    def loss(self, source, idx, targets):
        """-> mean cross-entropy in nats a token, a scalar of the device. Nothing is dropped."""
        source, idx, targets = self._batch(source, idx, targets)
        logits, _ = transformer_forward(source, idx, self.params, self.config)
        return cross_entropy_forward(logits, targets)[0]

    def loss_and_grads(self, source, idx, targets, key=None, into=None, count=None):
        """-> loss, a scalar of the device, and the mapping of its gradients.

        key, into, count: as in GPT.loss_and_grads.
        """
        grads = self.params.on(self._zeros()) if into is None else into
        source, idx, targets = self._batch(source, idx, targets)
        logits, cache = transformer_forward(source, idx, self.params, self.config, key)
        loss, ce = cross_entropy_forward(logits, targets, count)
        del logits
        dlogits = cross_entropy_backward(self.device.xp.ones_like(loss), ce)
        transformer_backward(dlogits, cache, grads)
        return loss, grads

    def cross_attention(self, source, idx):
        """-> for each decoder block an array (B, H, T, S): how much each token of idx takes from
        each token of the source."""
        source, idx = self._batch(source, idx)
        maps = []
        transformer_forward(source, idx, self.params, self.config, maps=maps)
        return maps

    def translate(self, source, max_new_tokens):
        """-> (B, n) int, a NumPy array: the likeliest token each time, until every row has ended
        with END, but at most max_new_tokens. After a row's END there is PAD.

        The source is read once. What is written already is read again for each token.
        """
        source = self._tokens(source, self.config.source_vocab_size)
        p = self.params
        memory, _ = encoder_forward(source, under(p, "encoder."), self.config)
        idx = np.full((len(source), 1), START)
        ended = np.zeros(len(source), dtype=bool)
        while idx.shape[1] <= max_new_tokens and not ended.all():
            x, _ = decoder_forward(
                self.device.to_device(idx), memory, seen(source), under(p, "decoder."), self.config
            )
            new = to_host((x[:, -1] @ p[head_name(self.config)].T).argmax(-1))       # (B,)
            new = np.where(ended, PAD, new)
            ended = (new == END) | (new == PAD)
            idx = np.concatenate([idx, new[:, None]], axis=1)
        return idx[:, 1:]

    def _batch(self, source, *target):
        """source, idx and, if given, targets as arrays of the device; they must fit together."""
        V = self.config.target_vocab_size
        source = self._tokens(source, self.config.source_vocab_size)
        target = [self._tokens(ids, V, lowest) for ids, lowest in zip(target, (0, -1))]
        if len(source) != len(target[0]):
            raise UserError(f"{len(source)} sources and {len(target[0])} targets must be as many")
        if target[0].shape != target[-1].shape:
            raise UserError(f"idx {target[0].shape} and targets {target[1].shape} must have one "
                            "shape")
        return source, *target

    def _tokens(self, idx, V, lowest=0):
        """Token ids as an array of the device; those that come from the host are checked."""
        if not isinstance(idx, (np.ndarray, list, tuple)):
            return idx
        idx = np.asarray(idx)
        if idx.ndim != 2 or idx.shape[1] == 0 or idx.dtype.kind not in "iu":
            raise UserError(f"token ids must be whole numbers (B, T), T at least 1, not {idx.dtype}"
                            f" {idx.shape}")
        if idx.size and not lowest <= idx.min() <= idx.max() < V:
            raise UserError(
                f"token ids must lie in {lowest}..{V - 1}, and these in {idx.min()}..{idx.max()}"
            )
        return self.device.to_device(idx)
