"""What `sample.py` prints. tests/models/test_generate.py checks the distribution of tokens."""

import io
import re
import sys
from functools import partial

import numpy as np
import pytest
from rich.console import Console
from threadpoolctl import threadpool_info, threadpool_limits

import sample as sample_script
import train as train_script
from npgpt import GPT, GPTConfig
from npgpt.cli import shades
from npgpt.durable import SUMS
from npgpt.models.generate import Step
from npgpt.models.language_model import LanguageModel
from npgpt.text import files
from npgpt.text.bpe import BPETokenizer
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
                            r"(1 token|[\d,]+ tokens), [\d,]+ tokens/s\n", result.err)
        return result.out
    return call


def test_samples_continue_the_prompt_and_differ(sample):
    options = ["--prompt", "the qu", "--max-new-tokens=30", "--seed=1", "--top-k=5"]
    first, second = sample(*options, "--num-samples=2").removesuffix("\n").split(
        "\n" + "-" * 40 + "\n")
    assert first.startswith("the qu") and second.startswith("the qu") and first != second
    assert len(first) == len(second) == 36
    assert sample(*options, "--out-dir", "out/laptop") == first + "\n"
    assert sample(*options, "--seed=2") not in (first + "\n", second + "\n")
    assert sample(*options, "--model", "out/laptop") == first + "\n"
    assert sample(*options, "--out-dir", "out/laptop/checkpoint-5") == first + "\n"


def test_most_likely_text_follows_the_models_logits(sample):
    """Without a prompt it starts from the line break, which is not printed."""
    model = GPT.from_pretrained("out/laptop/checkpoint-5")
    ids = [ALPHABET.index("\n")]
    for _ in range(25):                                  # longer than the context of 16
        ids.append(int(np.argmax(model.logits(np.array([ids[-16:]]))[0, -1])))
    expected = "".join(ALPHABET[i] for i in ids[1:])
    assert sample("--temperature=0", "--max-new-tokens=25") == expected + "\n"


def test_small_model_generates_with_one_thread_of_blas(sample, monkeypatch):
    seen, original = [], sample_script.steps

    def steps(*arguments, **options):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return original(*arguments, **options)

    monkeypatch.setattr(sample_script, "steps", steps)
    with threadpool_limits(2):
        sample("--max-new-tokens=1")
    assert seen and set(seen) == {1}


def test_load_of_the_machine_is_looked_at_after_every_token(sample, monkeypatch):
    looks = []
    monkeypatch.setattr(sample_script.Generating, "look", lambda threads: looks.append(threads))
    sample("--max-new-tokens=7")
    assert len(looks) >= 6                           # after the last one it may be left out


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
    for option in ("--out-dir DIR ", "--model PATH ", "--stop TEXT ", "--min-p X ",
                   "--prompt-file FILE", "--repetition-penalty X", "--prompt TEXT ",
                   "--max-new-tokens N ", "--temperature X ",
                   "--top-k N ", "--top-p X ", "--seed N ", "--num-samples N ",
                   "--device {auto,cpu,gpu}", "--dtype {float32,float64,tf32,bfloat16}"):
        assert f"\n  {option}" in shown
    assert "--out-dir DIR the same as --model --stop" in " ".join(shown.split())
    assert "[the newest run in out/]" in " ".join(shown.split()) and "[0.8]" in shown


def test_help_says_what_it_does(run):
    out = run(sample_script.main, "--help").out
    assert "Generate text with a model trained by train.py, with GPT-2 or with a" in out
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
    original = LanguageModel.from_pretrained.__func__

    def from_pretrained(cls, directory, device, dtype, attention):
        used.append((device.name, dtype, attention))
        return original(cls, directory, device, dtype)

    monkeypatch.setattr(LanguageModel, "from_pretrained", classmethod(from_pretrained))
    sample("--device=gpu", "--max-new-tokens=1")
    sample("--device=gpu", "--dtype=float64", "--max-new-tokens=1")
    assert used == [("gpu", device.default_dtype, "plain"), ("gpu", "float64", "plain")]
    assert device.default_dtype != "float32"


def test_texts_of_one_batch_are_those_of_its_rows(sample):
    words = ["--prompt=fox", "--seed=3", "--max-new-tokens=12"]
    model = GPT.from_pretrained("out/laptop/checkpoint-5")
    ids = np.array([[ALPHABET.index(c) for c in "fox"]] * 3)
    rows = model.generate(ids, 12, temperature=0.8, seed=3)
    expected = ["fox" + "".join(ALPHABET[i] for i in row) for row in rows]
    between = "\n" + "-" * 40 + "\n"
    assert sample(*words, "--num-samples=3") == between.join(expected) + "\n"


def test_prompt_of_a_file_or_of_standard_input(sample, home, monkeypatch):
    expected = sample("--prompt=a\nb", "--seed=1")
    (home / "prompt").write_bytes(b"a\nb\r\n")
    monkeypatch.setattr(files, "BYTES", 2)
    assert sample("--prompt-file=prompt", "--seed=1") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\r\n")))
    assert sample("--prompt=-", "--seed=1") == expected


def test_standard_input_that_is_not_utf_8_is_refused(run, train, monkeypatch):
    train("--max-iters=5")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    result = run(sample_script.main, "--prompt=-")
    assert (result.status, result.out, result.err) == (
        2, "", "sample.py: standard input is not UTF-8 (byte 3 is 0xe9); convert it with: "
        "iconv -f latin1 -t utf-8\n")


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_standard_input_without_a_prompt_is_refused(content, run, train, monkeypatch):
    train("--max-iters=5")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run(sample_script.main, "--prompt=-").err.startswith(
        "sample.py: standard input is empty; without it the text starts from")


