"""Tokens and losses of texts, against transformers."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt import GPT, GPTConfig
from npgpt.__main__ import main
from npgpt.durable import SUMS
from npgpt.text.bpe import END, BPETokenizer
from npgpt.text.characters import CharTokenizer
from npgpt.text.tokenizer import load_tokenizer
from npgpt.training.perplexity import whole_loss
from tests.yardsticks.test_transformers_files import HARD_TEXTS

TEXTS = [*HARD_TEXTS, f"a{END}b {END} {END}{END}\n", "def f(x):\n\treturn  x ** 2   # ümlaut\r\n",
         "a   b    c\n\n\n   d\t\t\te", "e\u0301\u0301 n\u0303 \u0915\u094d\u0937",
         "1234567 3.1415",
         "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd \U0001f1e9\U0001f1ea"]
TRAINED = "\n".join(TEXTS) * 3 + "The quick brown fox's dens; it's 1999, isn't it? " * 9
vocabularies = pytest.mark.parametrize("kind", ["trained", "pair", "GPT-2's"])


@pytest.fixture
def folder(tmp_path):
    """-> function: kind of vocabulary -> a directory with a tokenizer. GPT-2's own is in the
    directory that NPGPT_GPT2_VOCABULARY names: encoder.json and vocab.bpe."""
    def make(kind):
        if kind == "GPT-2's":
            source = os.environ.get("NPGPT_GPT2_VOCABULARY")
            if source is None:
                pytest.skip("GPT-2's vocabulary is not here: set NPGPT_GPT2_VOCABULARY")
            shutil.copy(Path(source, "encoder.json"), tmp_path / "vocab.json")
            shutil.copy(Path(source, "vocab.bpe"), tmp_path / "merges.txt")
            return tmp_path
        BPETokenizer.train([TRAINED], 500).save(tmp_path)
        if kind == "pair":
            found = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
            (tmp_path / "tokenizer.json").unlink()
            (tmp_path / "tokenizer_config.json").unlink()
            (tmp_path / "vocab.json").write_text(json.dumps(found["vocab"]))
            (tmp_path / "merges.txt").write_text(
                "#version: 0.2\n" + "\n".join(map(" ".join, found["merges"])), encoding="utf-8")
        return tmp_path
    return make


@vocabularies
def test_tokens_are_those_of_transformers(kind, folder, transformers):
    """Of the same directory, and of one that npgpt has written from it."""
    path = folder(kind)
    ours = load_tokenizer(path)
    theirs = [transformers.GPT2TokenizerFast.from_pretrained(path)]
    (path / "again").mkdir()
    ours.save(path / "again")
    theirs.append(transformers.AutoTokenizer.from_pretrained(path / "again"))
    for other in theirs:
        for text in TEXTS:
            ids = ours.encode(text).tolist()
            assert ids == other.encode(text, add_special_tokens=False), text
            assert ours.decode(ids) == other.decode(ids, clean_up_tokenization_spaces=False)
        assert other.eos_token_id == ours.end

    @given(st.lists(st.text(max_size=9) | st.sampled_from(["\r\n", "  ", "\u0301", END, "'s", "e"]),
                    max_size=20).map("".join))
    def check(text):
        assert ours.encode(text).tolist() == theirs[1].encode(text, add_special_tokens=False)

    check()


def test_characters_have_the_same_ids_in_transformers(tmp_path, transformers):
    text = "".join(TEXTS)
    ours = CharTokenizer(text)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text).tolist()


@pytest.mark.parametrize("stride", [1, 5, 8, 15])
@pytest.mark.parametrize("n", [2, 9, 16, 17, 24, 70])
def test_loss_over_a_text_is_that_of_transformers(n, stride, tmp_path, torch, transformers):
    """In the windows of Hugging Face's guide; each counts by the number of its predictions."""
    tokenizer = CharTokenizer("abcdefgh")
    gpt = GPT(GPTConfig(8, block_size=16, n_layer=2, n_head=2, n_embd=16), dtype="float64")
    random = np.random.default_rng(0)
    gpt.params.flat[...] = random.standard_normal(gpt.params.flat.size) * 0.3
    gpt.save_pretrained(tmp_path / "model")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model").double().eval()
    ids = random.integers(8, size=n)
    nats, count, before = 0.0, 0, 0
    for begin in range(0, n, stride):
        end = min(begin + 16, n)
        tokens = torch.tensor(ids[None, begin:end])
        targets = tokens.clone()
        targets[:, :-(end - before)] = -100
        with torch.no_grad():
            loss = float(model(tokens, labels=targets).loss)
        predicted = int((targets[:, 1:] != -100).sum())
        nats, count, before = nats + loss * predicted, count + predicted, end
        if end == n:
            break
    found = whole_loss(gpt, tokenizer, ids, stride)
    assert found.tokens == count == n - 1 == found.bytes
    np.testing.assert_allclose(found.loss, nats / count, rtol=1e-5)


def test_evaluation_and_writing_use_a_directory_of_transformers(
        tmp_path, capsys, monkeypatch, torch, transformers):
    """Written by transformers alone, but for the text."""
    monkeypatch.chdir(tmp_path)
    BPETokenizer.train([TRAINED], 400).save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=len(theirs), n_positions=32, n_layer=1, n_head=2, n_embd=16))
    model.save_pretrained("model")
    theirs.save_pretrained("model")
    (tmp_path / "text.txt").write_text(TRAINED[:900], encoding="utf-8", newline="")
    assert main(["eval", "--model=model", "--data=text.txt", "--json", "--stride=31"]) == 0
    found = json.loads(capsys.readouterr().out)
    ids = torch.tensor([theirs.encode(TRAINED[:900])])
    assert found["tokens"] == ids.shape[1] - 1
    with torch.no_grad():
        first = float(model(ids[:, :32], labels=ids[:, :32]).loss)
    assert abs(found["loss"] - first) < 0.2
    assert SUMS not in os.listdir("model")
