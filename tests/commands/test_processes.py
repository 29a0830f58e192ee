"""Each command as a process, and what only a process shows: terminals, pipes, full disks, memory,
workers that are killed."""

import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import train as train_script
from npgpt.parallel import can_fork
from tests.commands.tiny import ENVIRONMENT, TINY, command, everything, process
from tests.parallel.test_processes import gone


def module(*words):
    return subprocess.run([sys.executable, "-m", *words], env=ENVIRONMENT, capture_output=True,
                          text=True, stdin=subprocess.DEVNULL)


def test_scripts_train_and_sample():
    trained = process(*TINY, "--max-iters=5")
    assert (trained.returncode, trained.stderr) == (0, "")
    assert "\nthe model is in out/laptop/checkpoint-5; to generate text: " in trained.stdout
    sampled = process("--prompt=fox", "--max-new-tokens=5", script="sample.py")
    assert sampled.returncode == 0 and re.fullmatch(r"fox.{5}\n", sampled.stdout, re.DOTALL)


def test_modules_run_the_commands():
    explained = module("npgpt", "explain", "relu")
    assert (explained.returncode, explained.stderr) == (0, "")
    assert " │     y = array_module(x).maximum(x, 0)\n" in explained.stdout
    reported = module("npgpt.report", "out/laptop")
    assert (reported.returncode, reported.stdout) == (2, "")
    assert reported.stderr == ("npgpt report: the following arguments are required: PICTURE; "
                               "--help lists all options\n")


def test_without_a_network_shakespeare_is_missing():
    result = process("--data=shakespeare")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("train.py: data/tinyshakespeare.txt is missing and cannot be "
                                    "downloaded (")


def test_progress_bar_is_shown_in_a_terminal():
    """`script` runs a command in a pseudo-terminal."""
    words = " ".join(command(*TINY, "--max-iters=10"))
    result = subprocess.run(["script", "-qec", words, "/dev/null"], capture_output=True,
                            text=True, env=ENVIRONMENT | {"TERM": "xterm-256color"},
                            stdin=subprocess.DEVNULL)
    assert result.returncode == 0
    assert re.search(r"10/10.*loss \d\.\d{4}  [\d,]+ tokens/s  \d+ s left", result.stdout)
    assert "\x1b[" in result.stdout


def test_closed_pipe_ends_with_status_141_and_without_a_word(train):
    """As with `sample.py | head`."""
    train("--max-iters=5", "--out-dir=run")
    for words in (command(*TINY, "--max-iters=50"), command("--out-dir=run", script="sample.py")):
        with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as running:
            running.stdout.close()
            errors = running.stderr.read()
        assert running.returncode == 141
        assert errors in ("", "run/checkpoint-5, 4,016 parameters\n")


def test_closed_input_and_output_do_not_matter():
    result = subprocess.run(f"{' '.join(command(*TINY, '--max-iters=5'))} <&- >&- 2>&-",
                            shell=True, env=ENVIRONMENT)
    assert result.returncode == 0
    assert Path("out/laptop/latest").read_text() == "checkpoint-5\n"


def test_full_disk_gives_one_line_and_status_3_and_keeps_the_old_checkpoint(train):
    train("--max-iters=5", "--out-dir=run")
    before = everything("run/checkpoint-5")
    result = process("--resume", "--out-dir=run", "--max-iters=9",
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)))
    assert result.returncode == 3
    assert re.fullmatch(r"train\.py: .* cannot be written: .*\n", result.stderr)
    assert everything("run/checkpoint-5") == before
    assert Path("run/latest").read_text() == "checkpoint-5\n"
    assert not [path for path in Path("run").iterdir() if path.name.startswith(".")]


def test_characters_that_the_terminal_lacks_are_replaced():
    Path("fox.txt").write_text("äöü→" * 400, encoding="utf-8")
    ascii_only = {"env": ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}}
    trained = process(*TINY, "--max-iters=5", "--eval-interval=5", **ascii_only)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert re.search(r"^    \?+$", trained.stdout, re.MULTILINE)
    sampled = process("--max-new-tokens=9", script="sample.py", **ascii_only)
    assert (sampled.returncode, sampled.stdout) == (0, "?" * 9 + "\n")


several = pytest.mark.skipif(not can_fork(), reason="processes cannot share memory here")


@contextmanager
def training_processes(workers):
    """An endless run, in its own process group -> process, its workers' pids."""
    words = [*TINY, "--max-iters=1000000", "--eval-interval=20", "--warmup-iters=2",
             "--out-dir=run", f"--workers={workers}"]
    with subprocess.Popen(command(*words), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, start_new_session=True) as running:
        while not Path("run/latest").exists():
            assert running.poll() is None
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
        pids = list(map(int, children.split()))
        assert len(pids) == workers - 1
        yield running, pids
        assert gone(pids)


@several
@pytest.mark.parametrize(("workers", "number", "status"), [(1, signal.SIGTERM, 143),
                                                           (3, signal.SIGINT, 130)])
def test_signal_reaches_every_process_and_stops_the_run_once(run, workers, number, status):
    """As Ctrl-C in a terminal does."""
    with training_processes(workers) as (running, _):
        os.killpg(running.pid, number)
        output, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (status, "")
    [step] = map(int, re.findall(r"stopped at step (\d+); to continue: npgpt train --resume "
                                 r"--out-dir run\n", output))
    assert Path("run/latest").read_text() == f"checkpoint-{step}\n"
    resumed = run(train_script.main, "--resume", "--out-dir=run", f"--max-iters={step + 3}")
    assert resumed.status == 0
    assert Path("run/latest").read_text() == f"checkpoint-{step + 3}\n"


@several
def test_killed_worker_ends_the_run_and_the_checkpoint_is_complete(run):
    with training_processes(3) as (running, pids):
        os.kill(pids[1], signal.SIGKILL)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert re.fullmatch(r"train.py: worker 2 of 3 was killed by signal 9; run/checkpoint-\d+ is "
                        r"complete\n", errors)
    step = int(Path("run/latest").read_text().split("-")[1])
    assert run(train_script.main, "--resume", "--out-dir=run", "--workers=1",
               f"--max-iters={step + 1}").status == 0


@several
def test_workers_end_if_the_first_process_is_killed():
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with training_processes(3) as (running, _):
        running.kill()
        running.communicate(timeout=60)
    assert not os.path.isdir("/dev/shm") or set(os.listdir("/dev/shm")) <= shared
