import json

import pytest

from npgpt import UserError
from npgpt.report.losses import draw_losses, main, read_metrics

LINES = [{"step": 0, "train_loss": 4.2, "val_loss": 4.1}, {"step": 5, "loss": 3.0},
         {"step": 10, "loss": 2.5}, {"step": 10, "train_loss": 2.4, "val_loss": 2.6},
         {"step": 10, "whole_val_loss": 2.61}]


def run_with(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


def as_lines(values):
    return "".join(json.dumps(value) + "\n" for value in values)


def test_metrics_are_read_line_by_line(tmp_path):
    assert read_metrics(run_with(tmp_path, as_lines(LINES))) == LINES


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is damaged"), ("[1]\n", "not every line is an object with a step"),
    (as_lines(LINES[:1]), "contains no training step"), ("", "contains no training step"),
])
def test_metrics_that_are_damaged_or_empty_are_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_metrics(run_with(tmp_path, text))


def test_directory_without_metrics_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl is missing"):
        read_metrics(tmp_path)


def test_missing_argument_is_named(capsys):
    assert main(["out/laptop"]) == 2
    assert capsys.readouterr() == ("", "npgpt report: the following arguments are required: "
                                   "PICTURE; --help lists all options\n")


def test_help_explains_the_arguments(capsys):
    assert main(["--help"]) == 0
    assert "directory of a run" in capsys.readouterr().out


def test_picture_is_drawn_in_a_known_format_only(matplotlib, tmp_path):
    draw_losses(LINES, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="cannot be written"):
        draw_losses(LINES, tmp_path / "loss.xyz")
