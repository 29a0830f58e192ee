"""sample.py with a byte-level BPE: characters of several tokens, the end of a text, stop texts,
several texts, long prompts, probabilities."""

import codecs
import io
import re
import sys

import numpy as np
import pytest

import sample as sample_script
from npgpt import GPT, GPTConfig
from npgpt.cli.shades import Shades
from npgpt.durable import SUMS
from npgpt.models.sampling import probabilities
from npgpt.text.bpe import BPETokenizer

BOOK = "Der Bär grüßt 日本 \U0001f600 naïve. "
ESCAPE = re.compile(r"\x1b\[([\d;]+)m(.*?)\x1b\[0m", re.DOTALL)
RULE = "\n" + "-" * 40 + "\n"
WORDS = ["--model=words", "--max-new-tokens=60", "--seed=3"]


@pytest.fixture
def tokenizer():
    return BPETokenizer.train([BOOK.encode("ascii", "ignore").decode() * 9], 262)


@pytest.fixture
def model(home, tokenizer):
    """A model that mostly follows the book from token to token, in a model directory with its
    tokenizer. The characters of the book beyond ASCII are two to four tokens."""
    V = tokenizer.vocab_size
    model = GPT(GPTConfig(vocab_size=V, block_size=16, n_layer=1, n_head=2, n_embd=V, n_inner=1,
                          tie_weights=False), seed=5)
    model.params["wte.weight"][...] = np.eye(V)
    head, ids = model.params["lm_head.weight"], tokenizer.encode(BOOK)
    head[ids, np.roll(ids, 1)] = head[tokenizer.end, tokenizer.encode(".")] = 9 / V**0.5
    model.save_pretrained(home / "words")
    tokenizer.save(home / "words")
    (home / "words" / SUMS).unlink()                          # as in a directory from elsewhere
    return model


@pytest.fixture
def sample(run, model):
    """-> function: words -> stdout, stderr of sample.py that succeeds."""
    def call(*words):
        result = run(sample_script.main, *WORDS, *words)
        assert result.status == 0
        return result.out, result.err
    return call


def texts_of(model, tokenizer, prompt, rows, **options):
    """The texts that the model continues a prompt with, up to the end-of-text token."""
    idx = tokenizer.encode(prompt) if prompt else tokenizer.start
    found = model.generate([idx] * rows, 60, temperature=0.8, seed=3, end=tokenizer.end, **options)
    tokens = [row[:row.index(tokenizer.end)] if tokenizer.end in row else row
              for row in found.tolist()]
    return [tokenizer.decode(row) for row in tokens], sum(map(len, tokens))


@pytest.mark.parametrize("prompt", ["", "Der B"])
def test_texts_are_rows_of_one_batch_and_end_at_the_end_of_text(
        sample, model, tokenizer, monkeypatch, prompt):
    sizes, logits = [], GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, idx, *args, **kw: sizes.append(len(idx)) or
                        logits(self, idx, *args, **kw))
    out, err = sample("--num-samples=4", *([f"--prompt={prompt}"] if prompt else []))
    monkeypatch.undo()
    texts, n_tokens = texts_of(model, tokenizer, prompt, 4)
    assert out == RULE.join(prompt + text for text in texts) + "\n"
    assert set(sizes) == {4} and len(set(map(len, texts))) == 4
    assert 0 < n_tokens < 4 * 60                              # some have ended before
    assert re.fullmatch(rf"words, [\d,]+ parameters\n{n_tokens} tokens, [\d,]+ tokens/s\n", err)


def test_options_of_sampling_are_used(sample, model, tokenizer):
    options = {"min_p": 0.2, "repetition_penalty": 1.3, "top_p": 0.9}
    out, _ = sample("--min-p=0.2", "--repetition-penalty=1.3", "--top-p=0.9")
    assert out == texts_of(model, tokenizer, "", 1, **options)[0][0] + "\n"
    assert len({sample(word)[0] for word in ("--top-k=99", "--min-p=0.2",
                                             "--repetition-penalty=1.3")}) == 3


@pytest.mark.parametrize("stops", [["Bär"], ["ü", "日本", "ï"], [" \U0001f600"], ["nowhere"]])
def test_text_is_cut_before_the_stop_text(sample, model, tokenizer, stops):
    texts, _ = texts_of(model, tokenizer, "Der", 9)
    expected = [text[:min((text.find(stop) for stop in stops if stop in text), default=len(text))]
                for text in texts]
    assert (expected == texts) == (stops == ["nowhere"])
    out, _ = sample("--prompt=Der", "--num-samples=9", *(f"--stop={stop}" for stop in stops))
    assert out == RULE.join("Der" + text for text in expected) + "\n"


