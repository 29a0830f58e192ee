"""`train.py --init-from`: a run that starts from another model."""

import json
from pathlib import Path

import numpy as np
import pytest

import train as train_script
from npgpt import GPT, GPTConfig
from npgpt.durable import SUMS
from npgpt.text.bpe import BPETokenizer
from npgpt.text.tokenizer import load_tokenizer
from npgpt.training import beginning
from tests.commands.tiny import TEXT, everything, metrics, weights

SMALL = ["--data=fox.txt", "--eval-iters=2", "--batch-size=4", "--grad-accum=1", "--max-iters=2"]


@pytest.fixture
def gpt2(home):
    """A model directory as from elsewhere, with a byte-level BPE -> its model."""
    tokenizer = BPETokenizer.train([TEXT], 270)
    model = GPT(GPTConfig(tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=16,
                          dropout=0.1), seed=5)
    model.save_pretrained("gpt2")
    (home / "gpt2" / SUMS).unlink()
    tokenizer.save(home / "gpt2")
    return model


@pytest.fixture
def tune(run):
    """-> function: words -> Result of train.py --init-from=gpt2."""
    return lambda *words: run(train_script.main, "--init-from=gpt2", *SMALL, *words)


def test_run_starts_from_the_parameters_and_the_tokenizer(gpt2, tune, home):
    result = tune("--out-dir=run", "--learning-rate=1e-9", "--min-lr=1e-9")
    assert (result.status, result.err) == (0, "")
    assert "config finetune on CPU" in result.out and "context 32" in result.out
    found = weights("run/checkpoint-2")
    for name, w in gpt2.params.items():
        np.testing.assert_allclose(found[name], w, atol=1e-6)
    assert load_tokenizer("run/checkpoint-2").digest == load_tokenizer("gpt2").digest
    config = json.loads((home / "run/checkpoint-2/config.json").read_text())
    end = load_tokenizer("gpt2").end
    assert (config["resid_pdrop"], config["eos_token_id"], config["bos_token_id"]) == (0.1, end,
                                                                                      end)


def test_first_loss_is_that_of_the_model(gpt2, tune):
    tune("--out-dir=run")
    ids = load_tokenizer("gpt2").encode(TEXT)
    val = ids[int(0.9 * len(ids)):]
    starts = np.arange(0, len(val) - 32, 32)[:8]
    windows = np.stack([val[at:at + 33] for at in starts])
    loss = float(gpt2.loss(windows[:, :-1], windows[:, 1:]))
    assert metrics("run")[0]["val_loss"] == pytest.approx(loss, abs=1e-5)


def test_shorter_context_keeps_the_first_positions(gpt2, tune):
    result = tune("--out-dir=run", "--block-size=8", "--learning-rate=1e-9", "--min-lr=1e-9",
                  "--dropout=0")
    assert result.status == 0
    np.testing.assert_allclose(weights("run/checkpoint-2")["wpe.weight"],
                               gpt2.params["wpe.weight"][:8], atol=1e-6)
    assert GPT.from_pretrained("run/checkpoint-2").config.dropout == 0


def test_context_of_the_model_may_be_given(gpt2, tune):
    result = tune("--out-dir=run", "--block-size=32")
    assert (result.status, result.err) == (0, "")
    assert weights("run/checkpoint-2")["wpe.weight"].shape == (32, 16)


def test_resumed_fine_tuning_equals_an_uninterrupted_one(gpt2, tune, run):
    words = ["--lr-decay-iters=4", "--warmup-iters=0"]
    assert tune("--out-dir=run", *words).status == 0
    assert tune("--out-dir=whole", "--max-iters=4", *words).status == 0
    result = run(train_script.main, "--resume", "--out-dir=run", "--max-iters=4")
    assert (result.status, result.err) == (0, "")
    whole = weights("whole/checkpoint-4")
    for name, w in weights("run/checkpoint-4").items():
        assert w.tobytes() == whole[name].tobytes()


