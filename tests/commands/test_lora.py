"""`train.py --lora-rank` and `--freeze`, and what the other commands do with adapters."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import npgpt
import sample as sample_script
import train as train_script
from npgpt import GPT, GPTConfig, Llama, LlamaConfig
from npgpt.__main__ import main as npgpt_main
from npgpt.durable import SUMS
from npgpt.text.bpe import BPETokenizer
from npgpt.text.tokenizer import load_tokenizer
from npgpt.training import beginning
from tests.commands.tiny import TEXT, everything, metrics, state, weights
from tests.gguf_files import (
    metadata_of,
    random_llama,
    tensors_of,
    tokenizer_metadata,
    write_gguf,
)

SMALL = ["--data=fox.txt", "--eval-iters=2", "--batch-size=4", "--grad-accum=1", "--max-iters=2",
         "--workers=1"]
OTHER = "pack my box with five dozen liquor jugs, said the wizard; " * 40


@pytest.fixture(autouse=True)
def bases(home):
    """A GPT in "gpt2", a Llama in "llama", with a byte-level BPE, and another Llama in "m.gguf"."""
    tokenizer = BPETokenizer.train([TEXT], 270)
    sizes = {"vocab_size": 270, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
    for name, model in {"gpt2": GPT(GPTConfig(**sizes, dropout=0.1)),
                        "llama": Llama(LlamaConfig(**sizes, n_kv_head=1, n_inner=24))}.items():
        model.save_pretrained(name)
        (home / name / SUMS).unlink()
        tokenizer.save(home / name)
    words = tokenizer_metadata()
    model = random_llama(vocab_size=len(words["tokenizer.ggml.tokens"]))
    write_gguf(home / "m.gguf", metadata_of(model.config) | words, tensors_of(model))


@pytest.fixture
def tune(run):
    """-> function: base, words -> Result of train.py --init-from with adapters of rank 4."""
    return lambda base, *words: run(train_script.main, f"--init-from={base}", "--lora-rank=4",
                                    *SMALL, *words)


@pytest.fixture
def merge(run):
    return lambda *words: run(npgpt_main, "merge", *words)


@pytest.fixture
def tuned(tune):
    """Adapters of gpt2 in "run" -> the output."""
    result = tune("gpt2", "--out-dir=run")
    assert (result.status, result.err) == (0, "")
    return result.out


def adapters(checkpoint):
    return load_file(Path(checkpoint, "adapter_model.safetensors"))


def test_checkpoint_has_the_adapters_and_the_path_of_the_model(home, tune):
    before = everything(home / "gpt2")
    result = tune("gpt2", "--out-dir=run")
    assert (result.status, result.err) == (0, "")
    assert "config lora on CPU" in result.out
    assert "13,216 parameters, 2,048 of them trained: layers 2" in result.out
    assert {path.name for path in (home / "run/checkpoint-2").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer.json",
        "tokenizer_config.json", "training.json", "training.safetensors", SUMS}
    config = json.loads((home / "run/checkpoint-2/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((home / "gpt2").resolve())
    assert sum(a.size for a in adapters("run/checkpoint-2").values()) == 2048
    assert everything(home / "gpt2") == before


def test_whole_model_has_a_plain_number_of_parameters(run):
    result = run(train_script.main, "--init-from=gpt2", *SMALL, "--out-dir=run")
    assert "model   11,168 parameters: layers 2" in result.out


@pytest.mark.parametrize("base", ["gpt2", "llama", "m.gguf"])
def test_resumed_adapters_equal_uninterrupted_ones(base, tune, run):
    """The context and the dropout rates are those of the run, and not of the model."""
    dropouts = ["--dropout=0.2"] + ["--embd-dropout=0"] * (base == "gpt2")
    words = ["--lr-decay-iters=4", "--warmup-iters=0", "--block-size=8", *dropouts]
    assert tune(base, "--out-dir=run", *words).status == 0
    assert tune(base, "--out-dir=whole", "--max-iters=4", *words).status == 0
    result = run(train_script.main, "--resume", "--out-dir=run", "--max-iters=4")
    assert (result.status, result.err) == (0, "") and "context 8" in result.out
    found, whole = (adapters(f"{name}/checkpoint-4") | state(f"{name}/checkpoint-4")
                    for name in ("run", "whole"))
    assert found.keys() == whole.keys()
    assert [name for name in found if found[name].tobytes() != whole[name].tobytes()] == []
    values = [json.loads(Path(name, "checkpoint-4/training.json").read_text())["values"]
              for name in ("run", "whole")]
    assert values[0] == values[1]


@pytest.mark.parametrize("base", ["gpt2", "llama", "m.gguf"])
def test_merged_model_has_the_text_and_the_loss_of_the_adapters(base, tune, merge, run):
    assert tune(base, "--out-dir=run", "--learning-rate=0.05", "--max-iters=4").status == 0
    result = merge("--model=run", "--out-dir=merged")
    size = npgpt.from_pretrained(base).params.flat.size
    assert result == (0, f"{Path(base).resolve()} with the adapters in run/checkpoint-4: "
                      f"{size:,} parameters in merged\n", "")
    texts, losses = [], []
    for model in ("run", "run/checkpoint-4", "merged", base):
        found = run(sample_script.main, f"--model={model}", "--prompt=the fox", "--seed=1",
                    "--max-new-tokens=20")
        assert found.status == 0 and f", {size:,} parameters\n" in found.err
        texts.append(found.out)
        found = run(npgpt_main, "eval", f"--model={model}", "--data=fox.txt", "--json")
        losses.append(json.loads(found.out)["loss"])
    assert texts[0] == texts[1] == texts[2]
    assert losses[0] == losses[1] == pytest.approx(losses[2], abs=1e-6)
    assert losses[0] < losses[3] - 0.05
    assert load_tokenizer("merged").digest == load_tokenizer(base).digest


def test_merged_model_ends_a_text_where_the_adapters_do(tuned, merge, home):
    config = home / "gpt2/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": [0, 7, 9]}))
    assert merge("--model=run", "--out-dir=merged").status == 0
    assert load_tokenizer("merged").ends == (0, 7, 9)
    assert json.loads((home / "merged/config.json").read_text())["eos_token_id"] == [0, 7, 9]


def test_fine_tuning_keeps_all_tokens_that_end_a_text(run, home):
    (home / "gpt2/generation_config.json").write_text('{"eos_token_id": [0, 9]}')
    run(train_script.main, "--init-from=gpt2", *SMALL, "--out-dir=run")
    assert load_tokenizer("run/checkpoint-2").ends == (0, 9)


@pytest.mark.parametrize("how", [["--lora-rank=8", "--learning-rate=0.01"],
                                 ["--freeze=embeddings", "--learning-rate=0.003"],
                                 ["--learning-rate=0.003"]], ids=["lora", "freeze", "full"])
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_loss_on_a_text_of_another_kind_falls(family, how, run, home):
    (home / "tokenizer").mkdir()
    BPETokenizer.train([TEXT + OTHER], 300).save(home / "tokenizer")
    (home / "other.txt").write_text(OTHER)
    sizes = ["--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=16", "--batch-size=8",
             "--eval-iters=2", "--workers=1"]
    run(train_script.main, "--data=fox.txt", "--tokenizer=tokenizer", f"--family={family}", *sizes,
        "--max-iters=60", "--learning-rate=0.01", "--out-dir=base")
    result = run(train_script.main, "--init-from=base", "--data=other.txt", "--grad-accum=1",
                 "--batch-size=8", "--eval-iters=2", "--workers=1", "--max-iters=60",
                 "--eval-interval=60", "--out-dir=run", *how)
    assert (result.status, result.err) == (0, "")
    first, *_, last = (m["val_loss"] for m in metrics("run") if "val_loss" in m)
    assert first > 5 and last < first - 1
    base, found = "base/checkpoint-60", "run/checkpoint-60"
    if "--freeze=embeddings" in how:
        table = "wte.weight" if family == "gpt" else "model.embed_tokens.weight"
        assert weights(found)[table].tobytes() == weights(base)[table].tobytes()
        assert "of them trained" in result.out
    notes = [line for line in result.out.splitlines() if line.startswith("note")]
    assert notes == ["note    the adapters need base/checkpoint-60, which its run may remove if it "
                     "is resumed"] * ("--lora-rank=8" in how)


@pytest.mark.parametrize(("words", "message"), [
    ("--lora-rank=17", "--lora-rank must be at most 16, the smaller side of h.0.attn.c_attn, got "),
    ("--lora-rank=-1", "--lora-rank must be at least 0, got -1"),
    ("--freeze=embeddings", "--freeze has no effect with --lora-rank, which freezes all but the "),
    ("--freeze=all", "--freeze must be nothing or embeddings, got 'all'"),
    ("--init-from=old", "old/checkpoint-2 contains adapters itself; merge them with npgpt "),
    ("--init-from=full --out-dir=full --overwrite", "the run in full has the model whose adapters"),
    ("--init-from=full/checkpoint-2 --out-dir=./full --overwrite", "the run in full has the model"),
    ("--out-dir=old --overwrite --resume", "--resume continues a run, and --init-from starts one"),
])
def test_invalid_request_gives_one_line_and_writes_nothing(words, message, tune, run, home,
                                                           monkeypatch):
    if "old" in words:
        tune("gpt2", "--out-dir=old")
    if "full" in words:
        run(train_script.main, "--init-from=gpt2", *SMALL, "--out-dir=full")
    monkeypatch.setattr(beginning, "load_source", lambda *given: pytest.fail("it is read"))
    before = everything(home)
    result = tune("gpt2", "--out-dir=run", *words.split())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"train.py: {message}") and result.err.count("\n") == 1
    assert everything(home) == before


def test_adapters_need_a_model(run, home):
    for words in (["--lora-rank=4"], ["--config=lora"]):
        result = run(train_script.main, *words, *SMALL)
        assert result == (2, "", "train.py: --lora-rank is for adapters of an existing model, "
                          "which --init-from names\n")


def test_configuration_is_lora_with_a_rank_and_finetune_without(tune, run):
    assert "config finetune on CPU" in tune("gpt2", "--lora-rank=0", "--out-dir=a").out
    result = run(train_script.main, "--init-from=gpt2", "--config=lora", *SMALL, "--out-dir=b")
    assert result.status == 0 and "config lora on CPU" in result.out
    values = json.loads(Path("b/checkpoint-2/training.json").read_text())["values"]
    assert (values["lora_rank"], values["optimizer"], values["learning_rate"]) == (8, "adamw", 1e-3)


def test_run_overwrites_another_one(tuned, tune, home):
    """Its model is elsewhere."""
    assert tune("llama", "--out-dir=run", "--overwrite").status == 0
    assert sum(a.size for a in adapters("run/checkpoint-2-2").values()) == 1856
    assert not (home / "run/checkpoint-2").exists()


@pytest.mark.parametrize(("words", "message"), [
    ("--lora-rank=8", "a resumed run keeps its --lora-rank of 4, got 8; to change it, start a new"),
    ("--freeze=embeddings", "a resumed run keeps its --freeze of nothing, got embeddings; to "),
])
def test_resumed_run_keeps_what_it_trains(words, message, tuned, run, home):
    before = everything(home)
    result = run(train_script.main, "--resume", "--out-dir=run", "--max-iters=4", words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"train.py: {message}") and result.err.count("\n") == 1
    assert everything(home) == before


def test_commands_say_that_the_model_is_gone_or_another_one(tuned, run, merge, home):
    commands = {"train.py": lambda: run(train_script.main, "--resume", "--out-dir=run",
                                        "--max-iters=4"),
                "sample.py": lambda: run(sample_script.main, "--model=run"),
                "npgpt eval": lambda: run(npgpt_main, "eval", "--model=run", "--data=fox.txt"),
                "npgpt merge": lambda: merge("--model=run", "--out-dir=merged")}

    def refuse(message):
        before = everything(home)
        for name, call in commands.items():
            result = call()
            assert (result.status, result.out) == (2, "")
            assert result.err == f"{name}: {message}\n"
        assert everything(home) == before

    (home / "gpt2").rename(home / "moved")
    refuse(f"run/checkpoint-2/adapter_config.json: the base model {home.resolve() / 'gpt2'} "
           "does not exist; if it has moved, change base_model_name_or_path and delete SHA256SUMS")
    shutil.copytree("moved", "gpt2")
    model = npgpt.from_pretrained("moved")
    model.params.flat[0] += 1
    model.save_pretrained("changed")
    shutil.copy("changed/model.safetensors", "gpt2/model.safetensors")
    refuse(f"{home.resolve() / 'gpt2'} is not the base model of the adapters in run/checkpoint-2: "
           "its SHA-256 is not that in base.json; restore that version, or change "
           "base_model_name_or_path in adapter_config.json")


def test_new_place_of_the_model_is_kept(tuned, run, home):
    (home / "gpt2").rename(home / "moved")
    config = home / "run/checkpoint-2/adapter_config.json"
    config.write_text(config.read_text().replace(str(home.resolve() / "gpt2"), "moved"))
    (home / "run/checkpoint-2" / SUMS).unlink()
    assert run(train_script.main, "--resume", "--out-dir=run", "--max-iters=4").status == 0
    found = json.loads((home / "run/checkpoint-4/adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == "moved"
    assert run(sample_script.main, "--model=run", "--max-new-tokens=2").status == 0


def test_copied_checkpoint_is_complete(tuned, run, home):
    shutil.copytree("run/checkpoint-2", "elsewhere/a")
    shutil.rmtree("run")
    assert run(sample_script.main, "--model=elsewhere/a", "--max-new-tokens=2").status == 0


def test_fine_tuning_may_start_from_adapters(tuned, run, home):
    result = run(train_script.main, "--init-from=run", *SMALL, "--out-dir=full",
                 "--learning-rate=1e-9", "--min-lr=1e-9")
    assert result.status == 0
    np.testing.assert_allclose(npgpt.from_pretrained("full/checkpoint-2").params.flat,
                               npgpt.from_pretrained("run/checkpoint-2").params.flat, atol=1e-6)


@pytest.mark.parametrize(("words", "message"), [
    ("--model=run", "--out-dir is missing; it takes the directory to write"),
    ("--model=gpt2 --out-dir=merged", "the model in gpt2 has no adapters; --model takes "),
    ("--model=m.gguf --out-dir=merged", "the model in m.gguf has no adapters; --model takes "),
    ("--model=nowhere --out-dir=merged", "there is no directory nowhere; --model takes that of a "),
    ("--model=run --out-dir=llama", "llama already exists; --overwrite replaces it"),
    ("--model=run --out-dir=run --overwrite", "{home}/run contains 'best', which npgpt did not "),
    ("--model=run --out-dir=run/checkpoint-2 --overwrite", "{home}/run/checkpoint-2 contains 'ad"),
    ("--model=run --out-dir=gpt2 --overwrite", "gpt2 is the base model of the adapters; choose "
     "another --out-dir"),
    ("--model=run --out-dir=fox.txt", "{home}/fox.txt is a file; choose another path for the "),
])
def test_merge_refuses_with_one_line_and_writes_nothing(words, message, tuned, merge, home):
    before = everything(home)
    result = merge(*words.split())
    message = message.format(home=home.resolve())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"npgpt merge: {message}") and result.err.count("\n") == 1
    assert everything(home) == before


def test_merge_replaces_a_model_if_it_may(tuned, merge):
    assert merge("--model=run", "--out-dir=llama", "--overwrite").status == 0
    np.testing.assert_array_equal(GPT.from_pretrained("llama").params.flat,
                                  npgpt.from_pretrained("run/checkpoint-2").params.flat)


def test_merge_takes_the_newest_run(merge, run):
    run(train_script.main, "--init-from=gpt2", "--lora-rank=4", *SMALL)
    result = merge("--out-dir=merged")
    assert result.status == 0 and "with the adapters in out/lora/checkpoint-2: " in result.out