def test_generation_ends_with_the_last_text(sample, monkeypatch):
    """Not after all tokens: every text of this model soon has a blank."""
    steps, logits = [], GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, *args, **kw: steps.append(1) or logits(
        self, *args, **kw))
    _, err = sample("--max-new-tokens=100000", "--num-samples=3", "--stop= ")
    assert len(steps) < 200 and int(re.search(r"(\d+) tokens,", err)[1]) <= 3 * len(steps)


class Pieces(io.StringIO):
    """Keeps what is written between flushes."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def flush(self):
        self.pieces.append(self.getvalue())
        self.seek(0)
        self.truncate()


def test_character_is_shown_whole_as_soon_as_it_is(sample, model, tokenizer, monkeypatch):
    options = ["--prompt=x", "--stop=@"]
    expected, _ = sample(*options)
    output = Pieces()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        sample(*options)
    ids = model.generate([tokenizer.encode("x")], 60, 0.8, seed=3, end=tokenizer.end)[0]
    assert "".join(output.pieces) == expected and len(output.pieces) > len(ids) > 20
    read, waits = b"", 0
    for n, token in enumerate(ids[ids != tokenizer.end], 2):       # the first piece is the prompt
        read += tokenizer.token_bytes(token)
        whole, n_bytes = codecs.utf_8_decode(read, "replace", False)
        assert "".join(output.pieces[:n]) == "x" + whole
        waits += n_bytes < len(read)
    assert waits > 3


def test_long_prompt_is_noted_and_continued_from_its_end(sample, model, tokenizer, home):
    prompt = BOOK * 3
    n = len(tokenizer.encode(prompt))
    (home / "prompt.txt").write_text(prompt + "\n", encoding="utf-8")
    out, err = sample("--prompt-file=prompt.txt")
    assert out == prompt + texts_of(model, tokenizer, prompt, 1)[0][0] + "\n"
    assert f"\nnote: the prompt has {n} tokens; the model reads the last 16 of them\n" in err
    fitting = "." * 16
    assert len(tokenizer.encode(fitting)) == 16
    assert "note" not in sample(f"--prompt={fitting}")[1]


def test_prompt_is_read_from_standard_input(sample, monkeypatch):
    expected, _ = sample("--prompt=Der Bär")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Der Bär\n".encode())))
    assert sample("--prompt=-")[0] == expected


def test_token_has_the_colour_of_its_probability(sample, model, tokenizer, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    colours = [ESCAPE.match(Shades().paint("x", p))[1] for p in (0.005, 0.05, 0.2, 0.5, 0.9)]
    limits = dict(zip(colours, [(0, 0.01), (0.01, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 1.01)]))
    assert len(limits) == 5
    out, err = sample("--show-probs", "--prompt=Der ", "--num-samples=2", "--temperature=1.5")
    assert "probability:" in err
    rows = model.generate([tokenizer.encode("Der ")] * 2, 60, temperature=1.5, seed=3,
                          end=tokenizer.end).tolist()
    seen = set()
    for text, row in zip(out.removesuffix("\n").split(RULE), rows):
        assert text.startswith("Der ")
        shown = ESCAPE.findall(text)
        tokens, read = [token for token in row if token != tokenizer.end], b""
        ids = tokenizer.encode("Der ").tolist()
        for token in tokens:
            p = probabilities(model.logits([ids[-16:]])[:, -1])[0, token]
            ids.append(token)
            before = codecs.utf_8_decode(read, "replace", False)[0]
            read += tokenizer.token_bytes(token)
            added = codecs.utf_8_decode(read, "replace", False)[0].removeprefix(before)
            if added:
                colour, characters = shown.pop(0)
                least, limit = limits[colour]
                assert characters == added and least <= p < limit
                seen.add(least)
        assert "".join(characters for _, characters in shown).strip("\ufffd") == ""
    assert len(seen) > 2


def test_probabilities_that_cannot_be_shown_are_noted(sample):
    plain, _ = sample()
    out, err = sample("--show-probs")
    assert out == plain and "\nnote: the output is not a terminal with colours, " in err


def test_model_of_another_vocabulary_is_refused(run, model, home):
    BPETokenizer.train([BOOK], 258).save(home / "words")
    result = run(sample_script.main, *WORDS)
    assert (result.status, result.out) == (2, "")
    assert result.err == ("sample.py: the tokenizer and the model in words do not fit each other: "
                          "258 and 262 tokens\n")
