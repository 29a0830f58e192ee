"""Files that somebody else may have put there: each ends in one line that names it, or in a run,
never in a hang or a traceback."""

import contextlib
import json
import os
import random
import shutil
import socket

import pytest

import sample as sample_script
import train as train_script
from npgpt import UserError, reading
from npgpt.checkpoints.tensors import read_tensors
from npgpt.cli.command import run_command
from npgpt.reading import LARGEST, open_regular, read_bytes, read_json
from npgpt.report import losses
from npgpt.training.request import read_command_line
from npgpt.training.setup import build_run
from tests.commands.tiny import TINY

CHECKPOINT = "run/checkpoint-10/"
READ = ["run/latest", "run/best", *(CHECKPOINT + name for name in (
    "config.json", "model.safetensors", "tokenizer.json", "training.json", "training.safetensors",
    "SHA256SUMS"))]


def link_to_zeros(path):
    path.symlink_to("/dev/zero")


def dangling_link(path):
    path.symlink_to("nowhere")


def huge_file(path):
    with open(path, "wb") as file:
        file.truncate(2**42)                     # sparse: takes no space


def end_of_a_socket(path):
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(path.parent):
        listening.bind(path.name)                # its path may be 108 bytes long


KINDS = {"pipe": os.mkfifo, "socket": end_of_a_socket, "directory": os.mkdir,
         "endless": link_to_zeros, "dangling": dangling_link, "huge": huge_file}


@pytest.fixture
def saved(run, home):
    assert run(train_script.main, *TINY, "--workers=1", "--max-iters=10",
               "--out-dir=run").status == 0
    return home


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("hashed", [True, False])
def test_other_kinds_of_files_are_refused_by_name(saved, run, kind, name, hashed):
    path = saved / name
    path.unlink()
    KINDS[kind](path)
    if not hashed and not name.endswith("SHA256SUMS"):
        (saved / CHECKPOINT / "SHA256SUMS").unlink()
    result = run(train_script.main, "--resume", "--max-iters=11", "--out-dir=run")
    if name.endswith("SHA256SUMS") and kind == "dangling":
        return                                   # as if it were missing
    assert result.status == 2 and result.err.count("\n") == 1
    assert name.removeprefix("run/") in result.err
    if name in ("run/best", CHECKPOINT + "training.safetensors", CHECKPOINT + "training.json"):
        return                                   # sample.py may not need it
    result = run(sample_script.main, "--max-new-tokens=2", "--out-dir=run")
    assert result.status == 2 and result.err.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_text_configuration_and_metrics_are_checked_too(run, home, kind):
    KINDS[kind](home / "there")
    for words in (["--data=there"], ["--config=there"]):
        result = run(train_script.main, *words, "--out-dir=run")
        assert result.status == 2 and "there" in result.err and result.err.count("\n") == 1
        assert not (home / "run").exists()
    (home / "run").mkdir()
    KINDS[kind](home / "run/metrics.jsonl")
    result = run(losses.main, "run", "loss.png")
    assert result.status == 2 and "run/metrics.jsonl" in result.err


def test_text_whose_ids_do_not_fit_on_the_disk_is_named(run, home):
    huge_file(home / "big.txt")
    result = run(train_script.main, "--data=big.txt", "--out-dir=run")
    assert result.status == 2
    assert result.err.startswith(f"train.py: big.txt: the token ids need about {2**42:,} bytes, ")
    assert result.err.endswith(f"bytes are free in {home}\n")


def attempt():
    """Build the resumed run -> whether it was refused, in a line that can be read."""
    run = None
    try:
        run = build_run(read_command_line(["--resume", "--max-iters=11", "--out-dir=run"],
                                          lambda *_: "laptop"))
    except UserError as error:
        assert len(str(error)) < 500 and "\n" not in str(error)
        return True
    finally:
        if run:
            run.directory.close()
    return False


@pytest.mark.parametrize("name", [name for name in READ if "safetensors" not in name])
def test_flipped_bits_are_refused_or_harmless(saved, name):
    """Without the hashes, a flipped bit may be a valid value. 200 of them; all were tried once."""
    path = saved / name
    before, rng = path.read_bytes(), random.Random(1)
    for hashed in (True, False) if name.startswith(CHECKPOINT) else (True,):
        if not hashed:
            (saved / CHECKPOINT / "SHA256SUMS").unlink()
            if name.endswith("SHA256SUMS"):
                break
        for at in rng.sample(range(8 * len(before)), min(100, 8 * len(before))):
            damaged = bytearray(before)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(damaged)
            refused = attempt()
            if hashed and name.startswith(CHECKPOINT) and not name.endswith("SHA256SUMS"):
                assert refused, at
        path.write_bytes(before)