def test_value_of_the_model_may_be_given_whatever_the_configuration_has(gpt2, tune):
    """laptop's 128 channels are not a multiple of 3 heads."""
    GPT(GPTConfig(gpt2.config.vocab_size, block_size=8, n_layer=1, n_head=3,
                  n_embd=6)).save_pretrained("three")
    Path("three", SUMS).unlink()
    load_tokenizer("gpt2").save(Path("three"))
    result = tune("--init-from=three", "--n-head=3", "--out-dir=run")
    assert (result.status, result.err) == (0, "")


def test_run_is_a_model_too(train, run):
    train("--max-iters=5", "--out-dir=first")
    result = run(train_script.main, "--init-from=first", *SMALL, "--out-dir=second",
                 "--learning-rate=1e-9", "--min-lr=1e-9")
    assert (result.status, result.err) == (0, "")
    first, second = weights("first/checkpoint-5"), weights("second/checkpoint-2")
    np.testing.assert_allclose(second["wte.weight"], first["wte.weight"], atol=1e-6)


@pytest.mark.parametrize(("words", "message"), [
    ("--init-from=nowhere", "there is no directory nowhere; --init-from takes that of a run "),
    ("--init-from=", "--init-from is empty; it takes the path of a directory"),
    ("--n-layer=3", "--n-layer is 2 in the model in gpt2, got 3; leave it out"),
    ("--n-head=3", "--n-head is 2 in the model in gpt2, got 3; leave it out"),
    ("--block-size=64", "--block-size is 32 in the model in gpt2, got 64; leave it out"),
    ("--config=baby", "--n-layer is 2 in the model in gpt2, got 6; leave it out"),
    ("--tokenizer=chars", "--init-from brings its own tokenizer; leave out --tokenizer"),
    ("--resume", "--resume continues a run, and --init-from starts one; choose one"),
    ("--data=tokens", "tokens was encoded with another tokenizer (characters, 28 tokens) than"),
    ("--data=é.txt", "the text is too short: its training split has "),
])
def test_invalid_request_gives_one_line_and_status_2_and_writes_nothing(words, message, gpt2, tune,
                                                                        home):
    from npgpt.text.token_file import encode_files

    encode_files([home / "fox.txt"], None, home / "tokens")
    (home / "é.txt").write_text("é")
    before = everything(home)
    result = tune(words, "--out-dir=run")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"train.py: {message}") and result.err.count("\n") == 1
    assert everything(home) == before


def test_tokenizer_that_does_not_fit_is_refused_before_a_text_is_read(gpt2, tune, home,
                                                                     monkeypatch):
    monkeypatch.setattr(beginning, "load_source", lambda *given: pytest.fail("it is read"))
    BPETokenizer.train([TEXT], 260).save(home / "gpt2")
    assert tune("--out-dir=run").err == (
        "train.py: the tokenizer and the model in gpt2 do not fit each other: 260 and 270 tokens\n")


@pytest.mark.parametrize(("words", "message"), [
    ("--tokenizer=nowhere", "--tokenizer must be chars or a directory with a tokenizer, got 'n"),
    ("--tokenizer=chars --data=tokens", "tokens was encoded with a byte-level BPE, and --tokeni"),
    ("--tokenizer=gpt2 --data=chars", "chars was encoded with another tokenizer (characters, 28"),
])
def test_data_and_tokenizer_that_do_not_fit_are_refused(words, message, gpt2, run, home):
    from npgpt.text.token_file import encode_files

    encode_files([home / "fox.txt"], load_tokenizer("gpt2"), home / "tokens")
    encode_files([home / "fox.txt"], None, home / "chars")
    result = run(train_script.main, "--out-dir=run", *words.split())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"train.py: {message}") and result.err.count("\n") == 1


def test_flag_is_refused_before_a_text_is_read(run, home, monkeypatch):
    monkeypatch.setattr(beginning, "load_source", lambda *given: pytest.fail("it is read"))
    for words in (["--n-head=3"], ["--workers=99"], ["--fused"], ["--dtype=tf32"]):
        assert run(train_script.main, "--data=fox.txt", "--device=cpu", *words).status == 2
