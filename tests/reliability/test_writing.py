"""Disks that are full and memory that is limited: what could not be done, and what is kept."""

import errno
import os
import re
import resource
import subprocess

import pytest

import train as train_script
from npgpt import host
from npgpt.checkpoints.run import RunDirectory
from npgpt.cli.command import run_command
from tests.commands.tiny import ENVIRONMENT, TINY, command, metrics, process

WORDS = [*TINY, "--workers=1", "--max-iters=20", "--out-dir=run"]


def full_disk(*arguments, **values):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("step", "kept"), [
    (10, "there is no checkpoint yet"), (20, "run/checkpoint-10 is complete")])
def test_full_disk_while_saving_names_the_checkpoint_and_what_is_kept(run, home, monkeypatch, step,
                                                                      kept):
    original = RunDirectory.save

    def save(self, model, tokenizer, tensors, state, base=None):
        if state["step"] == step:
            full_disk()
        original(self, model, tokenizer, tensors, state, base)

    monkeypatch.setattr(RunDirectory, "save", save)
    result = run(train_script.main, *WORDS)
    assert result.status == 3
    assert result.err == (f"train.py: the checkpoint of step {step} cannot be written to run: "
                          f"No space left on device; {kept}\n")


def test_full_disk_while_logging_names_the_metrics_and_what_is_kept(run, home, monkeypatch):
    original = RunDirectory.log

    def log(self, **values):
        (full_disk if values["step"] == 15 else original)(self, **values)

    monkeypatch.setattr(RunDirectory, "log", log)
    result = run(train_script.main, *WORDS)
    assert result.status == 3
    assert result.err == ("train.py: the metrics cannot be written to run: No space left on "
                          "device; run/checkpoint-10 is complete\n")
    monkeypatch.undo()


def limited(kind, size):
    """The options of a process with this resource limit."""
    return {"preexec_fn": lambda: resource.setrlimit(kind, (size, size))}


def test_files_that_may_not_grow_end_in_one_line_with_the_checkpoint_whole(run, home):
    """The weights are larger than the limit, everything else is smaller."""
    assert run(train_script.main, *WORDS, "--max-iters=10").status == 0
    before = (home / "run/latest").read_text()
    done = process("--resume", "--max-iters=20", "--out-dir=run",
                   **limited(resource.RLIMIT_FSIZE, 10_000))
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "cannot be written" in done.stderr and "run/checkpoint-10 is complete" in done.stderr
    assert (home / "run/latest").read_text() == before
    assert not list((home / "run").glob(".checkpoint*"))
    assert run(train_script.main, "--resume", "--max-iters=20", "--out-dir=run").status == 0
    assert metrics("run")[-1]["step"] == 20


def test_limit_of_the_address_space_counts_as_memory():
    free = host.free_memory()
    code = ("import resource; from npgpt.host import free_memory; "
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
            "limit = used + 300_000_000; resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); "
            "print(free_memory())")
    done = subprocess.run([*command()[:1], "-c", code], env=ENVIRONMENT, capture_output=True,
                          text=True, check=True)
    buffers = host.cores() * host.BLAS_BUFFER
    assert 200_000_000 < int(done.stdout) + buffers <= 300_000_000 < free


def test_run_that_does_not_fit_below_the_limit_is_refused_before_it_starts(home):
    done = process(*TINY, "--n-embd=2048", "--n-layer=8", "--workers=1", "--out-dir=run",
                   **limited(resource.RLIMIT_AS, 2_500_000_000))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"train\.py: training needs about [\d.]+ GB of memory and [\d.]+ [GM]B is "
                        r"available; lower --batch-size .*\n", done.stderr)
    assert not (home / "run").exists()


@pytest.mark.parametrize("error", [
    MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError("no more.")])
def test_memory_that_runs_out_is_one_line_with_advice(capsys, error):
    def fail():
        raise error

    assert run_command("train.py", fail, "lower `batch_size`") == 3
    found = capsys.readouterr().err
    assert re.fullmatch(r"train\.py: out of memory( \((Cannot allocate memory|no more)\))?; lower "
                        r"--batch-size\n", found)
    assert "None" not in found and "()" not in found
