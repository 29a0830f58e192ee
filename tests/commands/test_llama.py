"""The commands with a run of a Llama. What holds for every family is in the other files."""

import json

import numpy as np
import pytest

import sample as sample_script
import train as train_script
from npgpt import Llama, LlamaConfig
from npgpt.__main__ import main
from npgpt.durable import SUMS
from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import CharTokenizer
from npgpt.text.tokenizer import load_tokenizer
from npgpt.training.perplexity import whole_loss
from tests.commands.tiny import LLAMA, TEXT, everything, metrics, state, weights

TOML = """
family = "llama"
n_layer = 1
n_head = 2
n_kv_head = 1
n_embd = 16
head_dim = 6
qk_norm = true
attention_bias = true
rope_theta = 500
block_size = 16
batch_size = 4
eval_iters = 2
log_interval = 5
"""
SMALL = ["--data=fox.txt", "--eval-iters=2", "--batch-size=4", "--grad-accum=1", "--max-iters=2"]
ONE = ["--data=fox.txt", "--max-iters=1"]
STILL = ["--learning-rate=1e-9", "--min-lr=1e-9"]


@pytest.fixture
def trains(run):
    """-> function: words -> Result of train.py."""
    return lambda *words: run(train_script.main, *words)


def assert_refused(result, message):
    assert (result.status, result.out) == (2, "")
    assert result.err == f"train.py: {message}\n"


@pytest.mark.parametrize("family", [[], [*LLAMA], [*LLAMA, "--qk-norm"]],
                         ids=["gpt", "llama", "qk_norm"])
def test_sentence_is_learnt(family, train):
    """The character before alone would give 0.61 nats."""
    train("--max-iters=150", "--eval-interval=150", *family)
    lines = metrics("out/modern" if family else "out/laptop")
    assert lines[0]["val_loss"] > 3 and lines[-1]["whole_val_loss"] < 0.2


def test_header_and_configuration_file_say_what_is_trained(train, home):
    output = train(*LLAMA, "--max-iters=1", "--n-inner=10", "--out-dir=run")
    assert "\nmodel   2,192 parameters: layers 1, heads 2, channels 16, context 16\n" in output
    found = json.loads((home / "run/checkpoint-1/config.json").read_text())
    assert {name: found[name] for name in ("model_type", "num_attention_heads", "head_dim",
                                           "num_key_value_heads", "intermediate_size")} == {
        "model_type": "llama", "num_attention_heads": 2, "head_dim": 8, "num_key_value_heads": 1,
        "intermediate_size": 10}
    saved = json.loads((home / "run/checkpoint-1/training.json").read_text())["values"]
    assert (saved["family"], saved["n_kv_head"], saved["head_dim"]) == ("llama", 1, 8)
    assert "activation" not in saved and "vocab_size" not in saved


def test_run_of_a_file_resumes_bit_for_bit_and_keeps_its_options(trains, home):
    (home / "mine.toml").write_text(TOML)
    words = ["--data=fox.txt", "--config=mine.toml", "--lr-decay-iters=9", "--dropout=0.2"]
    assert trains(*words, "--max-iters=9", "--out-dir=whole").status == 0
    assert trains(*words, "--max-iters=4", "--out-dir=parts").status == 0
    assert trains("--resume", "--out-dir=parts", "--max-iters=9", "--qk-norm", "--family=llama",
                  "--head-dim=6").status == 0
    whole, parts = (weights(f"{name}/checkpoint-9") | state(f"{name}/checkpoint-9")
                    for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if whole[name].tobytes() != parts[name].tobytes()] == []
    saved = [json.loads((home / path / "training.json").read_text())["values"]
             for path in ("whole/checkpoint-9", "parts/checkpoint-9")]
    assert saved[0] == saved[1] and saved[0]["rope_theta"] == 500
    config = Llama.from_pretrained("parts/checkpoint-9").config
    assert config == LlamaConfig(len(set(TEXT)), 16, 1, 2, 1, 16, 6, 64, 0.2, qk_norm=True,
                                 attention_bias=True, rope_theta=500.0)


