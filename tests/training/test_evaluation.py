"""Losses and samples during training, against the reference trainer's."""

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.parallel import Single
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training.config import TrainingConfig
from npgpt.training.evaluation import evaluate, mean_loss, sample
from tests.training import reference

TEXT = "Is this a dagger which I see before me, the handle toward my hand?\n" * 30
ALPHABET = sorted(set(TEXT))
IDS = np.array([ALPHABET.index(character) for character in TEXT])
BORDER = len(IDS) * 9 // 10


@pytest.fixture(scope="module")
def model():
    """With dropout, which evaluation must not apply, and weights at which text is not uniform."""
    config = GPTConfig(vocab_size=len(ALPHABET), block_size=8, n_layer=2, n_head=2, n_embd=16,
                       dropout=0.5)
    model = GPT(config, seed=4, dtype="float64")
    model.params.flat[...] *= 5
    return model


@pytest.fixture
def data():
    return Dataset(TokenSource.from_text(TEXT), 8)


@pytest.mark.parametrize("seed", [0, 1337])
def test_sample_has_200_tokens_and_follows_the_models_logits(model, data, seed):
    expected = reference.sample(model, ALPHABET.index("\n"), 200, seed)
    found = sample(model, data, seed)
    assert found == "".join(ALPHABET[i] for i in expected)
    assert len(set(found)) > 10 and found != sample(model, data, seed + 1)


def test_sample_of_a_text_without_line_breaks_starts_from_its_first_character(model):
    characters = "".join(ALPHABET).replace("\n", "~")
    data = Dataset(TokenSource.from_text(characters * 10), 8)
    expected = reference.sample(model, 0, 200, seed=3)
    assert sample(model, data, 3) == "".join(sorted(characters)[i] for i in expected)


@pytest.mark.parametrize(("batch_size", "eval_iters"), [(1, 1), (1, 2), (3, 4), (7, 2), (100, 9)])
def test_evaluation_is_the_mean_over_windows_spread_over_each_split(model, data, batch_size,
                                                                     eval_iters):
    c = TrainingConfig(batch_size=batch_size, eval_iters=eval_iters)
    windows = batch_size * eval_iters
    expected = [reference.loss_of(model, split, windows) for split in (IDS[:BORDER], IDS[BORDER:])]
    np.testing.assert_allclose(evaluate(model, data, c, Single()), expected, rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, 10**4])
def test_loss_over_the_whole_split_counts_every_window_once(model, data, batch_size):
    c = TrainingConfig(batch_size=batch_size)
    found = mean_loss(model, data, data.val, c, Single())
    assert found == pytest.approx(reference.loss_of(model, IDS[BORDER:], None), rel=1e-12)


def test_evaluation_leaves_model_and_data_unchanged(model, data):
    before = model.params.flat.copy(), data.train.copy(), data.val.copy()
    c = TrainingConfig(batch_size=3, eval_iters=2)
    first = evaluate(model, data, c, Single())
    sample(model, data, seed=1)
    for array, kept in zip((model.params.flat, data.train, data.val), before):
        np.testing.assert_array_equal(array, kept)
    assert evaluate(model, data, c, Single()) == first


def test_evaluation_takes_no_larger_batches_than_training(model, data, monkeypatch):
    """Memory is estimated for them."""
    rows, loss = [], model.loss

    def counted(idx, targets):
        rows.append(len(idx))
        return loss(idx, targets)

    monkeypatch.setattr(model, "loss", counted)
    mean_loss(model, data, data.val, TrainingConfig(batch_size=4), Single())
    windows = (len(IDS) - BORDER - 1) // 8
    assert rows == [4] * (windows // 4) + [windows % 4] and windows % 4
