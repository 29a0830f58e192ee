"""`npgpt COMMAND ...`; tests/commands runs the commands themselves."""

import pytest

import npgpt
from npgpt import __main__ as npgpt_main
from npgpt.report import losses


def run(capsys, *words):
    """-> exit status, stdout, stderr."""
    return npgpt_main.main(words), *capsys.readouterr()


def test_version_is_one_line(capsys):
    assert run(capsys, "--version") == (0, f"npgpt {npgpt.__version__}\n", "")


@pytest.mark.parametrize("script", ["train", "sample", "explain", "report"])
def test_every_command_with_flags_has_a_version_flag(script, capsys):
    assert run(capsys, script, "--version") == (
        0, f"npgpt {npgpt.__version__}\n", "")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(words, capsys):
    status, text, _ = run(capsys, *words)
    assert status == 0
    assert [name for name in npgpt_main.COMMANDS if f"\n  {name} " not in text] == []


@pytest.mark.parametrize(("word", "hint"), [
    ("trian", "; did you mean 'train'? the commands are train, sample, explain, tokenizer, eval, "
     "merge, ranks, report"),
    ("xyzzy", "; the commands are train, sample, explain, tokenizer, eval, merge, ranks, report"),
])
def test_unknown_command_is_refused(word, hint, capsys):
    assert run(capsys, word) == (2, "", f"npgpt: unknown command {word!r}{hint}\n")


def test_report_plots_the_losses_of_a_run(capsys, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(losses, "draw_losses", lambda *what: drawn.append(what))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    assert run(capsys, "report", str(tmp_path), "loss.png") == (0, "", "")
    assert drawn == [([{"step": 1, "loss": 2.5}], "loss.png")]


def test_report_of_a_missing_run_is_refused(capsys, tmp_path):
    status, _, message = run(capsys, "report", str(tmp_path / "no"), "loss.png")
    assert status == 2
    assert message.startswith(f"npgpt report: {tmp_path}/no/metrics.jsonl is missing")
