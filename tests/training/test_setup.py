"""A run before its first step, new and resumed, and what it saves."""

import dataclasses
import errno
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from npgpt import UserError, kernels
from npgpt.backend import get_device, register
from npgpt.errors import RunError
from npgpt.layers import LAYERS
from npgpt.parallel import Single, can_fork
from npgpt.training import beginning, estimate, setup
from npgpt.training.config import FAMILY_FIELDS, TRAINING_FIELDS
from npgpt.training.request import read_command_line
from npgpt.training.run import ADDED, check_state, save
from npgpt.training.setup import build_optimizer, build_run
from tests.training.two_ranks import TwoRanks

SIZES = ["--data=fox.txt", "--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8",
         "--batch-size=3", "--max-iters=9", "--workers=1", "--out-dir=run"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    return tmp_path


def build(*words):
    return build_run(read_command_line(words, lambda *_: "laptop"))


def saved(*words):
    """A run that has written a checkpoint of its fifth step."""
    run = build(*SIZES, *words)
    run.directory.begin(0)
    run.step = 5
    save(run, val_loss=2.5)
    run.directory.close()
    return run


def test_nothing_is_written_before_training(tmp_path):
    build(*SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["fox.txt"]


@pytest.mark.parametrize(("flag", "by_default", "fused"), [
    ("--fused", False, True), ("--no-fused", True, False),
    ("--seed=1", False, False), ("--seed=1", True, True),
])
def test_new_and_resumed_run_are_on_the_device_with_its_layers(device, monkeypatch, flag,
                                                               by_default, fused):
    monkeypatch.setattr(kernels, "fused_layers", lambda on: {"gelu": LAYERS["relu"]})
    device = dataclasses.replace(device, fuses=by_default)
    register(device)
    words = ["--device=gpu", flag]
    for run in (saved(*words), build("--resume", "--out-dir=run")):
        assert run.model.device is device and run.data.device is device
        assert isinstance(run.data.train, device.arrays)
        assert (run.model.layers.gelu_forward is LAYERS["relu"].forward) == fused
        assert run.model.dtype == device.default_dtype


@pytest.mark.parametrize(("error", "raised", "message"), [
    (OSError(errno.EIO, "Input/output error", "fox.txt"), UserError, "fox.txt: Input/output error"),
    (OSError(errno.EIO, "Input/output error"), UserError, "Input/output error"),
    (OSError("odd"), UserError, "odd"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError, ""),
])
def test_error_of_the_system_before_the_start_is_in_one_line(monkeypatch, error, raised, message):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(beginning, "load_source", fail)
    with pytest.raises(raised) as found:
        build(*SIZES)
    assert str(found.value) == message
    assert not os.path.lexists("run")


def test_resumed_run_knows_its_checkpoint():
    """So that an error names it, and Ctrl-C before the next step does not write it again."""
    assert build(*SIZES, "--overwrite").kept == "there is no checkpoint yet"
    saved()
    run = build("--resume", "--out-dir=run")
    assert (run.step, run.saved_step, run.best_val_loss) == (5, 5, 2.5)
    assert run.kept == "run/checkpoint-5 is complete"
    run.directory.close()
    assert build(*SIZES, "--overwrite").kept == "run/checkpoint-5 is complete"


def test_directory_that_is_damaged_meanwhile_is_reported_as_a_failure(tmp_path):
    """With status 3, not as an invalid request."""
    run = saved()
    (tmp_path / "run/best").write_text("mine")
    message = "run/best names 'mine', which is not a checkpoint"
    for use in (lambda: run.best, lambda: save(run, 2.0)):
        with pytest.raises(RunError, match=message):
            use()
    (tmp_path / "run/latest").write_text("mine")
    assert run.kept == "run/latest names 'mine', which is not a checkpoint"


def test_of_equally_good_checkpoints_the_first_is_the_best():
    run = saved()
    for run.step, loss, best in ((6, 2.5, 5), (7, 2.75, 5), (8, 2.25, 8), (9, 2.5, 8)):
        save(run, loss)
        assert run.directory.checkpoint("best").name == f"checkpoint-{best}"
        assert run.directory.checkpoint("latest").name == f"checkpoint-{run.step}"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_checkpoint_has_the_moments_of_every_rank(optimizer):
    run = build(*SIZES, f"--optimizer={optimizer}")
    run.comm, run.step = TwoRanks(), 5
    run.optimizer = build_optimizer(run.model.params, run.config, run.comm)
    run.directory.begin(0)
    save(run)
    run.directory.close()
    found = build("--resume", "--out-dir=run").optimizer.state
    for array, name in zip(found.values(), found, strict=True):
        assert set(np.unique(array)) == {0, 7}, name


@pytest.mark.parametrize(("words", "message"), [
    ("--workers=2 --device=gpu", "`workers` is for a CPU, and this run is on "),
    ("--workers=4", "`workers` must be at most `batch_size`, 3, because each computes some"),
    ("--dtype=tf32", "`dtype` must be float32 or float64 on CPU"),
    ("--fused", "`fused` needs a GPU, and this run is on CPU"),
])
def test_what_a_device_does_not_support_is_refused(device, words, message):
    with pytest.raises(UserError) as error:
        build(*SIZES[:-2], "--device=cpu", *words.split())
    assert error.value.message.startswith(message)


def test_settings_of_another_device_fall_back_to_the_defaults(device, monkeypatch):
    monkeypatch.setattr(kernels, "fused_layers", lambda on: {})
    run = saved("--device=gpu", "--dtype=tf32", "--fused")
    assert (run.model.dtype, run.config.fused) == ("tf32", True)
    run = build("--resume", "--out-dir=run", "--device=cpu")
    assert (run.config.dtype, run.config.fused, run.model.dtype) == (None, None, "float32")


def test_number_of_processes_is_refused_or_noted_only_if_it_is_asked_for(monkeypatch):
    """A checkpoint of another machine may have more than this one takes."""
    cores = get_device("cpu").cores
    words = [word for word in SIZES if not word.startswith(("--batch", "--workers"))]
    many = [f"--workers={cores + 1}", f"--batch-size={cores + 1}"]
    note = [f"{cores + 1} processes share {cores} cores, and are slower than {cores}"]
    run = build(*words, *many)
    assert run.notes == note and run.comm.size == cores + 1
    run.comm = Single()
    run.directory.begin(0)
    run.step = 5
    save(run)
    run.directory.close()
    for more, expected in (([], []), (many[:1], note)):
        run = build("--resume", "--out-dir=run", *more)
        run.directory.close()
        assert run.notes == expected


@pytest.fixture
def no_fork(monkeypatch):
    """-> function: as on macOS, with this number of cores, and with mpi4py or without."""
    def change(cores, mpi4py=True):
        find = importlib.util.find_spec
        cpu = dataclasses.replace(get_device("cpu"), cores=cores)
        for module in ("npgpt.training.setup", "npgpt.parallel"):
            monkeypatch.setattr(f"{module}.can_fork", lambda: False)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: (
            mpi4py if name == "mpi4py" else find(name)))
        monkeypatch.setattr(setup, "get_device", lambda name: cpu)
        register(cpu)
    yield change
    register(CPU)


CPU = get_device("cpu")
ALONE = [word for word in SIZES if not word.startswith("--workers")] + ["--device=cpu"]
NOTE = "1 process, because others are forked on Linux only; to start "


@pytest.mark.parametrize(("cores", "words", "size"), [
    (4, [], 3), (2, [], 2), (1, ["--workers=2"], 2),               # three sequences in a batch
    (1, [], 0), (4, ["--workers=1"], 0), (4, ["--batch-size=1"], 0),
])
def test_where_processes_are_not_forked_a_note_names_mpiexec(cores, words, size, no_fork):
    no_fork(cores)
    expected = [f"{NOTE}{size}: mpiexec -n {size} npgpt train"] if size else []
    assert build(*ALONE, *words).notes == expected


def test_note_on_mpiexec_names_the_script_and_what_is_not_installed(no_fork, home):
    no_fork(2, mpi4py=None)
    (home / "train.py").touch()
    assert build(*ALONE).notes == [
        f'{NOTE}2: pip install "npgpt[mpi]" and mpiexec -n 2 python train.py']


def test_no_note_on_mpiexec_if_one_process_is_best_or_there_is_a_launcher(no_fork, monkeypatch):
    no_fork(2)
    launched = Single()
    launched.launched = True
    with monkeypatch.context() as patch:
        patch.setattr(setup, "world", lambda: launched)
        patch.setattr(setup, "world_on", lambda device: launched)
        assert build(*ALONE, "--out-dir=other").notes == []
    run = build(*ALONE, "--out-dir=small")
    assert run.notes
    monkeypatch.setattr(setup, "LARGE", run.model.params.flat.size)
    assert build(*ALONE).notes == []                # BLAS's threads use the cores


def test_file_that_cannot_be_read_is_named(monkeypatch):
    def fail(*arguments):
        raise OSError(5, "Input/output error", "fox.txt")

    monkeypatch.setattr("npgpt.training.beginning.load_source", fail)
    with pytest.raises(UserError, match=r"^fox\.txt: Input/output error$"):
        build(*SIZES)


def test_more_workers_than_rows_are_refused_for_a_resumed_run_too():
    saved()
    with pytest.raises(UserError, match="workers must be at most batch_size, 3, because"):
        build("--resume", "--out-dir=run", "--workers=4")


@pytest.mark.parametrize(("optimizer", "several"), [("muon", False), ("adamw", True)])
def test_large_model_has_several_processes_only_if_its_optimizer_gains(
        optimizer, several, monkeypatch):
    """Muon's update is matrix products, for which BLAS has its own threads."""
    monkeypatch.setattr("npgpt.parallel.LARGE", 1)
    words = [word for word in SIZES if "workers" not in word]
    run = build(*words, f"--optimizer={optimizer}")
    cores = get_device("cpu").cores if can_fork() else 1
    assert run.comm.size == (cores if several else 1)


@pytest.mark.parametrize(("workers", "small", "forks", "after"), [
    (1, 3 * 8 * 8**2, True, 1), (1, 3 * 8 * 8**2 - 1, True, 2), (2, 0, True, 1),
    (1, 10**9, False, 2)])
def test_blas_has_one_thread_in_each_of_several_processes_or_for_small_products(
        workers, small, forks, after, monkeypatch):
    """Where no processes can be forked, BLAS's threads use the other cores."""
    monkeypatch.setattr("npgpt.parallel.threads.SMALL_PRODUCT", small)
    monkeypatch.setattr(setup, "can_fork", lambda: forks and can_fork())
    with threadpool_limits(2):
        pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        if pools != [2] or not can_fork():
            pytest.skip("BLAS has one thread, or there are no several processes")
        build(*SIZES, f"--workers={workers}")
        assert [pool["num_threads"] for pool in threadpool_info()
                if pool["user_api"] == "blas"] == [after]


def test_memory_is_estimated_for_every_process(monkeypatch):
    """Two of three are forked."""
    estimated, checked = [], []
    monkeypatch.setattr(estimate, "memory_of_run",
                        lambda arrays, device, forked=0: estimated.append((arrays, forked)) or 123)
    monkeypatch.setattr(estimate, "check_memory", lambda needed, device: checked.append(needed))
    runs = [build(*SIZES, f"--workers={n}", f"--out-dir={n}") for n in (1, 3)]
    assert estimated == [
        (estimate.memory_needed(run.model.config, run.config, run.model.device, n), n - 1)
        for run, n in zip(runs, (1, 3))]
    assert checked == [run.memory for run in runs] == [123, 123]


def test_values_of_the_first_version_are_enough_to_resume():
    """What later versions have added may be missing, and nothing else."""
    fields = FAMILY_FIELDS["gpt"] | TRAINING_FIELDS
    state = {"format": 1, "step": 1, "seconds": 0, "sha256": "", "config_name": "laptop"}
    values = dict.fromkeys(fields.keys() - ADDED)
    check_state(state | {"values": values}, Path("c"))
    for name in values:
        rest = {n: v for n, v in values.items() if n != name}
        with pytest.raises(UserError, match="values are missing"):
            check_state(state | {"values": rest}, Path("c"))
