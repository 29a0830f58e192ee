"""The commands with a GGUF file in the place of a model directory."""

import json

import numpy as np
import pytest

import sample as sample_script
import train as train_script
from npgpt import Llama
from npgpt.__main__ import main as npgpt
from npgpt.text.tokenizer import load_tokenizer
from tests.commands.tiny import everything
from tests.gguf_files import (
    metadata_of,
    random_llama,
    tensors_of,
    tokenizer_metadata,
    write_gguf,
)


@pytest.fixture
def model(home):
    """The model in m.gguf."""
    words = tokenizer_metadata()
    model = random_llama(vocab_size=len(words["tokenizer.ggml.tokens"]))
    write_gguf(home / "m.gguf", metadata_of(model.config) | words, tensors_of(model))
    return model


def test_text_is_that_of_the_model(model, run):
    result = run(sample_script.main, "--model=m.gguf", "--prompt=the fox", "--temperature=0",
                 "--max-new-tokens=5")
    assert result.status == 0 and result.err.startswith(
        f"m.gguf, {model.params.flat.size:,} parameters\n")
    tokenizer = load_tokenizer("m.gguf")
    ids = model.generate([tokenizer.encode("the fox")], 5, temperature=0, end=tokenizer.end)[0]
    ids = [i for i in ids.tolist() if i != tokenizer.end]
    assert result.out == f"the fox{tokenizer.decode(ids)}\n"


def test_loss_is_measured(model, run):
    result = run(npgpt, "eval", "--model=m.gguf", "--data=fox.txt", "--json")
    assert result.status == 0 and json.loads(result.out)["loss"] > 0


def test_fine_tuning_starts_from_it_and_saves_a_directory(model, run, home):
    result = run(train_script.main, "--init-from=m.gguf", "--data=fox.txt", "--max-iters=1",
                 "--eval-iters=1", "--learning-rate=1e-9", "--min-lr=1e-9", "--out-dir=run")
    assert (result.status, result.err) == (0, "")
    found = Llama.from_pretrained("run/checkpoint-1")
    np.testing.assert_allclose(found.params.flat, model.params.flat, atol=1e-6)
    assert load_tokenizer("run/checkpoint-1").digest == load_tokenizer("m.gguf").digest


@pytest.mark.parametrize(("damage", "message"), [
    (lambda data: data[:len(data) // 2], "m.gguf is damaged: it ends at byte"),
    (lambda data: b"GGML" + data[4:], "m.gguf is not a GGUF file"),
    (lambda data: data.replace(b"llama", b"qwen9"), "m.gguf: the architecture is 'qwen9'"),
])
@pytest.mark.parametrize("command", ["sample", "train", "eval"])
def test_damaged_or_unknown_file_gives_one_line_and_nothing_is_written(damage, message, command,
                                                                      model, run, home):
    (home / "m.gguf").write_bytes(damage((home / "m.gguf").read_bytes()))
    before = everything(home)
    main, words = {
        "sample": (sample_script.main, ["--model=m.gguf"]),
        "train": (train_script.main, ["--init-from=m.gguf", "--data=fox.txt"]),
        "eval": (npgpt, ["eval", "--model=m.gguf", "--data=fox.txt"]),
    }[command]
    result = run(main, *words)
    assert (result.status, result.out) == (2, "")
    assert message in result.err and result.err.count("\n") == 1
    assert everything(home) == before