def test_speed_is_that_of_the_generation(sample, run, monkeypatch):
    sample("--max-new-tokens=1")
    times = iter([10.0, 12.0])
    monkeypatch.setattr(sample_script.time, "perf_counter", lambda: next(times))
    assert run(sample_script.main, "--max-new-tokens=7").err.endswith("\n7 tokens, 4 tokens/s\n")


def test_several_texts_without_a_prompt(sample):
    first, second = sample("--seed=1", "--num-samples=2", "--max-new-tokens=9")[:-1].split(
        "\n" + "-" * 40 + "\n")
    assert len(first) == len(second) == 9


def test_prompt_appears_before_the_text(sample, monkeypatch):
    stream = Flushed()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        sample("--max-new-tokens=2", "--seed=1", "--prompt=fox")
    assert stream.flushed == [3, 4, 5, 6]


def test_stop_text_ends_the_text(sample):
    words = ["--prompt=fox", "--seed=3", "--max-new-tokens=60"]
    full = sample(*words).removeprefix("fox").removesuffix("\n")
    stop = full[7:9]
    assert sample(*words, "--stop=#", "--stop", stop) == "fox" + full[:full.find(stop)] + "\n"


def test_long_prompt_is_noted(run, train):
    train("--max-iters=5")
    result = run(sample_script.main, "--prompt=" + "fox " * 5, "--max-new-tokens=3")
    assert result.status == 0
    assert ("note: the prompt has 20 tokens; the model reads the last 16 of them\n") in result.err
    for prompt in ("fox", "fox " * 4):                   # the second one fills the context
        assert "note" not in run(sample_script.main, "--prompt", prompt, "--max-new-tokens=3").err


@pytest.fixture
def speaker(home):
    """A model directory with a byte-level BPE, whose model is random."""
    tokenizer = BPETokenizer.train([TEXT + "\U0001f600"], 290)
    model = GPT(GPTConfig(vocab_size=290, block_size=16, n_layer=1, n_head=2, n_embd=16))
    model.save_pretrained("speaker")
    (home / "speaker" / SUMS).unlink()
    tokenizer.save(home / "speaker")
    return model, tokenizer


def test_characters_are_never_shown_in_halves_and_the_end_of_text_ends_them(
        run, speaker, monkeypatch):
    _, tokenizer = speaker
    ids = [*tokenizer.encode("a\U0001f600é\n"), tokenizer.end, 5]
    monkeypatch.setattr(sample_script, "steps", lambda *given, **options: (
        Step(np.array([i]), np.zeros((1, 290))) for i in ids))
    stream = Flushed()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert run(sample_script.main, "--model=speaker").status == 0
    assert stream.getvalue() == "a\U0001f600é\n\n"
    assert stream.flushed == [1, 2, 3, 4, 5]


def test_model_directory_is_prompted_with_text(run, speaker):
    model, tokenizer = speaker
    result = run(sample_script.main, "--model=speaker", "--prompt=the fox", "--seed=1",
                 "--max-new-tokens=10")
    ids = model.generate([tokenizer.encode("the fox")], 10, temperature=0.8, seed=1)[0]
    assert tokenizer.end not in ids
    assert result.out == "the fox" + tokenizer.decode(ids) + "\n"


def test_prompts_are_read_line_by_line(sample, run, home, monkeypatch):
    words = ["--seed=1", "--max-new-tokens=5"]
    expected = sample(*words, "--prompt=fox") + sample(*words) + sample(*words, "--prompt=dog")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("fox\n\nnaïve\ndog\n".encode())))
    result = run(sample_script.main, *words, "--interactive")
    assert (result.status, result.out) == (0, expected)
    assert "\n'ï', character 3 of the prompt, is not among the 28" in result.err


def test_colours_are_left_out_where_there_is_no_terminal(run, train):
    train("--max-iters=5")
    words = ["--seed=1", "--prompt=fox"]
    result = run(sample_script.main, *words, "--show-probs")
    assert "note: the output is not a terminal with colours, so there are none\n" in result.err
    assert result.out == run(sample_script.main, *words).out


def test_colours_are_those_of_the_probabilities(run, train, monkeypatch):
    train("--max-iters=5")
    monkeypatch.setattr(shades, "Console", partial(
        Console, force_terminal=True, color_system="256", legacy_windows=False))
    probabilities = [0.005, 0.05, 0.2, 0.5, 0.95, 0.01, 1.0]
    monkeypatch.setattr(Step, "probabilities", property(lambda step: step.logits))
    monkeypatch.setattr(sample_script, "steps", lambda *given, **options: (
        Step(np.array([2 + i]), np.array([p])) for i, p in enumerate(probabilities)))
    codes = ["31", "38;5;208", "33", "38;5;154", "32", "38;5;208", "32"]
    stop = "".join(ALPHABET[7:9]) + "#"                    # of which two characters are held back
    result = run(sample_script.main, "--show-probs", "--stop", stop)
    assert result.out == "".join(
        f"\x1b[{code}m{ALPHABET[2 + i]}\x1b[0m" for i, code in enumerate(codes)) + "\n"
    assert ("probability:  0 to 1 %  1 to 10 %  10 to 30 %  30 to 70 %  70 to 100 %\n"
            in re.sub("\x1b\\[[\\d;]*m", "", result.err))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run(sample_script.main, "--show-probs").out


def test_what_is_held_back_is_shown_at_the_end(sample):
    words = ["--prompt=fox", "--seed=3", "--max-new-tokens=20"]
    full = sample(*words)
    assert sample(*words, "--stop", full[-2] + "#") == full
    both = sample(*words, "--num-samples=2")
    assert sample(*words, "--num-samples=2", "--stop", both[-2] + "#") == both
