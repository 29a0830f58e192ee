"""The original Transformer: an encoder that reads and a decoder that writes (Vaswani et al. 2017,
arXiv:1706.03762).

    memory = √C * encoder.wte[source] + sinusoid        then L encoder blocks
    x      = √C * decoder.wte[idx]    + sinusoid        then L decoder blocks, which read memory
    logits = x @ head.T                                 the head is decoder.wte if weights are tied

Each token of the source attends to the whole source. Each token of the target attends to itself,
the tokens before it and, by cross-attention, the whole source. Every decoder block reads the same
memory, so its gradient is a sum:

    dmemory = sum over the decoder blocks of their dmemory

Two stacks and two vocabularies are for two domains: two languages, or dates as people and as
computers write them. If the model reads and writes the same language, the source is just the
earlier part of the text. Causal self-attention over the whole text then replaces cross-attention,
with one set of weights, and the model also learns from the source. What remains is the decoder
without its cross-attention: GPT.

Sequences of unequal length are padded with PAD, which is masked in attention. An answer ends with
END, and the decoder's input begins with START.
"""

from dataclasses import dataclass

import numpy as np

from npgpt import layers
from npgpt.backend import to_host
from npgpt.cli.options import option
from npgpt.errors import UserError
from npgpt.models.model import Model, ModelConfig
from npgpt.models.parameters import flatten, linear, norm, table
from npgpt.models.stacks import (
    PAD,
    decoder_backward,
    decoder_forward,
    encoder_backward,
    encoder_forward,
    seen,
)

START, END = 1, 2       # in both vocabularies, after PAD = 0; other tokens start at 3


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The architecture. The defaults are the paper's base model, but with two vocabularies.

    Raises UserError, a ValueError, for an invalid value.
    """

    source_vocab_size: int = option(37000, "tokens in the source vocabulary", at_least=3,
                                    at_most=10**7)
    target_vocab_size: int = option(37000, "tokens in the target vocabulary, V", at_least=3,
                                    at_most=10**7)
    n_layer: int = option(6, "blocks of the encoder, and of the decoder, L", at_least=1,
                          at_most=1000)
    n_head: int = option(8, "attention heads in a block, H", at_least=1, at_most=10**4)
    n_embd: int = option(512, "channels of a token, C", at_least=1, at_most=10**5)
    dropout: float = option(0.1, "fraction of elements dropped in training", at_least=0, below=1)
    tie_weights: bool = option(True, "one matrix is both the decoder's embedding and the head")

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise UserError(f"`n_embd` must be a multiple of `n_head`, got {self.n_embd} and "
                            f"{self.n_head}")

    @property
    def head(self):
        """The name of the head's weight, (V, C)."""
        return "decoder.wte.weight" if self.tie_weights else "lm_head.weight"

    def architecture(self):
        """-> name -> Param of every parameter, in the order the model uses them.

        Initially, embeddings multiplied by √C have a variance of 1, and a matrix with n inputs has
        a variance of 1/n, so that activations keep their scale."""
        C = self.n_embd

        def matrix(n_in, n_out, parts=()):
            return linear(n_in, n_out, n_in**-0.5, parts=parts)

        attn = {"attn": {"c_attn": matrix(C, 3 * C, (C, C, C)), "c_proj": matrix(C, C)},
                "ln_1": norm(C)}
        cross = {"crossattention": {"q_attn": matrix(C, C), "c_attn": matrix(C, 2 * C, (C, C)),
                                    "c_proj": matrix(C, C)},
                 "ln_cross_attn": norm(C)}
        mlp = {"mlp": {"c_fc": matrix(C, 4 * C), "c_proj": matrix(4 * C, C)}, "ln_2": norm(C)}

        def stack(V, block, uses=1):
            return {"wte": table(V, C, C**-0.5, uses),
                    "h": dict.fromkeys(range(self.n_layer), block)}

        return flatten({
            "encoder": stack(self.source_vocab_size, attn | mlp),
            "decoder": stack(self.target_vocab_size, attn | cross | mlp,
                             uses=2 if self.tie_weights else 1),
            "lm_head": {} if self.tie_weights else table(self.target_vocab_size, C, C**-0.5),
        })


def transformer_forward(source, idx, p, config, key=None, maps=None, layers=layers, head=True,
                        recompute=False):
    """source (B, S), idx (B, T) -> logits (B, T, V). head: False: not the logits, but what the head
    maps to them, (B, T, C). recompute: the backward computes the blocks again."""
    memory, encoder = encoder_forward(source, p["encoder"], config, key and key.at(0), layers,
                                      recompute)
    x, decoder = decoder_forward(
        idx, memory, seen(source), p["decoder"], config, key and key.at(1), maps, layers,
        recompute,
    )
    lm_head = None
    if head:
        weight = p["decoder"]["wte.weight"] if config.tie_weights else p["lm_head.weight"]
        x, lm_head = layers.linear_forward(x, weight.T)                     # (B, T, V)
    return x, (encoder, decoder, lm_head, config, layers)