@pytest.mark.parametrize("key", ["best_val_loss", "step", "values", "sha256", "format", "seconds"])
def test_state_without_a_key_is_refused_in_one_line(saved, run, key):
    path = saved / CHECKPOINT / "training.json"
    state = json.loads(path.read_text())
    del state[key]
    path.write_text(json.dumps(state))
    (saved / CHECKPOINT / "SHA256SUMS").unlink()
    result = run(train_script.main, "--resume", "--max-iters=11", "--out-dir=run")
    assert result.status == 2 and "training.json is damaged" in result.err and key in result.err


def test_name_that_is_twice_in_a_file_is_refused(tmp_path):
    """Another program would read another array, or another value."""
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, ' \
             b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"x\.safetensors is damaged .*'a' is there twice"):
        read_tensors(tmp_path / "x.safetensors", {"a": (1,)})
    (tmp_path / "x.json").write_text('{"a": {"c": 0, "b": 1, "b": 2}}')
    with pytest.raises(UserError, match=r"x\.json is not valid JSON: 'b' is there twice"):
        read_json(tmp_path / "x.json")


def test_header_that_claims_to_be_huge_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
        read_tensors(tmp_path / "x.safetensors", {"a": (1,)})


def test_small_files_have_a_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"x" * 11)
    assert read_bytes(path, 11) == b"x" * 11
    with pytest.raises(UserError, match=r"a\.json has 11 bytes; at most 10 are expected"):
        read_bytes(path, 10)
    huge_file(tmp_path / "b.json")
    with pytest.raises(UserError, match=rf"b\.json has .* bytes; at most {LARGEST:,} are"):
        read_bytes(tmp_path / "b.json")


def test_refused_file_is_closed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    huge_file(tmp_path / "huge")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(UserError, match="pipe is not a regular file"):
            open_regular(tmp_path / "pipe")
        with pytest.raises(UserError, match="bytes of memory are free"):
            open_regular(tmp_path / "huge")
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_that_just_fits_is_loaded_and_small_ones_always(tmp_path, monkeypatch):
    path, free = tmp_path / "x", {}
    path.write_bytes(b"abc")
    monkeypatch.setattr(reading, "free_memory", lambda: free[0])
    for free[0] in (None, 0, 3):
        with open_regular(path) as file:
            assert file.read() == b"abc"
    monkeypatch.setattr(reading, "LARGEST", 1)
    for free[0] in (None, 3, 4):
        open_regular(path).close()
    free[0] = 2
    with pytest.raises(UserError, match="x has 3 bytes, and 2 bytes of memory are free"):
        open_regular(path)


def test_text_of_one_character_is_refused(run, home):
    (home / "a.txt").write_text("a" * 1000)
    result = run(train_script.main, "--data=a.txt", "--out-dir=run")
    assert (result.status, result.out) == (2, "")
    assert result.err == ("train.py: the text a.txt contains no character but 'a'; there is "
                          "nothing to learn\n")


def test_broken_cupy_is_mentioned_where_the_cpu_is_chosen_automatically(run, home, monkeypatch):
    folder = home / "broken/cupy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AttributeError('numpy has no such thing')")
    monkeypatch.syspath_prepend(str(home / "broken"))
    result = run(train_script.main, *TINY, "--workers=1", "--max-iters=1", "--out-dir=run")
    assert result.status == 0
    assert ("note    on the CPU, since there is no GPU: CuPy is installed but cannot be imported: "
            "numpy has no such thing\n") in result.out
    result = run(train_script.main, *TINY, "--workers=1", "--max-iters=1", "--device=cpu",
                 "--out-dir=other")
    assert result.status == 0 and "CuPy" not in result.out
    result = run(train_script.main, *TINY, "--device=gpu", "--out-dir=third")
    assert result.status == 2 and "cannot be imported: numpy has no such thing" in result.err


def test_other_errors_keep_their_traceback():
    """Only errors that a user can do something about become one line."""
    with pytest.raises(ZeroDivisionError):
        run_command("train.py", lambda: 1 / 0)


def test_copy_of_a_run_is_resumed(saved, run):
    shutil.copytree(saved / "run", saved / "copy")
    assert run(train_script.main, "--resume", "--max-iters=11", "--out-dir=copy").status == 0