def test_resumed_run_keeps_its_options_and_refuses_others_by_name(train, trains, home):
    train(*LLAMA, "--head-dim=6", "--qk-norm", "--max-iters=5", "--out-dir=llama")
    train("--max-iters=5", "--out-dir=gpt")
    before = everything(home)
    new = "to change it, start a new run without --resume"
    for out_dir, words, message in (
        ("llama", "--n-kv-head=2", f"a resumed run keeps its --n-kv-head of 1, got 2; {new}"),
        ("llama", "--head-dim=8", f"a resumed run keeps its --head-dim of 6, got 8; {new}"),
        ("llama", "--no-qk-norm", f"a resumed run keeps its --qk-norm of True, got False; {new}"),
        ("llama", "--rope-theta=5", "a resumed run keeps its --rope-theta of 10000.0, got 5.0; "
         f"{new}"),
        ("llama", "--mlp-bias", f"a resumed run keeps its --mlp-bias of False, got True; {new}"),
        ("llama", "--family=gpt", f"a resumed run keeps its --family of llama, got gpt; {new}"),
        ("gpt", "--family=llama", f"a resumed run keeps its --family of gpt, got llama; {new}"),
        ("llama", "--activation=gelu", "--activation is an option of the family gpt, and the "
         "model is of the family llama; leave it out"),
        ("gpt", "--n-kv-head=2", "--n-kv-head is an option of the family llama, and the model is "
         "of the family gpt; leave it out"),
    ):
        assert_refused(trains("--resume", f"--out-dir={out_dir}", "--max-iters=9", words), message)
    assert everything(home) == before


@pytest.mark.parametrize("change", [
    {"n_kv_head": None}, {"rope_theta": None}, {"qk_norm": None}, {"family": "gpt"}])
def test_state_without_an_option_of_its_family_is_refused(change, train, trains, home):
    """None: the value is missing."""
    train(*LLAMA, "--max-iters=5", "--out-dir=run")
    path = home / "run/checkpoint-5/training.json"
    content = json.loads(path.read_text())
    content["values"] = {name: value for name, value in (content["values"] | change).items()
                         if value is not None or name not in change}
    path.write_text(json.dumps(content))
    path.with_name(SUMS).unlink()
    assert_refused(trains("--resume", "--out-dir=run", "--max-iters=9"),
                   "run/checkpoint-5/training.json is damaged: values are missing")


@pytest.mark.parametrize("name", ["n_kv_head", "head_dim", "attention_bias", "mlp_bias", "qk_norm",
                                  "rope_theta"])
def test_options_of_a_llama_are_refused_for_a_gpt(name, trains, home):
    flag = "--" + name.replace("_", "-")
    value = "" if name in ("attention_bias", "mlp_bias", "qk_norm") else "=2"
    message = (f"{flag} is an option of the family llama, and the model is of the family gpt; "
               "choose --family llama, or leave it out")
    assert_refused(trains(*ONE, "--config=laptop", flag + value), message)
    assert_refused(trains(*ONE, "--family=gpt", flag + value), message)
    (home / "mine.toml").write_text(f"{name} = {'true' if not value else 2}\n")
    assert_refused(trains(*ONE, "--config=mine.toml"), message)
    assert_refused(trains(*ONE, "--config=mine.toml", "--family=gpt"), message)
    assert not (home / "out").exists()


@pytest.mark.parametrize(("name", "value"), [
    ("activation", "relu"), ("attn_bias", False), ("head_bias", True), ("embd_dropout", 0.1)])
def test_options_of_a_gpt_are_refused_for_a_llama(name, value, trains, home):
    flag = "--" + name.replace("_", "-")
    given = {True: flag, False: "--no-" + flag[2:]}.get(value, f"{flag}={value}")
    message = (f"{flag} is an option of the family gpt, and the model is of the family llama; "
               "choose --family gpt, or leave it out")
    assert_refused(trains(*ONE, "--family=llama", given), message)
    assert_refused(trains(*ONE, given), message)
    written = json.dumps(value)
    (home / "mine.toml").write_text(f'family = "llama"\n{name} = {written}\n')
    assert_refused(trains(*ONE, "--config=mine.toml"), message)
    assert not (home / "out").exists()


@pytest.mark.parametrize(("words", "message"), [
    ("--family=lama", "--family must be gpt or llama, got 'lama'; did you mean 'llama'?"),
    ("--n-kv-head=3", "--n-head must be a multiple of --n-kv-head, got 4 and 3"),
    ("--n-kv-head=0", "--n-kv-head must be at least 1, got 0"),
    ("--head-dim=3", "--head-dim must be even, because RoPE rotates pairs of channels, got 3"),
    ("--qk-norm --mlp-bias", "--qk-norm and --mlp-bias are of different models, Qwen3 and Llama; "
                             "choose one"),
])
def test_invalid_architecture_is_refused(words, message, trains, home):
    assert_refused(trains(*ONE, "--family=llama", *words.split()), message)
    assert not (home / "out").exists()


