import dataclasses
import os
import re
import tomllib

import pytest

from npgpt import GPTConfig, LlamaConfig, UserError
from npgpt.cli.bundle import bundled
from npgpt.errors import flag
from npgpt.training.config import FIELDS, TrainingConfig
from npgpt.training.request import read_command_line


def read(*words, default="laptop"):
    return read_command_line(list(words), lambda *_: default)


def test_every_field_is_a_flag_in_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    configs = GPTConfig, LlamaConfig, TrainingConfig
    names = {f.name for config in configs for f in dataclasses.fields(config)}
    assert names - {"vocab_size"} == FIELDS.keys()
    assert [n for n in FIELDS if flag(n) not in text] == []
    assert "[64]" in text and "[128]" in text       # laptop's context and channels


def test_laptop_is_the_default_and_sets_every_value_of_the_model():
    request = read()
    assert request.config_name == "laptop"
    model, training = request.model(65), request.training()
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size) == (4, 4, 128, 64)
    assert (training.batch_size, training.max_iters, model.dropout) == (12, 4200, 0.0)
    assert training.eval_iters * training.batch_size >= 100


def test_device_selects_the_default_and_config_overrides_it():
    baby = read(default="baby")
    model, training = baby.model(65), baby.training()
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size) == (6, 6, 384, 256)
    assert (training.batch_size, training.max_iters, model.dropout) == (64, 5000, 0.2)
    assert read("--config", "lecture", default="baby").config_name == "lecture"


def test_lecture_configuration_is_the_model_of_the_lecture():
    request = read("--config", "lecture")
    model, training = request.model(65), request.training()
    assert sum(_size(shape) for shape in model.shapes().values()) == 10_788_929
    assert (model.activation, model.tie_weights, model.attn_bias, model.head_bias) == (
        "relu", False, False, True)
    assert (training.max_iters, training.learning_rate, training.min_lr) == (5000, 3e-4, 3e-4)
    assert (training.grad_clip, training.warmup_iters, training.beta2) == (0.0, 0, 0.999)


def _size(shape):
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


@pytest.mark.parametrize("name", ["laptop", "modern", "baby", "lecture", "gpt2"])
def test_bundled_configurations_can_be_used(name):
    request = read("--config", name)
    request.model(65), request.training()
    found = tomllib.loads((bundled("configs") / f"{name}.toml").read_text())
    assert found.items() <= request.values.items()


