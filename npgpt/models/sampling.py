"""The distribution from which the next token is drawn, and its options.

The options act in the order and with the conventions of transformers: the repetition penalty
changes logits, the temperature divides them, then top_k, top_p and min_p each leave out unlikely
tokens, but never the most likely one.
"""

from dataclasses import dataclass

import numpy as np

from npgpt.cli.options import Options, option


@dataclass(frozen=True)
class Sampling(Options):
    """The options of sampling. Raises UserError, a ValueError, for an invalid value."""

    max_new_tokens: int = option(500, "tokens to generate", at_least=0)
    temperature: float = option(1.0, "divisor of the logits; 0: always the most likely token",
                                at_least=0)
    top_k: int | None = option(None, "sample only from the k most likely tokens, and from those as "
                               "likely as the last of them", at_least=1)
    top_p: float | None = option(
        None, "sample only from the fewest most likely tokens whose probabilities sum to at least "
        "p", above=0, at_most=1
    )
    seed: int | None = option(None, "seed of the sampling (default: random)", at_least=0)
    min_p: float | None = option(None, "sample only from tokens at least p times as likely as the "
                                 "most likely one", above=0, at_most=1)
    repetition_penalty: float = option(
        1.0, "divisor of positive logits, and factor of negative ones, of tokens that the text has "
        "already; above 1: fewer repetitions", at_least=0.01, at_most=100)


def penalized(logits, seen, penalty):
    """logits (B, V), seen (B, V) bool: tokens of the text so far -> (B, V): those of seen tokens
    lowered (Keskar et al. 2019, arXiv:1909.05858, in the form that transformers uses)."""
    logits = logits.astype(np.float64)
    lowered = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.where(seen, lowered, logits)


def probabilities(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """logits (B, V), on the host -> (B, V) float64, the distribution to sample from.

    top_k keeps the k most likely tokens, and those as likely as the last of them; of these, top_p
    keeps the fewest most likely ones whose probabilities sum to at least p (Holtzman et al. 2020,
    arXiv:1904.09751), of equally likely ones those with the higher ids. Of these, min_p keeps those
    at least p times as likely as the most likely one (Nguyen et al. 2024, arXiv:2407.01082).
    """
    logits = logits.astype(np.float64)
    likeliest = logits.max(1, keepdims=True)
    if temperature == 0:
        first = logits.argmax(1)[:, None]
        return (np.arange(logits.shape[1]) == first).astype(np.float64)
    with np.errstate(over="ignore"):                # a tiny temperature gives -inf, as it should
        probs = logits - likeliest
        probs /= temperature
    np.exp(probs, out=probs)
    if top_k is not None:
        last = np.sort(logits)[:, -top_k:][:, :1]                           # the k-th, (B, 1)
        probs[logits < last] = 0
    probs /= probs.sum(1, keepdims=True)
    if top_p is not None:
        order = np.argsort(logits, kind="stable")                           # most likely last
        ranked = np.take_along_axis(probs, order, 1)
        is_left_out = np.cumsum(ranked, 1) <= 1 - top_p
        is_left_out[:, -1] = False                  # the most likely token is always kept
        ranked[is_left_out] = 0
        np.put_along_axis(probs, order, ranked, 1)
        probs /= probs.sum(1, keepdims=True)
    if min_p is not None:
        probs[probs < min_p * probs.max(1, keepdims=True)] = 0
        probs /= probs.sum(1, keepdims=True)
    return probs


def draw(probs, thresholds):
    """probs (B, V), thresholds (B,) in [0, 1) -> (B,): the first token whose cumulative probability
    exceeds the threshold. A row need not sum to 1."""
    reached = np.cumsum(probs, 1)
    reached /= reached[:, -1:]          # exactly 1 at the end, so that there always is a token
    return (reached <= thresholds[:, None]).sum(1)

