import errno
import json
import os
import re
import shutil
import tempfile

import numpy as np
import pytest

from npgpt import GPT, GPTConfig, UserError
from npgpt.checkpoints import run as runs
from npgpt.checkpoints.adapter import digest
from npgpt.checkpoints.run import RunDirectory
from npgpt.errors import RunError
from npgpt.optim import AdamW
from npgpt.reading import LARGEST
from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import CharTokenizer


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def save(run, step, loss=None, tokenizer=None):
    """loss: the lowest so far."""
    model = GPT(GPTConfig(vocab_size=2, block_size=4, n_layer=1, n_head=1, n_embd=4))
    optimizer = AdamW(model.params)
    run.save(model, tokenizer or CharTokenizer("ab"), optimizer.state,
             {"step": step, "best_val_loss": loss})


def test_each_run_gets_its_own_directory():
    names = []
    for _ in range(3):
        run = RunDirectory.new(None, "laptop", False)
        run.begin(0)
        names.append(str(run.path))
    assert names == ["out/laptop", "out/laptop-2", "out/laptop-3"]


def test_choosing_a_directory_writes_nothing(tmp_path):
    RunDirectory.new(None, "laptop", False)
    RunDirectory.new(tmp_path / "deep" / "run", "laptop", False)
    assert list(tmp_path.iterdir()) == []


def test_directory_with_a_run_is_refused_or_overwritten(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    run.log(step=0, val_loss=4.2)
    save(run, 5)
    run.close()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"already contains a run; resume .* overwrite"):
        RunDirectory.new(tmp_path / "r", "laptop", False)
    again = RunDirectory.new(tmp_path / "r", "laptop", True)
    again.begin(0)
    again.log(step=0, val_loss=4.1)
    assert "4.2" in (again.path / "metrics.jsonl").read_text()
    assert again.checkpoint("latest").name == "checkpoint-5"      # until the new run has saved one
    save(again, 3)
    again.log(step=3, val_loss=4.0)
    again.close()
    assert re.findall(r"4\.\d", (again.path / "metrics.jsonl").read_text()) == ["4.1", "4.0"]
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [
        "best", "checkpoint-3", "latest", "metrics.jsonl", "notes.txt"]
    assert again.checkpoint("best").name == "checkpoint-3"


def test_checkpoint_of_adapters_remembers_their_base(tmp_path):
    config = GPTConfig(vocab_size=2, block_size=4, n_layer=1, n_head=1, n_embd=4)
    GPT(config).save_pretrained(tmp_path / "base")
    run, base = RunDirectory.new(tmp_path / "r", "laptop", False), (
        str(tmp_path / "base"), digest(tmp_path / "base"))
    run.begin(0)
    run.save(GPT(config, lora_rank=1), CharTokenizer("ab"), {}, {"step": 1, "best_val_loss": None},
             base)
    assert (run.path / "checkpoint-1/adapter_config.json").exists()
    assert not (run.path / "checkpoint-1/model.safetensors").exists()
    state, _, path = run.load_state()
    assert (state["base"], path.name) == (base, "checkpoint-1")


def test_checkpoint_names_the_tokens_between_which_a_text_is(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    tokenizer = BPETokenizer.train(["an end"], 260)
    save(run, 1, tokenizer=tokenizer)
    config = json.loads((run.path / "checkpoint-1/config.json").read_text())
    assert config["bos_token_id"] == config["eos_token_id"] == tokenizer.end is not None


def test_run_that_was_killed_before_its_metrics_had_their_place_is_finished(tmp_path, monkeypatch):
    """After its last checkpoint took the place of another run."""
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 5)
    run.close()
    again = RunDirectory.new(tmp_path / "r", "laptop", True)
    again.begin(0)
    again.log(step=3, final_val_loss=4.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "follow_latest", interrupt)
        save(again, 3)
    again.close()
    found = RunDirectory.existing(tmp_path / "r")
    assert found.load_state()[0]["step"] == 3
    assert found.is_finished(3)
    found.close()


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("left", ["latest", "best", "checkpoint-5/training.json"])
def test_directory_with_a_part_of_a_run_is_refused(left, tmp_path):
    (tmp_path / "r" / left).parent.mkdir(parents=True)
    (tmp_path / "r" / left).touch()
    with pytest.raises(UserError, match="already contains a run"):
        RunDirectory.new(tmp_path / "r", "laptop", False)


