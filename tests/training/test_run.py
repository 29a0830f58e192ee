import json
import os

import numpy as np
import pytest

from npgpt import GPT, GPTConfig, UserError
from npgpt.backend import get_device
from npgpt.text.tokenizer import CharTokenizer
from npgpt.training import run as runs
from npgpt.training.optim import AdamW
from npgpt.training.run import Run


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def save(run, step, is_best=False):
    model = GPT(GPTConfig(vocab_size=2, block_size=4, n_layer=1, n_head=1, n_embd=4))
    optimizer = AdamW(model.params, get_device("cpu"), 0.9, 0.99, 0.1)
    run.save(model, CharTokenizer("ab"), optimizer, {"step": step}, is_best=is_best)


def test_each_run_gets_a_directory_of_its_own():
    names = []
    for _ in range(3):
        run = Run.new(None, "laptop", False)
        run.begin(0)
        names.append(str(run.path))
    assert names == ["out/laptop", "out/laptop-2", "out/laptop-3"]


def test_choosing_a_directory_writes_nothing(tmp_path):
    Run.new(None, "laptop", False)
    Run.new(tmp_path / "deep" / "run", "laptop", False)
    assert list(tmp_path.iterdir()) == []


def test_directory_that_holds_a_run_is_refused_or_overwritten(tmp_path):
    run = Run.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 5)
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds a run already; --resume .* --overwrite"):
        Run.new(tmp_path / "r", "laptop", False)
    again = Run.new(tmp_path / "r", "laptop", True)
    assert (tmp_path / "r" / "checkpoint-5").exists()      # until the new run begins
    again.begin(0)
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["metrics.jsonl", "notes.txt"]


def test_directory_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        Run.new(tmp_path / "file", "laptop", False)
    with pytest.raises(UserError, match="is a file"):
        Run.new(tmp_path / "file" / "under", "laptop", False)
    with pytest.raises(UserError, match="cannot be written to"):
        Run.new(runs.Path("/proc/nothing"), "laptop", False)


def test_only_latest_and_best_are_kept(tmp_path):
    run = Run.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 10, is_best=True)
    assert (run.checkpoint("latest").name, run.checkpoint("best").name) == ("checkpoint-10",) * 2
    save(run, 20)
    save(run, 30)
    assert {p.name for p in run.path.glob("checkpoint-*")} == {"checkpoint-10", "checkpoint-30"}
    save(run, 40, is_best=True)
    assert {p.name for p in run.path.glob("checkpoint-*")} == {"checkpoint-40"}


def test_newest_run_is_the_one_that_saved_last(tmp_path):
    with pytest.raises(UserError, match="there is no run under out/"):
        Run.existing(None)
    for number, name in enumerate(("b", "a", "c")):
        run = Run.new(runs.OUT / name, "laptop", False)
        run.begin(0)
        save(run, 1)
        os.utime(run.path / "latest", (1000 + number % 2, 1000 + number % 2))
    assert Run.existing(None).path.name == "a"
    assert Run.existing(tmp_path / "out" / "b").path.name == "b"


def test_directory_without_a_run_is_refused(tmp_path):
    for path, message in ((tmp_path / "no", "there is no directory"), (tmp_path, "no checkpoint")):
        with pytest.raises(UserError, match=message):
            Run.existing(path)


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "checkpoint-7", "", "."])
def test_name_of_a_checkpoint_must_be_one(name, tmp_path):
    run = Run.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 1)
    (tmp_path / "elsewhere").mkdir()
    (run.path / "latest").write_text(name + "\n")
    with pytest.raises(UserError, match="there is no such checkpoint"):
        run.checkpoint("latest")


def test_state_comes_back(tmp_path):
    run = Run.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 3)
    state, tokenizer, path = run.load_state()
    assert state == {"step": 3} and tokenizer.characters == "ab" and path.name == "checkpoint-3"
    data = bytearray((path / "training.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "training.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"training\.safetensors is damaged"):
        run.load_state()


def test_metrics_of_steps_that_come_again_are_dropped(tmp_path):
    run = Run.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    for step in (10, 20, 20, 30):
        run.log(step=step, loss=np.float64(0.5).item())
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4')                         # a crash in the middle of a line
    run.begin(20)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 20]
