import dataclasses
import tomllib

import pytest

from npgpt import GPTConfig, UserError
from npgpt.cli.bundle import bundled
from npgpt.cli.options import flag
from npgpt.training.config import FIELDS, TrainingConfig, read_command_line


def read(*words, default="laptop"):
    return read_command_line(list(words), lambda device: default)


def test_every_field_is_a_flag_in_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    names = {f.name for c in (GPTConfig, TrainingConfig) for f in dataclasses.fields(c)}
    assert names - {"vocab_size"} == FIELDS.keys()
    assert [n for n in FIELDS if flag(n) not in text] == []
    assert "[64]" in text and "[128]" in text       # laptop's context and channels


def test_laptop_is_the_default_and_says_every_value_of_the_model():
    request = read()
    assert request.config_name == "laptop"
    model, training = request.model(65), request.training()
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size) == (4, 4, 128, 64)
    assert (training.batch_size, training.max_iters, model.dropout) == (12, 4200, 0.0)
    assert training.eval_iters * training.batch_size >= 100


def test_device_chooses_the_default_and_config_overrules_it():
    baby = read(default="baby")
    model, training = baby.model(65), baby.training()
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size) == (6, 6, 384, 256)
    assert (training.batch_size, training.max_iters, model.dropout) == (64, 5000, 0.2)
    assert read("--config", "lecture", default="baby").config_name == "lecture"


def test_lecture_is_the_model_of_the_lecture():
    request = read("--config", "lecture")
    model, training = request.model(65), request.training()
    assert sum(_size(shape) for shape in model.shapes().values()) == 10_788_929
    assert (model.activation, model.tie_weights, model.attn_bias, model.head_bias) == (
        "relu", False, False, True)
    assert (training.max_iters, training.learning_rate, training.min_lr) == (5000, 3e-4, 3e-4)
    assert (training.grad_clip, training.warmup_iters, training.beta2) == (0.0, 0, 0.999)


def _size(shape):
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


@pytest.mark.parametrize("name", ["laptop", "baby", "lecture"])
def test_configurations_that_npgpt_brings_can_be_used(name):
    request = read("--config", name)
    request.model(65), request.training()
    found = tomllib.loads((bundled("configs") / f"{name}.toml").read_text())
    assert found.items() <= request.values.items()


def test_flags_win_over_the_file_and_the_file_over_laptop(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("n_layer = 3\nlearning_rate = 1\ndata = 'book.txt'\ntie_weights = false\n")
    request = read("--config", str(path), "--n-layer", "5", "--tie-weights", "--seed=7")
    assert request.config_name == "mine"
    assert request.values["n_layer"] == 5 and request.values["n_embd"] == 128
    assert request.values["tie_weights"] is True
    assert request.training().learning_rate == 1.0 and request.training().data == "book.txt"
    assert request.flags == {"n_layer": 5, "tie_weights": True, "seed": 7}


def test_what_follows_from_other_values():
    assert read().training().lr_decay_iters == 4200
    assert read("--max-iters", "40").training().lr_decay_iters == 40
    assert read("--max-iters", "40").training().warmup_iters == 2
    assert read("--max-iters", "90000").training().warmup_iters == 100
    assert read("--lr-decay-iters", "10").training().lr_decay_iters == 10


NUMBERS = ["n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_iters"]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "inf", "1e3", "1000000000000", "", "x"])
@pytest.mark.parametrize("name", NUMBERS)
def test_whole_numbers_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"{name} must be a whole number, at least 1"):
        read(f"{flag(name)}={value}")


@pytest.mark.parametrize(("words", "message"), [
    ("--dropout 1", "dropout must be a number, at least 0, below 1"),
    ("--dropout -0.1", "dropout"),
    ("--learning-rate 0", "learning_rate must be a number, above 0"),
    ("--learning-rate inf", "learning_rate"), ("--learning-rate nan", "learning_rate"),
    ("--beta2 1", "beta2"), ("--weight-decay -1", "weight_decay"), ("--seed -1", "seed"),
    ("--activation swish", "activation must be one of gelu, relu, not 'swish'"),
    ("--device tpu", "device must be one of auto, cpu, gpu, not 'tpu'"),
    ("--optimizer sgd", "optimizer must be one of adamw"),
    ("--dtype float16", "dtype must be one of float32"),
    ("--n-layers 3", "unknown argument '--n-layers'; did you mean '--n-layer'"),
    ("--n-lay 3", "unknown argument '--n-lay'"),
    ("extra", "unknown argument 'extra'"),
    ("--n-layer", "expected one argument"),
    ("--config nowhere.toml", "no configuration 'nowhere.toml'; .* baby, laptop, lecture"),
    ("--resume --overwrite", "choose one"), ("--resume --config laptop", "leave out --config"),
])
def test_flags_that_cannot_be_are_refused_in_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        read(*words.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("words", "message"), [
    ("--n-embd 130", "n_embd must be a multiple of n_head; 130 is not one of 4"),
    ("--min-lr 0.5", "min_lr 0.5 is above learning_rate"),
    ("--warmup-iters 5000", "warmup_iters 5000 is above lr_decay_iters 4200"),
])
def test_values_that_contradict_each_other_are_refused(words, message):
    request = read(*words.split())
    with pytest.raises(UserError, match=message):
        request.model(65), request.training()


@pytest.mark.parametrize(("text", "message"), [
    ("n_layr = 3", "unknown key 'n_layr'; did you mean 'n_layer'"),
    ("vocab_size = 3", "unknown key 'vocab_size'"),
    ("n_layer = '3'", "n_layer must be a whole number, .* not '3'"),
    ("n_layer = true", "n_layer must be a whole number"),
    ("dropout = 'none'", "dropout must be a number"),
    ("tie_weights = 1", "tie_weights must be true or false, not 1"),
    ("[n_layer]", "n_layer must be"), ("data = ['a']", "data must be text"),
    ("n_layer = ", "is no TOML"), ("\x00", "is no TOML"),
])
def test_files_that_cannot_be_are_refused_by_key(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read("--config", str(path))


def test_directory_as_configuration_is_refused(tmp_path):
    for name in (str(tmp_path), ""):
        with pytest.raises(UserError, match="there is no configuration"):
            read("--config", name)


def test_resumed_run_keeps_its_values_but_for_those_that_may_change():
    saved = read("--seed", "5").values | dataclasses.asdict(read("--seed", "5").training())
    request = read("--max-iters", "9000", "--seed", "5", "--log-interval", "3").resumed(saved)
    assert request.training().max_iters == 9000 and request.training().log_interval == 3
    assert request.training().lr_decay_iters == 4200
    for word, name in (("--seed=6", "seed"), ("--n-layer=9", "n-layer"), ("--beta1=0", "beta1")):
        with pytest.raises(UserError, match=f"a resumed run keeps its --{name}"):
            read(word).resumed(saved)