def test_only_files_of_a_run_are_removed(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 1)
    for name in ("checkpoint-mine", "checkpoint-7", "best-photos"):
        (run.path / name).mkdir()
    for name in ("checkpoint-notes.txt", ".checkpoint-notes.txt"):
        (run.path / name).touch()
    (run.path / "checkpoint-9").symlink_to(run.path / "checkpoint-1")
    (run.path / ".checkpoint-2.abc").mkdir()               # left by a run that was killed
    for name in (".latest.new", ".best.new", ".metrics.jsonl.new", ".metrics-abc.jsonl"):
        (run.path / name).touch()
    run.begin(1)
    assert {p.name for p in run.path.iterdir() if p.name.startswith(".")} == {
        ".lock", ".checkpoint-notes.txt"}
    save(run, 2, 3.5)
    run.close()
    assert {p.name for p in run.path.iterdir()} == {
        "best", "latest", "metrics.jsonl", "checkpoint-2", "checkpoint-mine", "checkpoint-7",
        "best-photos", "checkpoint-notes.txt", ".checkpoint-notes.txt", "checkpoint-9"}


def test_runs_started_at_the_same_time_get_different_directories():
    first, second = (RunDirectory.new(None, "laptop", False) for _ in range(2))
    first.begin(0)
    second.begin(0)
    assert [str(run.path) for run in (first, second)] == ["out/laptop", "out/laptop-2"]


def test_run_stopped_before_its_first_step_leaves_no_files(tmp_path):
    run = RunDirectory.new(tmp_path / "deep" / "r", "laptop", False)
    run.begin(0)
    run.log(step=0, val_loss=4.2)
    run.discard()
    assert not run.path.exists()
    run.begin(0)
    (run.path / "metrics.jsonl").unlink()                     # by the user, meanwhile
    run.discard()
    assert not run.path.exists()
    run.begin(0)
    save(run, 1)
    run.discard()
    assert run.checkpoint("best").name == "checkpoint-1"
    assert (run.path / "metrics.jsonl").exists()


def test_nonfinite_values_are_null_in_the_metrics(tmp_path):
    run = RunDirectory.new(tmp_path, "laptop", False)
    run.begin(0)
    run.log(step=1, loss=float("nan"), grad_norm=float("inf"), seconds=0.5)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1, "loss": None, "grad_norm": None, "seconds": 0.5}


def test_invalid_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        RunDirectory.new(tmp_path / "file", "laptop", False)
    with pytest.raises(UserError, match="is a file"):
        RunDirectory.new(tmp_path / "file" / "under", "laptop", False)
    with pytest.raises(UserError, match="cannot be written to"):
        RunDirectory.new(runs.Path("/proc/nothing"), "laptop", False)


def test_only_latest_and_best_are_kept(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 10, 3.5)
    assert (run.checkpoint("latest").name, run.checkpoint("best").name) == ("checkpoint-10",) * 2
    save(run, 20, 3.5)
    save(run, 30, 3.5)
    assert {p.name for p in run.path.glob("checkpoint-*")} == {"checkpoint-10", "checkpoint-30"}
    save(run, 40, 3.25)
    assert {p.name for p in run.path.glob("checkpoint-*")} == {"checkpoint-40"}


def test_checkpoint_is_found_though_a_process_that_trains_has_just_removed_it(tmp_path,
                                                                              monkeypatch):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 10, 3.5)
    steps = [20]

    def glob(path, pattern, original=runs.Path.glob):
        if steps:                                # `latest` has been read
            save(run, steps.pop(), 3.0)
        return original(path, pattern)

    monkeypatch.setattr(runs.Path, "glob", glob)
    assert RunDirectory(run.path).checkpoint("latest").name == "checkpoint-20"
    assert steps == []


def test_latest_and_best_are_one_line_each(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 10)
    save(run, 20)
    assert (run.path / "latest").read_bytes() == b"checkpoint-20\n"
    assert (run.path / "best").read_bytes() == b"checkpoint-10\n"


@pytest.mark.parametrize("begins", [True, False])
def test_resumed_run_keeps_its_best_checkpoint(begins, tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 1)
    run.close()
    resumed = RunDirectory.existing(tmp_path / "r")
    resumed.load_state()
    if begins:
        resumed.begin(1)
    save(resumed, 2)
    resumed.close()
    assert resumed.checkpoint("best").name == "checkpoint-1"


def test_newest_run_is_the_one_saved_last(tmp_path):
    with pytest.raises(UserError, match="there is no run in out/"):
        RunDirectory.existing(None)
    for number, name in enumerate(("b", "a", "c")):
        run = RunDirectory.new(runs.OUT / name, "laptop", False)
        run.begin(0)
        save(run, 1)
        run.close()
        os.utime(run.path / "latest", (1000 + number % 2, 1000 + number % 2))
    assert RunDirectory.existing(None).path.name == "a"
    assert RunDirectory.existing(tmp_path / "out" / "b").path.name == "b"


def test_directory_without_a_run_is_refused(tmp_path):
    for path, message in ((tmp_path / "no", "there is no directory"),
                          (tmp_path, "contains no checkpoint$")):
        with pytest.raises(UserError, match=message):
            RunDirectory.existing(path)


