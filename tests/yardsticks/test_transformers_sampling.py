"""The tokens that sampling keeps, against the warpers of transformers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.models.generate import probabilities

ROWS = st.lists(st.integers(-3, 3), min_size=2, max_size=12)          # many are equal


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_top_k_and_top_p_keep_the_tokens_that_transformers_keeps(torch, transformers, dtype):
    @given(ROWS, st.sampled_from([0.5, 1.0, 1.7]), st.none() | st.integers(1, 14),
           st.none() | st.floats(0.01, 0.99))
    def check(row, temperature, top_k, top_p):
        logits = np.array([row]).astype(dtype)
        ours = probabilities(logits, temperature, top_k, top_p)
        scores = transformers.TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
        if top_k is not None:
            scores = transformers.TopKLogitsWarper(top_k)(None, scores)
        if top_p is not None:
            scores = transformers.TopPLogitsWarper(top_p)(None, scores)
        np.testing.assert_allclose(ours, scores.softmax(-1).numpy(), rtol=1e-5)

    check()