def test_text_is_generated_and_evaluated_with_a_run(train, run):
    train(*LLAMA, "--max-iters=20", "--out-dir=run")
    result = run(sample_script.main, "--out-dir=run", "--prompt=the ", "--max-new-tokens=40",
                 "--seed=3")                                     # beyond the context of 16
    model = Llama.from_pretrained("run/checkpoint-20")
    tokenizer = CharTokenizer(TEXT)
    ids = model.generate(tokenizer.encode("the ")[None], 40, temperature=0.8, seed=3)
    assert result.status == 0 and tokenizer.decode(ids[0]) in result.out
    found = json.loads(run(main, "eval", "--model=run", "--data=fox.txt", "--json").out)
    expected = whole_loss(model, tokenizer, tokenizer.encode(TEXT), found["stride"])
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-6)


# --- --init-from --------------------------------------------------------------------------------

@pytest.fixture
def qwen3(home):
    """A model directory as from elsewhere, with a byte-level BPE -> its model."""
    tokenizer = BPETokenizer.train([TEXT], 270)
    model = Llama(LlamaConfig(tokenizer.vocab_size, 32, 2, 6, 3, 20, 4, 12, dropout=0.1,
                              qk_norm=True, rope_theta=1e6), seed=5)
    model.save_pretrained("qwen3")
    (home / "qwen3" / SUMS).unlink()
    tokenizer.save(home / "qwen3")
    return model


@pytest.mark.parametrize("family", [[], ["--family=llama", "--n-kv-head=3", "--n-head=6"]])
def test_fine_tuning_starts_from_the_parameters_of_a_directory(family, qwen3, trains, home):
    """Of its own architecture, whatever the configuration has; it may also be given."""
    result = trains("--init-from=qwen3", *SMALL, *STILL, "--out-dir=run", *family)
    assert (result.status, result.err) == (0, "")
    assert "config finetune on CPU" in result.out and "context 32" in result.out
    found = Llama.from_pretrained("run/checkpoint-2")
    assert found.config == qwen3.config
    np.testing.assert_allclose(found.params.flat, qwen3.params.flat, atol=1e-6)
    assert load_tokenizer("run/checkpoint-2").digest == load_tokenizer("qwen3").digest
    saved = json.loads((home / "run/checkpoint-2/training.json").read_text())["values"]
    assert (saved["family"], saved["n_kv_head"], saved["rope_theta"]) == ("llama", 3, 1e6)


def test_fine_tuning_may_change_dropout_and_shorten_the_context(qwen3, trains):
    words = ["--init-from=qwen3", *SMALL, "--block-size=8", "--dropout=0.3", "--attn-dropout=0",
             "--lr-decay-iters=4", "--warmup-iters=0"]
    assert trains(*words, *STILL, "--out-dir=still").status == 0
    found = Llama.from_pretrained("still/checkpoint-2")
    assert (found.config.dropout, found.config.attn_dropout, found.config.block_size) == (0.3, 0, 8)
    np.testing.assert_allclose(found.params.flat, qwen3.params.flat, atol=1e-6)
    assert trains(*words, "--out-dir=parts").status == 0
    assert trains(*words, "--out-dir=whole", "--max-iters=4").status == 0
    resumed = trains("--resume", "--out-dir=parts", "--max-iters=4")
    assert (resumed.status, resumed.err) == (0, "")
    whole, parts = weights("whole/checkpoint-4"), weights("parts/checkpoint-4")
    assert [name for name in whole if whole[name].tobytes() != parts[name].tobytes()] == []


@pytest.mark.parametrize(("words", "message"), [
    ("--family=gpt", "--family is llama in the model in qwen3, got gpt; leave it out"),
    ("--n-kv-head=2", "--n-kv-head is 3 in the model in qwen3, got 2; leave it out"),
    ("--head-dim=8", "--head-dim is 4 in the model in qwen3, got 8; leave it out"),
    ("--no-qk-norm", "--qk-norm is True in the model in qwen3, got False; leave it out"),
    ("--rope-theta=5", "--rope-theta is 1000000.0 in the model in qwen3, got 5.0; leave it out"),
    ("--block-size=64", "--block-size is 32 in the model in qwen3, got 64; leave it out"),
    ("--head-bias", "--head-bias is an option of the family gpt, and the model is of the family "
                    "llama; leave it out"),
])
def test_fine_tuning_keeps_the_architecture(words, message, qwen3, trains, home):
    before = everything(home)
    assert_refused(trains("--init-from=qwen3", *SMALL, "--out-dir=run", words), message)
    assert everything(home) == before


def test_fine_tuning_of_a_gpt_refuses_the_other_family(train, trains):
    train("--max-iters=1", "--out-dir=gpt")
    assert_refused(trains("--init-from=gpt", *SMALL, "--family=llama"),
                   "--family is gpt in the model in gpt/checkpoint-1, got llama; leave it out")
    assert_refused(trains("--init-from=gpt", *SMALL, "--n-kv-head=1"),
                   "--n-kv-head is an option of the family llama, and the model is of the family "
                   "gpt; leave it out")