@pytest.mark.parametrize("older", [False, True])
def test_checkpoint_of_the_same_step_gets_a_name_of_its_own(older, tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 1)
    names = {path.name for path in run.checkpoint("latest").iterdir()}
    assert names == {"config.json", "model.safetensors", "SHA256SUMS", "training.json",
                     "training.safetensors", "tokenizer.json", "tokenizer_config.json"}
    if older:                                                  # npgpt 0.1.0 did not write it
        (run.checkpoint("latest") / "tokenizer_config.json").unlink()
    save(run, 1, 3.5)
    assert {path.name for path in run.checkpoint("latest").iterdir()} == names
    assert {path.name for path in run.path.iterdir() if path.is_dir()} == {"checkpoint-1-2"}


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "checkpoint-7", "", "."])
def test_invalid_name_of_a_checkpoint_is_refused(name, tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 1)
    (tmp_path / "elsewhere").mkdir()
    (run.path / "latest").write_text(name + "\n")
    with pytest.raises(UserError, match="is not a checkpoint"):
        run.checkpoint("latest")


def test_saved_state_is_loaded_unchanged(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 3, 2.5)
    state, tokenizer, path = run.load_state()
    assert state.pop("run") and state == {"step": 3, "best_val_loss": 2.5}
    assert tokenizer.characters == "ab" and path.name == "checkpoint-3"
    data = bytearray((path / "training.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "training.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"training\.safetensors is damaged"):
        run.load_state()


def test_run_that_cannot_be_resumed_is_refused(tmp_path, monkeypatch):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 3)
    (run.path / "best").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"best names '\ufffd', which is not a checkpoint"):
        run.load_state()
    (run.path / "best").unlink()
    (run.path / "best").mkdir()
    with pytest.raises(UserError, match=r"best is a directory"):
        run.load_state()
    (run.path / "best").rmdir()
    shutil.copytree(run.path / "checkpoint-3", run.path / "checkpoint-2")
    with pytest.raises(UserError, match=r"best is missing"):
        run.load_state()
    (run.path / "best").write_text("checkpoint-3\n")
    run.load_state()

    def refuse(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match="r cannot be written to: Read-only file system"):
        run.load_state()


def test_metrics_of_repeated_steps_are_removed(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    for step in (10, 20, 20, 30):
        run.log(step=step, loss=np.float64(0.5).item())
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": null}\n"\xe9"\n{"step": 4')    # and a crash in the middle of a line
    run.begin(20)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 20]
    (run.path / "metrics.jsonl").unlink()
    run.begin(20)
    assert (run.path / "metrics.jsonl").read_text() == ""


def test_checkpoint_that_was_left_without_a_name_is_replaced(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 2, 4.0)
    shutil.copytree(run.path / "checkpoint-2", run.path / "checkpoint-3")
    save(run, 3, 3.0)
    assert run.checkpoint("best") == run.checkpoint("latest") == run.path / "checkpoint-3"
    assert json.loads((run.path / "checkpoint-3/training.json").read_text())["step"] == 3


def test_name_that_is_damaged_while_a_run_saves_is_in_the_error(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 2, 4.0)
    (run.path / "best").write_text("mine\n")
    with pytest.raises(RunError, match=r"^.*/best names 'mine', which is not a checkpoint$"):
        save(run, 3, 5.0)


def test_run_is_finished_if_its_metrics_have_the_final_loss_of_that_step(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    run.log(step=3, loss=4.0)
    run.log(step=2, whole_val_loss=4.0)
    assert not run.is_finished(3) and run.is_finished(2)
    run.log(step=3, final_val_loss=4.0, windows=7)
    assert run.is_finished(3) and not run.is_finished(4)


def test_metrics_may_be_larger_than_other_files(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    with open(run.metrics, "wb") as file:
        file.truncate(LARGEST + 1)
    assert not run.is_finished(3)


def test_name_that_is_too_long_and_checkpoint_without_a_state_are_named(tmp_path):
    run = RunDirectory.new(tmp_path / "r", "laptop", False)
    run.begin(0)
    save(run, 2, 4.0)
    (run.path / "checkpoint-2/training.json").unlink()
    with pytest.raises(UserError, match=r"r/checkpoint-2/training\.json is missing, or not a"):
        run.checkpoint("latest")
    (run.path / "latest").write_text("x" * 1001)
    with pytest.raises(UserError, match=r"latest has 1,001 bytes; at most 1,000 are expected"):
        run.checkpoint("latest")


def test_missing_directory_is_named_with_what_the_option_takes(tmp_path):
    with pytest.raises(UserError) as error:
        RunDirectory.existing(tmp_path / "nowhere")
    assert error.value.message.endswith("nowhere; `out_dir` takes that of a run")