def test_flags_override_the_file_and_the_file_overrides_laptop(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("n_layer = 3\nlearning_rate = 1\ndata = 'book.txt'\ntie_weights = false\n")
    request = read("--config", str(path), "--n-layer", "5", "--tie-weights", "--seed=7")
    assert request.config_name == "mine"
    assert request.values["n_layer"] == 5 and request.values["n_embd"] == 128
    assert request.values["tie_weights"] is True
    assert request.training().learning_rate == 1.0 and request.training().data == "book.txt"
    assert request.flags == {"n_layer": 5, "tie_weights": True, "seed": 7}


def test_derived_defaults():
    assert read().training().lr_decay_iters == 4200
    assert read("--max-iters", "40").training().lr_decay_iters == 40
    assert read("--max-iters", "40").training().warmup_iters == 2
    assert read("--max-iters", "90000").training().warmup_iters == 100
    assert read("--lr-decay-iters", "10").training().lr_decay_iters == 10


NUMBERS = ["n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_iters"]


@pytest.mark.parametrize(("value", "wrong"), [
    ("0", "at least 1, got 0"), ("-1", "at least 1, got -1"),
    ("1000000000000", "at most .*, got 1000000000000"), ("1.5", "a whole number, got '1.5'"),
    ("nan", "a whole number, got 'nan'"), ("1e3", "a whole number, got '1e3'"),
    ("", "a whole number, got ''"), ("x", "a whole number, got 'x'"),
])
@pytest.mark.parametrize("name", NUMBERS)
def test_invalid_whole_numbers_are_refused_by_name(name, value, wrong):
    with pytest.raises(UserError, match=f"^{name} must be {wrong}$"):
        read(f"{flag(name)}={value}")


@pytest.mark.parametrize(("words", "message"), [
    ("--dropout 1", "dropout must be below 1, got 1"),
    ("--dropout -0.1", "dropout must be at least 0, got -0.1"),
    ("--learning-rate 0", "learning_rate must be above 0, got 0"),
    ("--learning-rate inf", "learning_rate"), ("--learning-rate nan", "learning_rate"),
    ("--beta2 1", "beta2"), ("--weight-decay -1", "weight_decay"), ("--seed -1", "seed"),
    ("--activation swish", "activation must be gelu or relu, got 'swish'"),
    ("--device tpu", "device must be auto, cpu or gpu, got 'tpu'"),
    ("--optimizer sgd", "optimizer must be adamw or muon, got 'sgd'"),
    ("--dtype float16", "dtype must be float32, float64, tf32 or bfloat16, got 'float16'; "
     "did you mean 'bfloat16'"),
    ("--n-layers 3", "unknown option --n-layers; did you mean --n-layer"),
    ("--n-lay 3", "unknown option --n-lay"), ("--lr 1", "--lr; did you mean --learning-rate"),
    ("extra", "unexpected argument 'extra'"),
    ("--n-layer", "--n-layer needs a value"),
    ("--config nowhere.toml", "no configuration 'nowhere.toml'; .* baby, finetune, gpt2, "),
    ("--resume --overwrite", "choose one"), ("--overwrite", "out_dir, which is missing"),
    ("--out-dir=", "out_dir is empty"), ("--config latop", "did you mean 'laptop'"),
    ("--resume --config laptop", "leave out config"),
])
def test_invalid_flags_are_refused_in_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        read(*words.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("words", "message"), [
    ("--n-embd 130", "n_embd must be a multiple of n_head, got 130 and 4"),
    ("--min-lr 0.5", "min_lr must be at most learning_rate, which is 0.015, got 0.5"),
    ("--warmup-iters 5000", "warmup_iters must be at most lr_decay_iters, which is 4200, "
     "got 5000"),
])
def test_contradictory_values_are_refused(words, message):
    request = read(*words.split())
    with pytest.raises(UserError, match=message):
        request.model(65), request.training()


@pytest.mark.parametrize(("text", "message"), [
    ("n_layr = 3", "unknown key 'n_layr'; did you mean 'n_layer'"),
    ("vocab_size = 3", "unknown key 'vocab_size'"),
    ("lr = 3", "unknown key 'lr'; did you mean 'learning_rate'"),
    ("n_layer = '3'", "n_layer must be a whole number, got '3'"),
    ("n_layer = 0", "n_layer must be at least 1, got 0"),
    ("n_layer = true", "n_layer must be a whole number"),
    ("dropout = 'none'", "dropout must be a number"),
    ("tie_weights = 1", "tie_weights must be true or false, got 1"),
    ("[n_layer]", "n_layer must be a whole number, got {}"), ("data = ['a']", "data must be text"),
    ("n_layer = ", "is not valid TOML: "), ("\x00", "is not valid TOML: "),
])
def test_invalid_files_are_refused_by_name_and_key(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"mine.toml:? {message}") as error:
        read("--config", str(path))
    assert "`" not in error.value.message          # a key is no flag


def test_directory_as_configuration_is_refused(tmp_path):
    for name in (str(tmp_path), ""):
        with pytest.raises(UserError, match="there is no configuration"):
            read("--config", name)


def test_resumed_run_keeps_its_values_except_those_that_may_change():
    saved = read("--seed", "5").values | dataclasses.asdict(read("--seed", "5").training())
    request = read("--max-iters", "9000", "--seed", "5", "--log-interval", "3").resumed(saved)
    assert request.training().max_iters == 9000 and request.training().log_interval == 3
    assert request.training().lr_decay_iters == 4200
    for word, name in (("--seed=6", "seed"), ("--n-layer=9", "n_layer"), ("--beta1=0", "beta1")):
        with pytest.raises(UserError, match=f"a resumed run keeps its {name} of"):
            read(word).resumed(saved)


@pytest.mark.parametrize(("words", "rates", "noted"), [
    ("--optimizer adamw", (1e-3, 1e-4), True),
    ("--optimizer adamw --learning-rate 2e-3", (2e-3, 3e-4), False),
    ("--optimizer adamw --min-lr 1e-5", (1e-3, 1e-5), True),
    ("--optimizer muon", (1.5e-2, 3e-4), False),
    ("--config baby --optimizer adamw", (1e-3, 1e-4), False),
    ("--config lecture --optimizer adamw", (3e-4, 3e-4), False),
    ("--config lecture --optimizer muon", (3e-4, 3e-4), False),
])
def test_adamw_does_not_inherit_the_rates_of_muon(words, rates, noted):
    request = read(*words.split())
    training = request.training()
    assert (training.learning_rate, training.min_lr) == rates
    assert request.notes == (["learning rate 0.001, AdamW's default: 0.015 in the configuration is "
                              "for Muon"] if noted else [])


def test_file_that_changes_to_adamw_gets_the_default_rates(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("optimizer = 'adamw'")
    request = read("--config", str(path))
    assert (request.training().learning_rate, request.training().min_lr) == (1e-3, 1e-4)
    assert len(request.notes) == 1


@pytest.mark.parametrize("name", ["muon_lr", "muon_momentum"])
def test_options_of_muon_are_refused_with_adamw(name, tmp_path):
    message = f"{name} has no effect with optimizer adamw; leave it out"
    for words in (["--optimizer=adamw"], ["--config=lecture"]):
        with pytest.raises(UserError, match=f"^{message}$"):
            read(*words, f"{flag(name)}=0.5")
    path = tmp_path / "mine.toml"
    path.write_text(f"optimizer = 'adamw'\n{name} = 0.5")
    with pytest.raises(UserError, match=f"mine.toml: {message}$"):
        read("--config", str(path))
    path.write_text(f"{name} = 0.5")                   # written for Muon, as laptop is
    assert read("--config", str(path)).values[name] == 0.5
    assert read("--config", str(path), "--optimizer=adamw").training().optimizer == "adamw"


def test_resumed_run_with_adamw_keeps_its_rates_and_all_its_values():
    saved = {name: field.default for name, field in FIELDS.items()}
    saved |= {"optimizer": "adamw", "learning_rate": 0.5, "min_lr": 0.25, "muon_lr": 0.75}
    for words in ((), ("--optimizer=adamw",), ("--muon-lr=0.75", "--optimizer=adamw")):
        request = read("--resume", *words).resumed(saved)
        training = request.training()
        assert (training.learning_rate, training.min_lr, training.muon_lr) == (0.5, 0.25, 0.75)
        assert request.notes == []


def test_value_missing_in_a_checkpoint_is_its_default():
    saved = {name: field.default for name, field in FIELDS.items() if name != "hold"}
    assert read("--resume", "--hold=0").resumed(saved).training().hold == 0
    with pytest.raises(UserError, match=r"a resumed run keeps its hold of 0\.0, got 0\.5; to "
                       "change it, start a new run without resume$"):
        read("--resume", "--hold=0.5").resumed(saved)


def test_more_workers_than_cores_are_allowed():
    assert read("--workers=1000").training().workers == 1000


def test_help_shows_which_family_has_an_option(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    parts = re.split(r"\n(the [^:\n]*):\n", capsys.readouterr().out)
    found = {title: set(re.findall(r"^  --(?:\[no-\])?([a-z-]+)|^  --([a-z-]+),", text, re.M))
             for title, text in zip(parts[1::2], parts[2::2])}
    options = {title: {max(pair) for pair in pairs} for title, pairs in found.items()}
    assert options["the model, for --family gpt only"] == {
        "activation", "attn-bias", "head-bias", "embd-dropout"}
    assert options["the model, for --family llama only"] == {
        "n-kv-head", "head-dim", "attention-bias", "mlp-bias", "qk-norm", "rope-theta"}
    assert options["the model, as in laptop"] == {
        "block-size", "n-layer", "n-head", "n-embd", "dropout", "tie-weights", "n-inner",
        "attn-dropout", "norm-eps"}
    assert "family" in options["the training, as in laptop"]


def test_family_selects_the_configuration(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("family = 'llama'\nn_kv_head = 2\nqk_norm = true\n")
    for words in (["--config", str(path)], ["--family=llama", "--n-kv-head=2", "--qk-norm"]):
        request = read(*words)
        assert request.family == request.training().family == "llama"
        assert request.model(65) == LlamaConfig(65, 64, 4, 4, 2, 128, qk_norm=True)
    overridden = read("--config", str(path), "--n-kv-head=1", "--no-qk-norm").model(65)
    assert (overridden.n_kv_head, overridden.qk_norm) == (1, False)
    assert read().family == "gpt" and type(read().model(65)) is GPTConfig


@pytest.mark.parametrize(("saved", "word", "message"), [
    ({"family": "llama"}, "--head-bias", "head_bias is an option of the family gpt"),
    ({"family": "gpt"}, "--qk-norm", "qk_norm is an option of the family llama"),
    ({}, "--qk-norm", "qk_norm is an option of the family llama"),
    ({}, "--family=llama", "a resumed run keeps its family of gpt, got llama"),
])
def test_resumed_run_refuses_options_of_another_family(saved, word, message):
    with pytest.raises(UserError, match=f"^{message}"):
        read("--resume", word).resumed(saved)
    assert read("--resume").resumed(saved).family == saved.get("family", "gpt")


def test_help_shows_paths_as_file_and_options_as_flags(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    assert "\n  --data PATH  " in text and "--max-iters)" in text
    assert "{float32,float64,tf32,bfloat16}" in text
    assert "`" not in text and "lr_decay_iters" not in text


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_does_not_look_for_a_gpu(word, capsys):
    asked = []

    def default_config(device, family):
        asked.append((device, family))
        return "laptop"

    with pytest.raises(SystemExit):
        read_command_line([word, "--device=gpu"], default_config)
    out = capsys.readouterr().out
    assert out.startswith("usage: train.py [--config FILE] [--device {auto,cpu,gpu}] [--data PATH]")
    assert "\nthe model, as in laptop:\n" in out and "\nthe training, as in laptop:\n" in out
    assert "Train a GPT or a Llama on a text. Without arguments: a" in " ".join(out.split())
    assert "--init-from PATH start from the parameters" in " ".join(out.split())
    assert ("the run: --config FILE a TOML file of the values below, or one of baby, finetune, "
            in " ".join(out.split()))
    assert ("--out-dir DIR directory of the run [a new one in out/] --resume continue the run in "
            "--out-dir [the newest in out/] --overwrite replace the run in --out-dir "
            in " ".join(out.split()))
    read_command_line(["--device=gpu"], default_config)
    read_command_line(["--family=llama"], default_config)
    assert asked == [("cpu", None), ("gpu", None), ("auto", "llama")]


def test_configuration_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text("n_layer = 2\n")
    original = os.open

    def refuse(name, *arguments, **options):
        if os.fspath(name) == str(path):
            raise PermissionError(13, "Permission denied", str(name))
        return original(name, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"mine\.toml cannot be read: Permission denied$"):
        read_command_line([f"--config={path}"], lambda *_: "laptop")


def test_invalid_device_is_refused_before_a_default_is_looked_for():
    with pytest.raises(UserError, match="device must be auto, cpu or gpu, got 'tpu'"):
        read_command_line(["--device=tpu"], lambda device: pytest.fail("it is looked for"))
