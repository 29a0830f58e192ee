"""`npgpt eval`. tests/yardsticks compares the loss with transformers'."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import train as train_script
from npgpt import GPT, GPTConfig
from npgpt.__main__ import main
from npgpt.durable import SUMS
from npgpt.errors import RunError
from npgpt.text.bpe import END, BPETokenizer
from npgpt.text.characters import CharTokenizer
from npgpt.training import perplexity
from npgpt.training.perplexity import batches, whole_loss
from tests.commands.tiny import TEXT, TINY

ABC = CharTokenizer("abé")


def gpt(block_size):
    return GPT(GPTConfig(3, block_size=block_size, n_layer=1, n_head=1, n_embd=4), dtype="float64")


@given(st.integers(2, 60), st.integers(2, 9), st.integers(1, 8), st.integers(1, 5))
def test_every_token_but_the_first_is_predicted_once(n, length, stride, rows):
    stride = min(stride, length - 1)
    predicted = []
    for windows, new in batches(n, length, stride, rows):
        assert 1 <= len(windows) <= rows
        for window in windows:
            tokens = list(range(n)[window])
            assert 2 <= len(tokens) <= length and len(tokens) in (length, n - window.start)
            predicted += tokens[-new:]
    assert predicted == list(range(1, n))


def test_batches_are_of_whole_windows_but_for_the_rest():
    whole = [([slice(0, 4)], 3), ([slice(3, 7), slice(6, 10)], 3)]
    assert list(batches(10, 4, 3, rows=2)) == whole
    assert list(batches(12, 4, 3, rows=2)) == [*whole, ([slice(9, 12)], 2)]
    assert list(batches(3, 4, 3, rows=2)) == [([slice(0, 3)], 2)]


def test_window_whose_logits_are_many_is_a_batch_of_its_own(monkeypatch):
    monkeypatch.setattr(perplexity, "LOGITS", 1)
    seen = []
    whole_loss(gpt(4), ABC, np.zeros(10, np.uint8), 3, lambda done, total: seen.append(done))
    assert seen == [3, 6, 9]


@given(st.integers(2, 40), st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
def test_loss_is_that_of_one_window_at_a_time(n, block_size, stride, seed):
    model, ids = gpt(block_size), np.random.default_rng(seed).integers(3, size=n)
    stride = min(stride, max(1, block_size - 1))
    length = max(2, block_size)
    begin, before, nats = 0, 1, 0.0
    while before < n:
        end = min(begin + length, n)
        logits = model.logits(ids[None, begin:end - 1])[0]
        for at in range(before, end):
            row = logits[at - 1 - begin]
            nats += math.log(np.exp(row).sum()) - row[ids[at]]
        begin, before = begin + stride, end
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perplexity, "LOGITS", 3 * length * 2)
        found = whole_loss(model, ABC, ids.astype(np.uint8), stride,
                           lambda done, total: seen.append((done, total)))
    assert found.loss == pytest.approx(nats / (n - 1), rel=1e-12)
    assert found.tokens == n - 1 and found.bytes == sum(1 + (i == 2) for i in ids[1:])
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes)
    assert seen[-1] == (n - 1, n - 1) and seen == sorted(seen)


def test_loss_that_is_not_finite_is_an_error():
    model = gpt(4)
    model.params.flat[...] = np.nan
    with pytest.raises(RunError, match="not finite"):
        whole_loss(model, ABC, np.array([1, 2, 0]), 2)


def test_perplexity_of_a_huge_loss_is_infinite():
    assert perplexity.Result(1000.0, 1, 1).perplexity == math.inf


def test_command_prints_text_or_json(train, run):
    train("--max-iters=5")
    result = run(main, "eval", "--data=fox.txt")
    assert (result.status, result.err) == (0, "")
    found = json.loads(run(main, "eval", "--data=fox.txt", "--json", "--stride=8").out)
    model = GPT.from_pretrained("out/laptop/checkpoint-5")
    tokenizer = CharTokenizer(TEXT)
    expected = whole_loss(model, tokenizer, tokenizer.encode(TEXT), 8)
    assert found == {
        "model": "out/laptop/checkpoint-5", "data": "fox.txt", "loss": expected.loss,
        "perplexity": expected.perplexity, "bits_per_byte": expected.bits_per_byte,
        "tokens": len(TEXT) - 1, "bytes": len(TEXT) - 1, "context": 16, "stride": 8}
    assert result.out == (
        "model       out/laptop/checkpoint-5\n"
        "data        fox.txt: 1,760 characters, 28 of them distinct\n"
        f"loss        {expected.loss:.4f} nats per token, over 1,759 tokens in windows of 16 with "
        "a stride of 8\n"
        f"perplexity  {expected.perplexity:.4f}\n"
        f"bits/byte   {expected.bits_per_byte:.4f}, over 1,759 bytes\n")


@pytest.mark.parametrize(("words", "message"), [
    ([], "--data is missing; it takes a text, a directory of texts or a token file"),
    (["--data=nowhere"], "there is no file 'nowhere'"),
    (["--data=other.txt"], "'é', character 4 of the text other.txt, is not among the 28"),
    (["--data=fox.txt", "--stride=16"], "--stride must be at most 15, because a window has 16"),
    (["--data=fox.txt", "--stride=0"], "--stride must be at least 1, got 0"),
    (["--data=one.txt"], "the text one.txt is too short: at least 2 tokens are needed"),
    (["--data=fox.txt", "--model=nowhere"], "there is no directory nowhere; --model takes that of"),
    (["--data=fox.txt", "--strid=1"], "unknown option --strid; did you mean --stride?"),
])
def test_invalid_request_gives_one_line_and_status_2(words, message, train, run, home):
    train("--max-iters=1")
    (home / "other.txt").write_text("café")
    (home / "one.txt").write_text("a")
    result = run(main, "eval", *words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"npgpt eval: {message}") and result.err.count("\n") == 1


def test_number_that_json_lacks_is_null(run, home):
    """A text of special tokens alone has no bytes."""
    tokenizer = BPETokenizer.train(["ab"], 257)
    GPT(GPTConfig(257, block_size=8, n_layer=1, n_head=1, n_embd=4)).save_pretrained("model")
    (home / "model" / SUMS).unlink()
    tokenizer.save(home / "model")
    (home / "ends.txt").write_text(END * 5)
    found = json.loads(run(main, "eval", "--model=model", "--data=ends.txt", "--json").out)
    assert found["bits_per_byte"] is None and found["bytes"] == 0 and found["tokens"] == 4


def test_bits_per_byte_of_training_count_the_bytes_of_the_tokens(run, home):
    """Characters of two bytes, and byte pairs."""
    (home / "text.txt").write_text("é" * 900 + "aé" * 500)
    assert run(train_script.main, "--data=text.txt", *TINY[1:], "--max-iters=1",
               "--out-dir=run").status == 0
    lines = [json.loads(line) for line in (home / "run/metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    # The validation split is "aé" again and again: 1.5 bytes a character.
    assert first["val_bits_per_byte"] == pytest.approx(first["val_loss"] / math.log(2) / 1.5)
    assert last["bits_per_byte"] == pytest.approx(last["whole_val_loss"] / math.log(2) / 1.5)
    BPETokenizer.train(["aéaé"], 258).save(home)
    result = run(train_script.main, "--data=text.txt", "--tokenizer=.", *TINY[1:], "--max-iters=1",
                 "--out-dir=bpe")
    assert result.status == 0
    assert re.search(r"data +text.txt: [\d,]+ tokens, 1\.\d\d bytes per token", result.out)


def test_all_windows_or_some_in_the_last_evaluation(train):
    few = train("--max-iters=1", "--final-windows=2")
    assert "over 2 of the split's 10 windows" in few
    assert "over the whole split" in train("--max-iters=1", "--final-windows=0")