def transformer_backward(dy, cache, grads):
    """dy (B, T, V), of the logits, or (B, T, C), without the head -> None: adds the gradients to
    `grads`. A cache can be used for one backward only."""
    encoder, decoder, lm_head, config, layers = cache
    dx = dy
    del dy
    if lm_head:
        dx, dhead, _ = layers.linear_backward(dx, lm_head)
        grads.add(config.head, dhead.T)              # tied: a part of the embedding's
    dmemory = decoder_backward(dx, decoder, grads)
    encoder_backward(dmemory, encoder, grads)


def teacher_forced(answers):
    """answers (B, T), each ended by END and padded with PAD -> idx (B, T), the decoder's input:
    START and the answer, shifted by one position; targets (B, T): the answer, -1 for padding. So
    the model learns all positions at once, each from the correct tokens before it."""
    answers = np.asarray(answers)
    start = np.full((len(answers), 1), START)
    return (np.concatenate([start, answers[:, :-1]], axis=1),
            np.where(answers == PAD, -1, answers))


class Transformer(Model):
    """An encoder-decoder Transformer with its parameters on a device.

        model = Transformer(TransformerConfig(source_vocab_size=40, target_vocab_size=14))
        loss, grads = model.loss_and_grads(source, *teacher_forced(answers))
        answers = model.translate(source, max_new_tokens=11)

    source (B, S) and idx (B, T) are token ids, PAD for padding. targets (B, T) are the tokens that
    should follow those of idx, -1 where there is none.
    """

    Config = TransformerConfig
    forward = staticmethod(transformer_forward)
    backward = staticmethod(transformer_backward)

    def logits(self, source, idx):
        """-> (B, T, V): at each position of idx, the unnormalised log-probabilities of the next
        token. Raises UserError for invalid token ids."""
        return self._forward(*self._pair(source, idx))[0]

    def loss(self, source, idx, targets):
        """-> mean cross-entropy in nats per token, a scalar of the device, without dropout."""
        return self._loss(self._pair(source, idx), self._targets(idx, targets))

    def loss_and_grads(self, source, idx, targets, key=None, count=None, *, into=None):
        """-> loss, a scalar of the device, and its Gradients. key, count, into: as in
        LanguageModel.loss_and_grads."""
        return self._loss_and_grads(self._pair(source, idx), self._targets(idx, targets), key,
                                    count, into)

    def cross_attention(self, source, idx):
        """-> for each decoder block an array (B, H, T, S): the attention weights of each token of
        idx over the tokens of the source."""
        maps = []
        self._forward(*self._pair(source, idx), maps=maps)
        return maps

    def translate(self, source, max_new_tokens):
        """-> (B, n) int, a NumPy array: the most likely token at each position, until every row has
        ended with END, but at most max_new_tokens. After a row's END there is PAD.

        The encoder runs once; the decoder reads the whole answer so far for each new token.
        """
        source = self._tokens(source, self.config.source_vocab_size, name="source")
        p, config = self.params.tree, self.config
        idx = np.full((len(source), 1), START)
        ended = np.zeros(len(source), dtype=bool)
        with self.device.math_mode(self.dtype):
            memory, _ = encoder_forward(source, p["encoder"], config, layers=self.layers)
            while idx.shape[1] <= max_new_tokens and not ended.all():
                x, _ = decoder_forward(self.device.to_device(idx), memory, seen(source),
                                       p["decoder"], config, layers=self.layers)
                new = to_host((x[:, -1] @ self.params[config.head].T).argmax(-1))  # (B,)
                new = np.where(ended, PAD, new)
                ended = (new == END) | (new == PAD)
                idx = np.concatenate([idx, new[:, None]], axis=1)
        return idx[:, 1:]

    def _pair(self, source, idx):
        """source and idx as arrays of the device."""
        source = self._tokens(source, self.config.source_vocab_size, name="source")
        idx = self._tokens(idx, self.config.target_vocab_size)
        if len(source) != len(idx):
            raise UserError(f"source and idx must have the same number of rows, got {len(source)} "
                            f"and {len(idx)}")
        if 0 in (source.shape[1], idx.shape[1]):
            raise UserError(f"source and idx must have at least one token in a row, got shapes "
                            f"{source.shape} and {idx.shape}")
        return source, idx

    def _targets(self, idx, targets):
        targets = self._tokens(targets, self.config.target_vocab_size, -1, "targets")
        self._same_shape(np.asarray(idx) if isinstance(idx, (list, tuple)) else idx, targets)
        return targets
