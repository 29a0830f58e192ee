"""Ranks of mpiexec: one that is killed, hangs or differs from the others ends the whole job, and
what was saved stays. `python -m tests.reliability ranks` tries more moments."""

import os
import re
import signal
import sys

import pytest

import train as train_script
from npgpt.checkpoints.run import RunDirectory
from npgpt.durable import verify
from tests.commands.tiny import LLAMA, TINY, command, everything, metrics, state, weights
from tests.parallel.launcher import job, running, train

pytestmark = [pytest.mark.usefixtures("mpi"),
              pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")]
ENDLESS = [*TINY, "--max-iters=1000000", "--eval-interval=5", "--out-dir=run"]


def check_saved(home, run, most=None):
    """Both checkpoints are whole, and one process goes on with the latest."""
    directory = RunDirectory.existing(home / "run")
    for which in ("latest", "best"):
        verify(directory.checkpoint(which))
    step = int((home / "run/latest").read_text().removeprefix("checkpoint-"))
    words = ["--resume", "--out-dir=run", f"--max-iters={step + 2}", "--final-windows=5"]
    assert run(train_script.main, *words).status == 0
    assert metrics("run")[-1]["step"] == step + 2


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_that_is_killed_ends_the_job(rank, home, run):
    with running(2, *ENDLESS, until="step 10/") as (process, pids):
        os.kill(pids[rank], signal.SIGKILL)
        process.communicate()
        assert process.returncode == 9
    check_saved(home, run)


@pytest.mark.parametrize("rank", [0, 2])
def test_rank_that_hangs_ends_the_job_with_one_line(rank, home, run):
    with running(3, *ENDLESS, until="step 10/", NPGPT_RANK_TIMEOUT="2") as (process, pids):
        os.kill(pids[rank], signal.SIGSTOP)
        _, err = process.communicate()
        assert process.returncode == 3
    assert re.fullmatch(rf"train\.py: rank {rank} \(process {pids[rank]} on \S+\) has not answered "
                        r"for 2 s; run/checkpoint-\d+ is complete\n", err)
    check_saved(home, run)


def test_job_that_is_suspended_goes_on(home):
    """For longer than a rank may be silent."""
    with running(2, *ENDLESS, until="step 10/", NPGPT_RANK_TIMEOUT="1") as (process, pids):
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                os.kill(pid, number)
        while metrics("run")[-1].get("seconds", 0) < 3:
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130 and "has not answered" not in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_mpiexec_saves_and_says_how_to_go_on(number, status, home, run):
    with running(2, *ENDLESS, until="step 10/") as (process, _):
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == status and "Traceback" not in err and "train.py" not in err
    stopped = re.search(r"(?m)^stopped at step (\d+); to continue: .* --resume --out-dir run$", out)
    assert (home / "run/latest").read_text() == f"checkpoint-{stopped[1]}\n"
    check_saved(home, run)


def test_signal_to_one_rank_stops_all(home):
    with running(2, *ENDLESS, until="step 10/") as (process, pids):
        os.kill(pids[1], signal.SIGTERM)
        out, err = process.communicate()
        assert process.returncode == 143 and err == "" and "stopped at step" in out


@pytest.mark.parametrize("family", [[], LLAMA])
def test_run_goes_on_with_another_number_of_ranks_or_none(family, home, run):
    """Its result is that of an uninterrupted run, to rounding."""
    words = [*TINY, *family, "--dtype=float64", "--dropout=0.1"]
    assert run(train_script.main, *words, "--workers=1", "--max-iters=8", "--out-dir=whole"
               ).status == 0
    assert train(3, *words, "--max-iters=2", "--lr-decay-iters=8", "--warmup-iters=0",
                 "--out-dir=run").returncode == 0
    assert train(2, "--resume", "--max-iters=4", "--out-dir=run").returncode == 0
    assert run(train_script.main, "--resume", "--max-iters=6", "--workers=2", "--out-dir=run"
               ).status == 0
    done = train(4, "--resume", "--max-iters=8", "--out-dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    for arrays in (weights, state):
        found, expected = arrays("run/checkpoint-8"), arrays("whole/checkpoint-8")
        for name in expected:
            assert abs(found[name] - expected[name]).max() < 1e-9, name


DIFFERENT = "import npgpt, sys, train; {}; raise SystemExit(train.main(sys.argv[1:]))"


def one(words, code="pass"):
    """A rank that runs some code before it trains."""
    return [sys.executable, "-c", DIFFERENT.format(code), *words]


@pytest.mark.parametrize(("other", "message"), [
    (command(*ENDLESS, "--seed=7"), "--seed is 7 in rank 1, and 1337 in rank 0; give all ranks the "
                                    "same options"),
    (command(*ENDLESS, "--dropout=0.5"), "--dropout is 0.5 in rank 1, and 0.0 in rank 0; give all "
                                         "ranks the same options"),
    (command(*ENDLESS[:-1], "--out-dir=other"), "--out-dir is other in rank 1, and run in rank 0; "
                                                "give all ranks the same options"),
    (one(ENDLESS, "npgpt.__version__ = '9.1'"), "rank 1 has npgpt 9.1, and rank 0 has npgpt 0.1.0; "
                                                "install the same version on every host"),
])
def test_rank_with_other_options_or_another_version_is_refused(other, message, home):
    before = everything(home)
    done = job(command(*ENDLESS), other)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"train.py: {message}\n")
    assert everything(home) == before


def test_every_rank_maps_the_token_file_that_it_finds(home, run):
    from npgpt.text import command as tokenizer
    (home / "here").mkdir()
    (home / "there").mkdir()
    (home / "other.txt").write_text("the quick brown fox jumps over the lazy cat\n" * 40)
    for text, folder in (("fox.txt", "here"), ("other.txt", "there")):
        assert run(tokenizer.main, "encode", text, "--tokenizer=chars",
                   f"--out-dir={folder}/tokens").status == 0
    words = [*TINY, "--data=tokens", "--max-iters=1", "--out-dir", str(home / "run")]
    there = [sys.executable, "-c", f"import os; os.chdir({str(home / 'there')!r}); "
             "import sys, train; raise SystemExit(train.main(sys.argv[1:]))", *words]
    done = job(2, command(*words), cwd=home / "here")
    assert (done.returncode, done.stderr) == (0, "")
    done = job(command(*words, "--overwrite"), [*there, "--overwrite"], cwd=home / "here")
    assert done.returncode == 2
    assert re.fullmatch(r"train\.py: rank 1 on \S+: tokens has other tokens than the first rank's; "
                        r"copy the directory from there\n", done.stderr)
    (home / "there/tokens").rename(home / "there/gone")
    done = job(command(*words, "--overwrite"), [*there, "--overwrite"], cwd=home / "here")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.match(r"train\.py: rank 1 on \S+: tokens", done.stderr)


def test_only_the_first_rank_reads_texts(home):
    """The others need none."""
    other = [sys.executable, "-c", "import os, sys; os.makedirs('empty'); os.chdir('empty'); "
             "import train; raise SystemExit(train.main(sys.argv[1:]))"]
    words = [*TINY, "--max-iters=4", "--out-dir=run"]
    done = job(command(*words), [*other, *words])
    assert (done.returncode, done.stderr) == (0, "")
    done = job(command("--resume", "--max-iters=6", "--out-dir=run"),
               [sys.executable, "-c", other[2].replace("os.makedirs('empty'); ", ""), "--resume",
                "--max-iters=6", "--out-dir=run"])
    assert (done.returncode, done.stderr) == (0, "") and not os.listdir(home / "empty")


FAIL = ("original = train.train_step; steps = []; "
        "train.train_step = lambda *a, **o: (steps.append(1), len(steps) == 7 and 1 / 0, "
        "original(*a, **o))[2]")


@pytest.mark.parametrize("ranks", [
    [one(ENDLESS), one(ENDLESS, FAIL)], [one(ENDLESS, FAIL), one(ENDLESS)],
    [3, one(ENDLESS, FAIL)], [one(ENDLESS), 2, one(ENDLESS, FAIL)],
], ids=["rank 1", "rank 0", "all three", "two of three"])
def test_uncaught_exception_ends_the_job_with_one_traceback(ranks, home, run):
    done = job(*ranks)
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    check_saved(home, run)


@pytest.mark.parametrize("words", [
    ["--n-lyer=3"], ["--resume"], ["--data=nothing.txt"], ["--config=nothing"], ["--workers=2"],
    ["--batch-size=1"], ["--block-size=99999"], ["--init-from=nothing"],
])
def test_invalid_request_is_refused_in_one_line(words, home):
    done = train(2, *TINY, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("train.py: ") and done.stderr.count("\n") == 1
    assert os.listdir(home) == ["fox.txt"]


def test_help_is_shown_once(home):
    done = train(2, "--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("usage: train.py") == 1


def test_first_rank_that_cannot_write_ends_the_job_in_one_line(home, run):
    """The limit on the size of files is that of a disk which is full."""
    limited = ("import npgpt.parallel, resource; npgpt.parallel.world(); "
               "resource.setrlimit(resource.RLIMIT_FSIZE, (8_000,) * 2)")
    assert train(2, *TINY, "--max-iters=3", "--out-dir=run").returncode == 0
    resumed = ["--resume", "--max-iters=1000000", "--out-dir=run"]
    done = job(one(resumed, limited), one(resumed))
    assert done.returncode == 3
    assert re.fullmatch(r"train\.py: model.safetensors cannot be written: File too large; "
                        r"run/checkpoint-3 is complete\n", done.stderr)
    check_saved(home, run)
