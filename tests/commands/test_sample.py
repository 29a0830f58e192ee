"""What `sample.py` prints. tests/models/test_generate.py checks the distribution of tokens."""

import io
import re
import sys

import numpy as np
import pytest

import sample as sample_script
import train as train_script
from npgpt import GPT
from npgpt.durable import SUMS
from tests.commands.tiny import TEXT

ALPHABET = sorted(set(TEXT))


@pytest.fixture
def sample(run, train):
    """-> function: words -> what sample.py prints about a run of five steps in out/laptop."""
    train("--max-iters=5")

    def call(*words):
        result = run(sample_script.main, *words)
        assert result.status == 0
        assert re.fullmatch(r"out/laptop/checkpoint-5, 4,016 parameters\n"
                            r"[\d,]+ tokens, [\d,]+ tokens/s\n", result.err)
        return result.out
    return call


def test_samples_continue_the_prompt_and_differ(sample):
    options = ["--prompt", "the qu", "--max-new-tokens=30", "--seed=1", "--top-k=5"]
    first, second = sample(*options, "--num-samples=2").removesuffix("\n").split(
        "\n" + "-" * 40 + "\n")
    assert first.startswith("the qu") and second.startswith("the qu") and first != second
    assert len(first) == len(second) == 36
    assert sample(*options, "--out-dir", "out/laptop") == first + "\n"
    assert sample(*options, "--model", "out/laptop") == first + "\n"
    assert sample(*options, "--model", "out/laptop/checkpoint-5") == first + "\n"
    assert sample(*options, "--seed=2") != first + "\n"


def test_most_likely_text_follows_the_models_logits(sample):
    """Without a prompt it starts from the line break, which is not printed."""
    model = GPT.from_pretrained("out/laptop/checkpoint-5")
    ids = [ALPHABET.index("\n")]
    for _ in range(25):                                  # longer than the context of 16
        ids.append(int(np.argmax(model.logits(np.array([ids[-16:]]))[0, -1])))
    expected = "".join(ALPHABET[i] for i in ids[1:])
    assert sample("--temperature=0", "--max-new-tokens=25") == expected + "\n"


def test_samples_without_a_seed_differ(sample):
    words = ["--max-new-tokens=60", "--num-samples=3"]
    texts = sample(*words).split("-" * 40) + sample(*words).split("-" * 40)
    assert len(set(texts)) == 6


def test_best_checkpoint_of_the_newest_run_is_used(run, train, monkeypatch):
    train("--max-iters=5", "--out-dir=out/b")
    losses = [4.0, 3.0, 2.0, 2.5]                        # before the first step, then every fifth
    monkeypatch.setattr(train_script, "evaluate", lambda *run: (1.0, losses.pop(0)))
    train("--eval-interval=5", "--max-iters=15", "--workers=1", "--out-dir=out/a")
    assert run(sample_script.main, "--max-new-tokens=1").err.startswith("out/a/checkpoint-10, ")
    assert run(sample_script.main, "--out-dir=out/b").err.startswith("out/b/checkpoint-5, ")


def test_tokenizer_of_another_vocabulary_is_refused(run, train, home):
    train("--max-iters=5", "--out-dir=run")
    path = home / "run/checkpoint-5/tokenizer.json"
    path.write_text(re.sub(r',\s*"z": 27', "", path.read_text()))
    path.with_name(SUMS).unlink()
    result = run(sample_script.main, "--out-dir=run")
    assert (result.status, result.out) == (2, "")
    assert result.err == ("sample.py: the tokenizer and the model in run/checkpoint-5 do not fit "
                          "each other: 27 and 28 tokens\n")


def test_help_lists_every_option_with_what_it_takes(run):
    shown = run(sample_script.main, "--help").out
    for option in ("--model PATH ", "--out-dir PATH ", "--stop TEXT ", "--prompt TEXT ",
                   "--prompt-file FILE ", "--min-p X ", "--repetition-penalty X ",
                   "--interactive, ", "--show-probs, ", "--max-new-tokens N ", "--temperature X ",
                   "--top-k N ", "--top-p X ", "--seed N ", "--num-samples N ",
                   "--device {auto,cpu,gpu}", "--dtype {float32,float64,tf32,bfloat16}"):
        assert f"\n  {option}" in shown
    assert "[the newest run in out/]" in " ".join(shown.split()) and "[0.8]" in shown


def test_help_says_what_it_does(run):
    out = run(sample_script.main, "--help").out
    assert "Generate text with a model trained by train.py, or with a GPT-2." in out
    assert "\nthe text:\n" in out


def test_text_appears_token_by_token(sample, monkeypatch):
    """A pipe would collect it in a buffer otherwise."""
    stream = Flushed()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        sample("--max-new-tokens=7", "--seed=1")
    assert len(stream.getvalue()) == 8                   # with the line break at the end
    assert stream.flushed == [1, 2, 3, 4, 5, 6, 7, 8]


class Flushed(io.StringIO):
    """Keeps the lengths at which it was flushed."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        if not self.closed and len(self.getvalue()) not in (0, *self.flushed[-1:]):
            self.flushed.append(len(self.getvalue()))


def test_precision_is_the_devices_unless_given(sample, device, monkeypatch):
    used = []
    original = GPT.from_pretrained.__func__

    def from_pretrained(cls, directory, device, dtype):
        used.append((device.name, dtype))
        return original(cls, directory, device, dtype)

    monkeypatch.setattr(GPT, "from_pretrained", classmethod(from_pretrained))
    sample("--device=gpu", "--max-new-tokens=1")
    sample("--device=gpu", "--dtype=float64", "--max-new-tokens=1")
    assert used == [("gpu", device.default_dtype), ("gpu", "float64")]
    assert device.default_dtype != "float32"
