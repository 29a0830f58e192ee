"""The record trains both configurations with each seed once, and reports their final losses."""

import json
import statistics
import subprocess

import pytest

from benchmarks import record
from tests.benchmarks import tiny


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Without PyTorch, whose version the line has."""
    monkeypatch.setattr(record, "machine", lambda: "the machine")


def run(folder, *arguments):
    """-> exit status and output."""
    return tiny.output(record.main, folder / "tiny.toml", "--against", folder / "other.toml",
                       "--data", folder / "text.txt", "--out-dir", folder / "out", *arguments)


def test_table_has_mean_and_spread_of_runs_that_are_trained_once(tmp_path, monkeypatch):
    tiny.write(tmp_path)
    tiny.write(tmp_path, "other", n_embd=16)
    status, out = run(tmp_path, "--seeds", 1, 2, "--steps", 3)
    assert status == 0
    lines = {name: [json.loads((tmp_path / "out" / f"{name},seed={seed}" / "metrics.jsonl")
                               .read_text().splitlines()[-1]) for seed in (1, 2)]
             for name in ("tiny", "other")}
    assert [line.split(":")[0] for line in out.splitlines() if ",seed=" in line] == [
        "tiny,seed=1", "other,seed=1", "tiny,seed=2", "other,seed=2"]
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(*lines.values()))
    for name, parameters, over in (("tiny", "1,", ratio), ("other", "4,", 1)):
        losses = [line["whole_val_loss"] for line in lines[name]]
        assert losses[0] != losses[1]
        row = next(line for line in out.splitlines() if line.startswith(f"| {name} | {parameters}"))
        assert (f"| 3 | {statistics.fmean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f}) |"
                in row)
        assert row.endswith(f"| {over:.2f} |")
    assert out.startswith("the machine\n")

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a run was started"))
    assert run(tmp_path, "--seeds", 1, 2, "--steps", 3) == (0, out)


def test_changed_configuration_and_invalid_requests_are_refused(tmp_path, capsys):
    tiny.write(tmp_path)
    tiny.write(tmp_path, "other", n_embd=16)
    assert run(tmp_path, "--seeds", -1)[0] == 2
    assert "--seed must be at least 0, got -1" in capsys.readouterr().err
    assert run(tmp_path, "--against", "nothing")[0] == 2
    assert "there is no configuration 'nothing'" in capsys.readouterr().err
    (tmp_path / "more").mkdir()
    same = tiny.write(tmp_path / "more")
    assert run(tmp_path, "--against", same)[0] == 2
    assert "have the same name; rename one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, "--seeds", 1, "--steps", 1)[0] == 0
    tiny.write(tmp_path, "other", n_embd=24)
    assert run(tmp_path, "--seeds", 1, "--steps", 1)[0] == 2
    assert "the configuration other has changed" in (said := capsys.readouterr().err)
    assert "(n_embd was 16, and is 24)" in said
    tiny.write(tmp_path, "third")
    status, out = run(tmp_path, "--against", tmp_path / "third.toml", "--seeds", 1, "--steps", 1)
    assert status == 0                                   # what is there stays, and more is added
    assert "\n| third | 1," in out
    assert run(tmp_path, "--seeds", 1, "--steps", 1)[0] == 2
