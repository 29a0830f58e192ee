"""The base class of models that predict the next token of a sequence."""

from npgpt.errors import UserError
from npgpt.models.generate import READ, KVCache, generate
from npgpt.models.model import Model
from npgpt.models.sampling import Sampling

LONG = 1024     # tokens of a sequence whose loss is computed at once


class LanguageModel(Model):
    """Base of the decoder-only families. Their configurations have vocab_size and block_size."""

    def logits(self, idx, kv=None, last=False):
        """idx (B, T) -> (B, T, V): at each position, the unnormalised log-probabilities of the next
        token. kv: a KVCache of the tokens before idx. last: only at the last position, (B, 1, V).
        Raises UserError for ids outside 0..V-1, or for more tokens than the context has positions.
        """
        return self._forward(self._context(idx, kv.length if kv else 0), kv=kv, last=last)[0]

    def loss(self, idx, targets):
        """idx, targets (B, T) -> mean cross-entropy in nats per token, a scalar of the device.
        Targets of -1 are ignored. There is no dropout. Long sequences are read in parts."""
        idx, targets = self._pair(idx, targets)
        if idx.shape[1] <= LONG:
            return self._loss((idx,), targets)
        count = self.device.xp.maximum((targets != -1).sum(), 1)
        kv = KVCache(self.config.n_layer, self.config.block_size)
        total = 0
        for start in range(0, idx.shape[1], READ):
            part = slice(start, start + READ)
            x = self._forward(idx[:, part], kv=kv, head=False)[0]
            total += self._loss_of(x, targets[:, part], count)
        return total

    def loss_and_grads(self, idx, targets, key=None, count=None, *, into=None):
        """idx, targets (B, T) -> loss, a scalar of the device, and its Gradients.

        key: dropout's Key; None: no dropout. count: the divisor of the summed loss, for a part of a
        batch; None: the number of targets that are not -1. into: Gradients to add to; None: new
        ones.
        """
        idx, targets = self._pair(idx, targets)
        return self._loss_and_grads((idx,), targets, key, count, into)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=None,
                 min_p=None, repetition_penalty=1.0, end=None):
        """idx (B, T) -> (B, n) int, a NumPy array: the tokens generated after idx. n is
        max_new_tokens, or less if every row has ended. end: the token that ends a row. The other
        arguments are those of npgpt.models.sampling.Sampling."""
        return generate(self, idx, Sampling(max_new_tokens, temperature, top_k, top_p, seed, min_p,
                                            repetition_penalty), end)

    def _pair(self, idx, targets):
        V = self.config.vocab_size
        idx, targets = self._context(idx), self._tokens(targets, V, lowest=-1, name="targets")
        self._same_shape(idx, targets)
        return idx, targets

    def _context(self, idx, before=0):
        """Token ids as an array of the device. before: the number of tokens before them in the
        context."""
        idx = self._tokens(idx, self.config.vocab_size)
        if before + idx.shape[1] > self.config.block_size:
            raise UserError(f"{before + idx.shape[1]} tokens do not fit into the context of "
                            f"{self.config.block_size}")
        return idx
