"""Ranks that mpiexec starts, each with a GPU of its own: the path that uses NCCL, on the double of
CuPy. What only GPUs can show is in benchmarks/nccl.py, and nowhere else."""

import json
import os
import sys

import numpy as np
import pytest

import train as train_script
from tests.commands.tiny import TEXT, TINY, metrics, state, weights
from tests.parallel.launcher import job
from tests.parallel.nccl_rank import CASES, alone

pytestmark = pytest.mark.usefixtures("mpi")
RUN = [*TINY, "--config=laptop", "--dtype=float64", "--batch-size=5", "--dropout=0.2",
       "--grad-accum=2", "--log-interval=1", "--max-iters=12"]


def ranks(gpus, *words, module="tests.parallel.nccl_rank", **settings):
    """Run a module as ranks. gpus: for each rank the GPUs that it sees. settings: more of those of
    nccl_rank."""
    settings = json.dumps({"gpus": gpus} | settings)
    return job(len(gpus), [sys.executable, "-m", module, settings, *words])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The working directory, with a small text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox.txt").write_text(TEXT)
    return tmp_path


# Two ranks see both GPUs; each of three sees its own alone, as SLURM may arrange it.
@pytest.fixture(scope="module", params=[[[0, 1], [0, 1]], [[0], [1], [2]]], ids=["2", "3"])
def taken(request, tmp_path_factory, mpi):
    """The steps of all cases that some ranks have taken: name -> array."""
    path = tmp_path_factory.mktemp("steps") / "steps.npz"
    done = ranks(request.param, "steps", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    return np.load(path)


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_those_of_one_process_without_waiting_for_the_gpu(case, taken):
    for name, expected in alone(case).items():
        found = taken[f"{case}: {name}"]
        assert found.shape == expected.shape and np.ptp(expected) > 1e-5, name
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, err_msg=name)


def test_sums_are_complete_even_if_a_backward_has_not_reached_all_parameters(taken):
    size = len(taken["used"])
    total = size * (size + 1) / 2
    assert taken["sums"].tolist() == [total] * size + [0] * 7
    np.testing.assert_allclose(taken["norm"], [total * np.sqrt(size)] * size, rtol=1e-15)


def test_sum_of_float32_is_in_float64(taken):
    size = len(taken["used"])
    assert taken["scalar"].dtype == np.float64
    assert taken["scalar"] == sum(np.float64(np.float32(0.1 + rank)) for rank in range(size))


def test_flag_of_the_last_rank_reaches_all(taken):
    assert [of.tolist() for of in taken["flags"]] == [[False] * 3 + [True, False]] * len(
        taken["used"])


def test_each_rank_has_a_gpu_and_nccl(taken):
    addresses, kinds = zip(*taken["used"])
    assert list(addresses) == [f"0000:0{rank}:00.0" for rank in range(len(addresses))]
    assert set(kinds) == {"Nccl"}


@pytest.mark.parametrize("family", [[], ["--family=llama", "--n-kv-head=1"]], ids=["gpt", "llama"])
def test_run_on_two_gpus_equals_that_on_the_cpu(family, home):
    assert train_script.main([*RUN, *family, "--device=cpu", "--workers=1", "--out-dir=one"]) == 0
    done = ranks([[0, 1], [0, 1]], "train", *RUN, *family, "--device=gpu", "--out-dir=two",
                 show_end=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ", float64, 2 MPI ranks, NCCL 2.25.1\n" in done.stdout
    assert done.stdout.endswith("\nNCCL: destroy, abort\n")
    for line, other in zip(metrics("two"), metrics("one"), strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"seconds", "tokens_per_second"}:
            assert line[name] == pytest.approx(other[name], rel=1e-11), name
    two, one = (weights(f"{name}/checkpoint-12") | state(f"{name}/checkpoint-12")
                for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=0, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(("nccl", "description"), [(True, ", 1 MPI rank, NCCL 2.25.1"),
                                                   (False, "")])
def test_one_rank_needs_no_nccl_and_is_a_group_of_one_with_it(nccl, description, home):
    done = ranks([[0]], "train", *RUN, "--device=gpu", "--max-iters=2", "--out-dir=a", nccl=nccl)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith(f", float64{description}")


@pytest.mark.parametrize(("gpus", "nccl", "device", "message"), [
    ([[0, 1]] * 3, True, "gpu",
     "3 ranks on HOST have 2 GPUs; start one rank for each GPU, or use --device cpu"),
    ([[1], [1]], True, "auto",                # each sees one GPU, and it is the same one
     "2 ranks on HOST have 1 GPU; start one rank for each GPU, or use --device cpu"),
    ([[0], [1]], False, "gpu", 'several GPUs need NCCL; run: pip install "npgpt[nccl12]"'),
    ([[0], []], True, "auto",
     "--device is cpu in rank 1, and gpu in rank 0; choose one that every rank has"),
])
def test_gpus_that_do_not_suit_the_ranks_are_refused(gpus, nccl, device, message, home):
    done = ranks(gpus, "train", *RUN, f"--device={device}", "--out-dir=a", nccl=nccl)
    host = os.uname().nodename
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"train.py: {message.replace('HOST', host)}\n"
    assert not (home / "a").exists()


def test_ranks_that_fail_do_not_wait_for_each_other_to_leave_nccl(home):
    """Destroying a communicator would wait, so it is aborted."""
    done = ranks([[0, 1], [0, 1]], "train", *RUN, "--device=gpu", "--out-dir=a", memory=10**5,
                 show_end=True)
    assert (done.returncode, done.stdout) == (2, "NCCL: abort\n")
    assert done.stderr.startswith("train.py: training needs about ")


def test_failure_to_connect_is_reported_once(home):
    done = ranks([[0], [1]], "train", *RUN, "--device=gpu", "--out-dir=a", problem="no route")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("train.py: NCCL cannot connect the GPUs: no route; set NCCL_DEBUG=INFO "
                           "in the environment, and it tells why\n")


def test_ranks_on_the_cpu_may_outnumber_the_gpus(home):
    done = ranks([[0]] * 2, "train", *RUN, "--device=cpu", "--max-iters=1", "--out-dir=a")
    assert (done.returncode, done.stderr) == (0, "") and "NCCL" not in done.stdout


def test_double_refuses_what_nccl_cannot_do():
    done = ranks([[0, 1], [0, 1]], module="tests.double.nccl_refusals")
    assert (done.returncode, done.stdout, done.stderr) == (0, "accepted: [[], []]\n", "")
