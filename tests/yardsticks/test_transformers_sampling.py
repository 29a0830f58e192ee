"""Sampling against the logits processors of transformers."""

import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import GPT
from npgpt.models.sampling import penalized, probabilities

ROWS = st.lists(st.integers(-3, 3), min_size=2, max_size=12)          # many are equal


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distribution_is_that_of_transformers(torch, transformers, dtype):
    """The processors and their order are those that its `generate` would use."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=4, n_positions=4, n_embd=4, n_layer=1, n_head=1))

    @given(ROWS, st.data(), st.sampled_from([0.5, 1.0, 1.7]), st.none() | st.integers(1, 14),
           st.none() | st.floats(0.01, 0.99), st.none() | st.floats(0.01, 1.0),
           st.sampled_from([1.0, 1.3, 0.7]))
    def check(row, data, temperature, top_k, top_p, min_p, penalty):
        logits = np.array([row, row[::-1]]).astype(dtype)
        before = np.array(data.draw(st.lists(
            st.tuples(*[st.integers(0, len(row) - 1)] * 2), min_size=1, max_size=5))).T
        seen = np.zeros(logits.shape, bool)
        np.put_along_axis(seen, before, True, 1)
        ours = probabilities(penalized(logits, seen, penalty), temperature, top_k, top_p, min_p)
        config = transformers.GenerationConfig(
            do_sample=True, temperature=temperature, top_k=top_k or 0,
            top_p=1.0 if top_p is None else top_p, min_p=min_p, repetition_penalty=penalty)
        config, _ = model._prepare_generation_config(config)
        process = model._get_logits_processor(config, input_ids_seq_length=before.shape[1])
        theirs = process(torch.tensor(before), torch.tensor(logits))
        np.testing.assert_allclose(ours, theirs.softmax(-1).numpy(), rtol=1e-5)

    check()


def test_greedy_text_with_a_penalty_is_that_of_transformers(torch, transformers):
    """The prompt counts, and a token counts once, however often it has seen."""
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=30, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=None, eos_token_id=None, pad_token_id=0)).eval()
    prompt = [[1, 2, 3, 1, 2], [4, 4, 5, 6, 4]]
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = GPT.from_pretrained(folder)
    for penalty in (1.0, 1.5, 0.8):
        expected = theirs.generate(
            torch.tensor(prompt), attention_mask=torch.ones(2, 5, dtype=torch.long),
            do_sample=False, max_new_tokens=40, repetition_penalty=penalty)
        found = ours.generate(prompt, 40, temperature=0, repetition_penalty=penalty)
        assert found.tolist() == expected[:, 5:].tolist()
