"""The tokens that sampling keeps, against the warpers of transformers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.models.sampling import penalized, probabilities

ROWS = st.lists(st.integers(-3, 3), min_size=2, max_size=12)          # many are equal


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_tokens_that_transformers_keeps_are_kept(torch, transformers, dtype):
    @given(ROWS, st.sampled_from([0.5, 1.0, 1.7]), st.none() | st.integers(1, 14),
           st.none() | st.floats(0.01, 0.99), st.none() | st.floats(0.01, 0.99),
           st.sampled_from([1.0, 1.3, 0.8]), st.sets(st.integers(0, 11)))
    def check(row, temperature, top_k, top_p, min_p, penalty, said):
        logits = np.array([row]).astype(dtype)
        said = [i for i in said if i < len(row)] or [0]
        seen = np.isin(np.arange(len(row)), said)[None]
        ours = probabilities(penalized(logits, seen, penalty), temperature, top_k, top_p, min_p)
        scores = transformers.RepetitionPenaltyLogitsProcessor(penalty)(
            torch.tensor([said]), torch.tensor(logits))
        scores = transformers.TemperatureLogitsWarper(temperature)(None, scores)
        if top_k is not None:
            scores = transformers.TopKLogitsWarper(top_k)(None, scores)
        if top_p is not None:
            scores = transformers.TopPLogitsWarper(top_p)(None, scores)
        if min_p is not None:
            scores = transformers.MinPLogitsWarper(min_p)(None, scores)
        np.testing.assert_allclose(ours, scores.softmax(-1).numpy(), rtol=1e-5)

    check()
