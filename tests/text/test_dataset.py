import numpy as np
import pytest

from npgpt import GPT, GPTConfig, UserError
from npgpt.backend import get_device
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource

CPU = get_device("cpu")
ALPHABET = "".join(chr(ord("a") + i % 26) for i in range(1000))
FIRST_TOKENS = [20, 17, 19]        # of three windows, as in the first version


def dataset(text, block_size=8):
    return Dataset(TokenSource.from_text(text), block_size, CPU)


def test_dataset_is_on_the_cpu_with_the_tokenizer_of_its_source():
    source = TokenSource.from_text(ALPHABET)
    data = Dataset(source, 8)
    assert data.device is get_device("cpu") and data.tokenizer is source.tokenizer


def test_targets_are_the_tokens_one_position_later():
    d = dataset(ALPHABET)
    idx, targets = d.batch(seed=1, step=0, rows=50)
    assert idx.shape == targets.shape == (50, 8)
    np.testing.assert_array_equal(idx[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal((idx + 1) % 26, targets)


def test_batch_is_a_function_of_seed_and_step():
    d = dataset(ALPHABET)
    first = d.batch(1, 5, 16)[0]
    np.testing.assert_array_equal(first, d.batch(1, 5, 16)[0])
    assert not np.array_equal(first, d.batch(1, 6, 16)[0])
    assert not np.array_equal(first, d.batch(2, 5, 16)[0])
    np.testing.assert_array_equal(first[4:9], d.batch(1, 5, 16, 4, 9)[0])


def test_batches_of_a_seed_and_step_are_the_same_in_every_version():
    """Otherwise a run resumed by a newer npgpt would differ from the uninterrupted one."""
    idx, targets = dataset(ALPHABET).batch(seed=1337, step=7, rows=3)
    assert idx[:, 0].tolist() == FIRST_TOKENS and idx.dtype == targets.dtype == np.uint8


def test_batches_of_all_seeds_and_steps_differ():
    """No stream of batches meets another: neither by a sum of seed and step, nor by NumPy's reading
    of [2**32, 0] as [0, 1]."""
    d = dataset("".join(map(chr, range(100, 1100))))       # all characters distinct: row = offset
    batches = {tuple(d.batch(seed, step, 6)[0][:, 0])
               for seed in (*range(12), 1337, 2**32, 2**63 - 1) for step in range(60)}
    assert len(batches) == 15 * 60


@pytest.mark.parametrize(("seed", "words"), [(3, [3, 9]), (5 * 2**32 + 3, [3, 9, 5])])
def test_batch_has_the_windows_at_random_offsets(seed, words):
    """Computed again, with slices."""
    text = "".join(map(chr, range(100, 1100)))
    idx, targets = dataset(text, block_size=5).batch(seed, step=9, rows=8)
    offsets = np.random.default_rng(words).integers(0, 900 - 5, size=8)
    assert idx.tolist() == [list(range(at, at + 5)) for at in offsets]
    assert targets.tolist() == [list(range(at + 1, at + 6)) for at in offsets]


def test_every_window_of_the_training_split_is_used_about_equally_often():
    d = dataset("".join(map(chr, range(100, 200))))        # 90 tokens in 82 windows
    idx, _ = d.batch(0, 0, 82 * 400)
    counts = np.bincount(idx[:, 0], minlength=82)
    assert len(counts) == 82 and counts.min() > 300 and counts.max() < 500


def test_batches_cover_the_first_and_last_token_and_stay_inside():
    d = dataset("".join(map(chr, range(100, 200))))       # all characters distinct
    idx, targets = d.batch(0, 0, 20_000)
    assert idx.min() == 0 and targets.max() == 89


def test_windows_are_consecutive():
    d = dataset(ALPHABET)
    idx, targets = d.windows(d.val, d.offsets(d.val))
    np.testing.assert_array_equal(idx.ravel(), d.val[:96])
    np.testing.assert_array_equal(targets.ravel(), d.val[1:97])


def test_windows_of_the_splits_share_no_token():
    d = dataset("".join(map(chr, range(100, 1100))))
    train, val = (np.unique(d.windows(split, d.offsets(split))) for split in (d.train, d.val))
    assert train.max() < val.min() == 900
    assert d.batch(0, 0, 10_000)[1].max() == 899


@pytest.mark.parametrize("length", [90, 95, 97, 98, 99])
def test_windows_end_with_the_last_whole_one(length):
    """Windows of 8 tokens and one more, in the last tenth."""
    d = dataset("a" * (length * 10))
    starts = d.offsets(d.val)
    assert starts[-1] + 9 <= len(d.val) < starts[-1] + 8 + 9
    assert starts.tolist() == list(range(0, starts[-1] + 1, 8))


def test_windows_are_evenly_spaced():
    d = dataset(ALPHABET)
    some = d.offsets(d.train, 10)
    assert len(set(some)) == 10 and some[0] == 0 and some[-1] == d.offsets(d.train)[-1]
    assert set(some) <= set(d.offsets(d.train))
    assert len(d.offsets(d.train, 10**6)) == len(d.offsets(d.train))


@pytest.mark.parametrize(("length", "split"), [
    (8, "training"), (80, "validation"), (1, "training"),
])
def test_text_too_short_for_a_window_is_refused(length, split):
    with pytest.raises(UserError, match=f"its {split} split has"):
        dataset("a" * length)


def test_one_window_is_enough():
    d = dataset("a" * 90)
    assert d.offsets(d.val).tolist() == [0]


@pytest.mark.parametrize("V", [50, 256, 300])
def test_model_computes_the_same_with_small_ids_as_with_int64(V):
    d = dataset("".join(map(chr, range(100, 100 + V))) * 4)
    idx, targets = d.batch(0, 0, 20)
    assert idx.itemsize == targets.itemsize == (1 if V <= 256 else 2)
    for head in ({"tie_weights": True}, {"tie_weights": False}):
        model = GPT(GPTConfig(vocab_size=V, block_size=8, n_layer=1, n_head=2, n_embd=8,
                              **head), seed=0)
        loss, grads = model.loss_and_grads(idx, targets)
        wide_loss, wide = model.loss_and_grads(idx.astype(np.int64), targets.astype(np.int64))
        assert loss == wide_loss
        np.testing.assert_array_equal(grads.flat, wide.flat)


def test_message_names_the_option_that_is_too_large():
    with pytest.raises(UserError) as error:
        dataset("a" * 80)
    assert error.value.message == ("the text is too short: its validation split has 8 tokens, and "
                                   "a `block_size` of 8 needs at least 9")


@pytest.mark.parametrize(("length", "n"), [(9, 1), (16, 1), (17, 2), (24, 2), (25, 3)])
def test_windows_of_a_split_are_counted(length, n):
    d = dataset(ALPHABET)
    assert d.count(np.zeros(length)) == n
    assert d.offsets(np.zeros(length), 1).dtype.kind == "i"
