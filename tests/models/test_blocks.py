import numpy as np
import pytest

from npgpt import GPTConfig
from npgpt.layers import Key
from npgpt.models.blocks import (
    block_forward,
    merge_heads,
    mlp_forward,
    self_attention_forward,
    split_heads,
)
from npgpt.models.parameters import under
from tests.cases import parameters

CONFIG = GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=2, n_embd=6)
P = parameters(under(CONFIG.shapes(), "h.0."), np.random.default_rng(0).standard_normal)
X = np.random.default_rng(1).standard_normal((2, 5, 6))


@pytest.mark.parametrize(("forward", "given", "explicit"), [
    (mlp_forward, (), {"activation": "gelu", "dropout": 0.0}),
    (self_attention_forward, (2,), {"mask": None, "dropout": 0.0}),
    (block_forward, (2,), {"mask": None, "activation": "gelu", "dropout": 0.0}),
])
def test_options_that_are_left_out_are_gelu_no_mask_and_no_dropout(forward, given, explicit):
    left_out, _ = forward(X, P, *given, key=Key(1, 1))
    said, _ = forward(X, P, *given, **explicit, key=None)
    np.testing.assert_array_equal(left_out, said)


def test_heads_are_neighbouring_channels():
    q, k, v = split_heads(np.arange(2 * 5 * 18.0).reshape(2, 5, 18), 3, 2)
    assert q.shape == k.shape == v.shape == (2, 2, 5, 3)
    assert q[0, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert k[0, :, 0].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert v[1, 1, 4].tolist() == [90 + 4 * 18 + 15, 90 + 4 * 18 + 16, 90 + 4 * 18 + 17]


def test_merging_undoes_splitting():
    x = np.random.default_rng(0).standard_normal((2, 5, 18))
    np.testing.assert_array_equal(merge_heads(*split_heads(x, 3, 2)), x)
    np.testing.assert_array_equal(merge_heads(*split_heads(x, 1, 3)), x)
