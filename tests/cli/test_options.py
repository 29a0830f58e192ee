import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

import npgpt
from npgpt import UserError
from npgpt.cli.options import ALIASES, Options, Parser, option, suggestion
from npgpt.models.sampling import Sampling
from npgpt.training.config import FIELDS


@dataclass(frozen=True)
class Config(Options):
    n_layer: int = option(1, "layers; see `max_rate`", at_least=1, at_most=9)
    max_rate: float = option(0.5, "of 100 %", above=0, below=1)
    device: str = option("cpu", "where", choices=("auto", "cpu", "gpu"))
    mode: str = option("fast", "how", choices=("fast", "exact"))
    tied: bool = option(True, "one matrix")
    data: str | None = option(None, "a text", metavar="FILE")
    learning_rate: float | None = option(None, "a rate")


FLAGS = dataclasses.fields(Config)


def parse(*words):
    parser = Parser(prog="program")
    parser.add_argument("--out-dir")
    parser.add_argument("--resume", action="store_true")
    parser.add_options("all", FLAGS, {})
    return parser.parse(list(words), FLAGS)


@pytest.mark.parametrize(("values", "message"), [
    ({"n_layer": 0}, "`n_layer` must be at least 1, got 0"),
    ({"n_layer": 10}, "`n_layer` must be at most 9, got 10"),
    ({"n_layer": "three"}, "`n_layer` must be a whole number, got 'three'"),
    ({"n_layer": 1.5}, "`n_layer` must be a whole number, got 1.5"),
    ({"n_layer": True}, "`n_layer` must be a whole number, got True"),
    ({"n_layer": None}, "`n_layer` must be a whole number, got None"),
    ({"n_layer": [1]}, "`n_layer` must be a whole number, got [1]"),
    ({"max_rate": 0}, "`max_rate` must be above 0, got 0"),
    ({"max_rate": 1}, "`max_rate` must be below 1, got 1"),
    ({"max_rate": 1.25}, "`max_rate` must be below 1, got 1.25"),
    ({"max_rate": "much"}, "`max_rate` must be a number, got 'much'"),
    ({"max_rate": float("nan")}, "`max_rate` must be a finite number, got nan"),
    ({"max_rate": 10**400}, "`max_rate` must be a finite number, got inf"),
    ({"tied": 1}, "`tied` must be true or false, got 1"),
    ({"data": 3}, "`data` must be text, got 3"),
    ({"device": "moon"}, "`device` must be auto, cpu or gpu, got 'moon'"),
    ({"device": "atuo"}, "`device` must be auto, cpu or gpu, got 'atuo'; did you mean 'auto'?"),
    ({"mode": ["fast"]}, "`mode` must be fast or exact, got ['fast']"),
])
def test_message_says_what_an_invalid_value_must_be_and_what_it_is(values, message):
    with pytest.raises(UserError) as error:
        Config(**values)
    assert error.value.message == message


def test_valid_values_are_accepted_including_numpy_scalars():
    c = Config(n_layer=np.int64(9), max_rate=np.float32(0.5), learning_rate=1)
    assert (c.n_layer, c.max_rate, c.learning_rate) == (9, 0.5, 1.0)
    assert type(c.n_layer) is int and type(c.learning_rate) is float
    assert Config(n_layer=1).data is None


@pytest.mark.parametrize(("words", "message"), [
    ("--lr 1e-3", "unknown option --lr; did you mean --learning-rate? --help lists all options"),
    ("--lr=1e-3", "unknown option --lr; did you mean --learning-rate? --help lists all options"),
    ("--layers 3", "unknown option --layers; did you mean --n-layer? --help lists all options"),
    ("--out x", "unknown option --out; did you mean --out-dir? --help lists all options"),
    ("--n-layers 3", "unknown option --n-layers; did you mean --n-layer? --help lists all options"),
    ("--n_layer 3", "unknown option --n_layer; did you mean --n-layer? --help lists all options"),
    ("--no-tie", "unknown option --no-tie; did you mean --no-tied? --help lists all options"),
    ("--zzz", "unknown option --zzz; --help lists all options"),
    ("--epochs 3", "unknown option --epochs; --help lists all options"),      # Config has no steps
    ("extra", "unexpected argument 'extra'; --help lists all options"),
    ("--n-layer", "--n-layer needs a value; --help lists all options"),
    ("--resume=yes", "--resume takes no value, got 'yes'; --help lists all options"),
    ("--n-layer=x", "`n_layer` must be a whole number, got 'x'"),
])
def test_invalid_command_line_is_refused_with_a_suggestion(words, message):
    with pytest.raises(UserError) as error:
        parse(*words.split())
    assert error.value.message == message


def test_flags_that_are_not_given_are_absent():
    assert parse() == {}
    assert parse("--n-layer=3", "--no-tied", "--max-rate", "1e-1", "--resume") == {
        "n_layer": 3, "tied": False, "max_rate": 0.1, "resume": True}


def test_help_names_other_options_as_flags_and_a_path_as_a_file(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "layers; see --max-rate [1]" in text and "of 100 % [0.5]" in text
    assert "--data FILE " in text and "--max-rate X " in text and "--n-layer N " in text
    assert "--device {auto,cpu,gpu}" in text and "`" not in text


def test_every_parser_has_a_version_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--version")
    assert (stop.value.code, capsys.readouterr().out) == (0, f"npgpt {npgpt.__version__}\n")


def test_aliases_name_options_and_are_not_options_themselves():
    known = FIELDS.keys() | {f.name for f in dataclasses.fields(Sampling)} | {"out_dir"}
    assert set(ALIASES.values()) <= known
    assert not ALIASES.keys() & known


def test_suggestion_is_empty_if_nothing_is_similar():
    assert suggestion("lr", FIELDS) == "; did you mean 'learning_rate'?"
    assert suggestion("n_layr", FIELDS) == "; did you mean 'n_layer'?"
    assert suggestion("xyzzy", FIELDS) == ""
