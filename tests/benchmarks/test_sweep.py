"""The sweep finds the best values, reads no validation split, and goes on where it was stopped."""

import json
import re
import shutil
import signal
import subprocess
import time
import tomllib

import pytest

from benchmarks import sweep
from tests.benchmarks import tiny

TRY = """
[try]
"learning_rate, min_lr" = [[0.0001, 1e-5], [0.1, 0.01]]
muon_lr = [0.01, 0.3, 1e-2]
"""
LOW = {"learning_rate": 1e-5, "min_lr": 1e-6}          # so low that what is tried is better


def write(folder, tried=TRY, **values):
    """-> the path of a sweep of the tiny configuration."""
    path = folder / "sweep.toml"
    path.write_text(f'config = "{tiny.write(folder, **LOW | values)}"\n{tried}')
    return path


def run(folder, *arguments):
    """-> exit status and output of the sweep that is written in the folder."""
    return tiny.output(sweep.main, folder / "sweep.toml", "--data", folder / "text.txt",
                       "--out-dir", folder / "out", *arguments)


def last(folder, trial):
    """-> the last line of the metrics of a trial."""
    return json.loads((folder / "out" / trial / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A folder with a finished sweep, and its output."""
    folder = tmp_path_factory.mktemp("sweep")
    write(folder)
    status, out = run(folder)
    assert status == 0
    return folder, out


@pytest.fixture
def finished(once, tmp_path):
    """The same, in a copy of its own."""
    folder = tmp_path / "copy"
    shutil.copytree(once[0], folder)
    write(folder)                          # with the path of the copy's configuration
    return folder, once[1]


def table(out):
    """-> option, value, loss of each row, and the rows in bold."""
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")][2:]
    return ([tuple(cell.strip("*") for cell in row) for row in rows],
            [tuple(cell.strip("*") for cell in row) for row in rows if row[1].startswith("**")])


def test_lowest_loss_of_each_option_is_chosen_and_the_next_option_begins_there(once):
    folder, out = once
    rows, chosen = table(out)
    rates = "learning_rate, min_lr"
    assert [row[:2] for row in rows] == [
        (rates, "1e-05, 1e-06"), (rates, "0.0001, 1e-05"), (rates, "0.1, 0.01"),
        ("muon_lr", "0.01"), ("muon_lr", "0.3")]
    for option, value, loss in chosen:
        assert float(loss) == min(float(row[2]) for row in rows if row[0] == option), value
    assert chosen[0][1] == "0.1, 0.01"
    trials = {path.name for path in (folder / "out").iterdir() if path.is_dir()}
    assert trials == {"as-is", "learning_rate=0.0001,min_lr=1e-05", "learning_rate=0.1,min_lr=0.01",
                      "learning_rate=0.1,min_lr=0.01,muon_lr=0.3"}
    for trial in trials:
        line = f"{trial}: {last(folder, trial)['whole_val_loss']:.4f} after 4 steps"
        assert out.splitlines().count(line) == 1         # the same values are trained once


def test_chosen_values_are_toml_and_the_configuration_has_its_loss(once):
    folder, out = once
    _, chosen = table(out)
    lines = "\n".join(re.findall(r"^\w+ = .*$", out, re.MULTILINE))
    values = tomllib.loads(lines)
    assert list(values) == ["learning_rate", "min_lr", "muon_lr"]
    assert [f"{values['learning_rate']}, {values['min_lr']}", str(values["muon_lr"])] == [
        value for _, value, _ in chosen]
    assert f"as it is: {last(folder, 'as-is')['whole_val_loss']:.4f}; " in out
    assert f"with the chosen values: {chosen[-1][2]}\n" in out


def test_trials_read_exactly_the_training_split(once):
    folder, _ = once
    first = (folder / "out" / "first.txt").read_text()
    assert first == tiny.TEXT[:int(0.9 * len(tiny.TEXT))]
    for latest in (folder / "out").glob("*/latest"):
        state = latest.parent / latest.read_text().strip() / "training.json"
        assert json.loads(state.read_text())["sha256"] == sweep.sha256(first)
    assert "No trial has read the validation split, the last 10 % of the text." in once[1]


def test_finished_trials_are_not_trained_again(finished, monkeypatch):
    folder, out = finished
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a trial was started"))
    status, again = run(folder)
    assert status == 0
    assert table(again) == table(out)


def test_unfinished_trial_is_resumed_and_one_without_a_checkpoint_begins_again(finished):
    folder, out = finished
    resumed, begun = (folder / "out" / name / "metrics.jsonl"
                      for name in ("as-is", "learning_rate=0.1,min_lr=0.01"))
    before = resumed.read_text().splitlines()
    resumed.write_text("\n".join(before[:-1]) + "\n")
    shutil.rmtree(begun.parent)
    begun.parent.mkdir()
    begun.write_text('{"step": 0, "of": "a killed run"}\n')
    status, again = run(folder)
    assert status == 0
    assert table(again) == table(out)
    assert resumed.read_text().splitlines()[:-1] == before[:-1]        # with their seconds
    assert "a killed run" not in begun.read_text()


def test_ctrl_c_stops_the_trials_with_a_checkpoint_and_the_sweep_goes_on(tmp_path, monkeypatch):
    write(tmp_path, "[try]\nmuon_lr = [0.01]")
    metrics, sleep = tmp_path / "out" / "as-is" / "metrics.jsonl", time.sleep

    def interrupt(seconds):
        if (metrics.parent / "latest").exists():
            signal.raise_signal(signal.SIGINT)
        sleep(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)   # it may be ignored here
        status, out = run(tmp_path, "--steps", "3000")
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert re.fullmatch(r"stopped; to go on: python -m benchmarks\.sweep .* --steps 3000\n", out)
    before = metrics.read_text()
    assert "whole_val_loss" not in before
    status, _ = run(tmp_path, "--steps", "3000")
    assert status == 0
    assert metrics.read_text().startswith(before)
    assert last(tmp_path, "as-is")["step"] == 3000


def test_trial_that_diverges_is_shown_and_not_chosen(tmp_path):
    write(tmp_path, "[try]\nmuon_lr = [100, 0.01]", learning_rate=100.0, grad_clip=0.0)
    status, out = run(tmp_path, "--steps", "30")
    assert status == 0
    rows, chosen = table(out)
    assert rows[0] == ("muon_lr", "100.0", "diverged")
    assert [row[1] for row in chosen] == ["0.01"]


@pytest.mark.parametrize(("tried", "message"), [
    ("[try]\nmuon_rl = [0.1]", "unknown option 'muon_rl'; did you mean 'muon_lr'?"),
    ("[try]\nmuon_lr = [-1.0]", "muon_lr must be above 0, got -1"),
    ("[try]\nmuon_lr = 0.1", "muon_lr must be a list of values, got 0.1"),
    ("[try]\nmuon_lr = []", "muon_lr must be a list of values, got []"),
    ("[try]\n'learning_rate, min_lr' = [[0.1]]", "takes lists of 2 values, got [0.1]"),
    ("[try]\nmin_lr = [0.1]", "min_lr must be at most learning_rate, which is 1e-05, got 0.1"),
    ("[try]\nworkers = [1]", "workers is the same in all trials; leave it out"),
    ("[tries]\nmuon_lr = [0.1]", "unknown key 'tries'"),
    ("", "[try] is missing or empty"),
    ("[try", "is not valid TOML"),
])
def test_invalid_sweep_is_refused_in_one_line_and_nothing_is_written(
        tmp_path, capsys, tried, message):
    write(tmp_path, tried)
    assert run(tmp_path)[0] == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_sweep_configuration_and_text_are_refused(tmp_path, capsys):
    assert sweep.main(["nothing"]) == 2
    assert "there is no sweep 'nothing'" in capsys.readouterr().err
    path = write(tmp_path)
    assert run(tmp_path, "--data", tmp_path / "none.txt")[0] == 2
    assert "there is no file" in capsys.readouterr().err
    assert run(tmp_path, "--at-once", "0")[0] == 2
    assert "--at-once must be at least 1, got 0" in capsys.readouterr().err
    path.write_text(f'config = "nothing"\n{TRY}')
    assert run(tmp_path)[0] == 2
    assert "there is no configuration 'nothing'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_changed_configuration_or_text_is_refused_and_a_strange_directory(finished, capsys):
    folder, _ = finished
    tiny.write(folder, **LOW, weight_decay=0.2)
    assert run(folder)[0] == 2
    assert "(weight_decay was 0.1, and is 0.2)" in capsys.readouterr().err
    tiny.write(folder, **LOW)
    (folder / "text.txt").write_text(tiny.TEXT + "more")
    assert run(folder)[0] == 2
    assert "the text has changed since" in capsys.readouterr().err
    (folder / "out" / "settings.json").unlink()
    assert run(folder)[0] == 2
    assert "which npgpt did not write; choose another directory" in capsys.readouterr().err
