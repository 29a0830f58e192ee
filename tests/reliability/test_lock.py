"""One process writes to the directory of a run, and others are told which."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import sample as sample_script
import train as train_script
from npgpt import UserError
from npgpt.checkpoints import lock as locks
from npgpt.checkpoints.lock import NAME, Lock
from npgpt.checkpoints.run import RunDirectory
from tests.commands.tiny import ENVIRONMENT, command, everything, metrics
from tests.reliability.faults import in_child
from tests.reliability.tiny_runs import resume, start, train

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def held(home):
    """A run that this process holds."""
    assert train(start()) == (0, "")
    run = RunDirectory.existing(home / "run")
    run.load_state()
    yield run
    run.close()


@pytest.mark.parametrize("words", [resume(5), [*start(), "--overwrite"], start()])
def test_second_process_is_told_which_one_writes_there_and_writes_nothing(held, run, words):
    before = everything("run")
    result = run(train_script.main, *words)
    assert (result.status, result.out) == (2, "")
    assert result.err == (f"train.py: run is in use by process {os.getpid()} on "
                          f"{socket.gethostname()}; wait until it has ended, or choose another "
                          "--out-dir\n")
    assert everything("run") == before
    assert run(sample_script.main, "--out-dir=run", "--max-new-tokens=1").status == 0
    held.close()
    assert not (held.path / NAME).exists()
    held.close()
    assert run(train_script.main, *resume(5)).status == 0


def test_new_run_holds_its_directory_before_its_first_checkpoint(home, run):
    directory = RunDirectory.new(home / "run", "laptop", False)
    directory.begin(0)
    for words in (start(), [*start(), "--overwrite"]):
        assert "is in use by process" in run(train_script.main, *words).err
    directory.discard()
    assert not directory.path.exists()
    assert run(train_script.main, *start()).status == 0


def test_run_that_another_process_began_meanwhile_is_not_touched(home, run):
    """Both have found an empty place."""
    slow, fast = (RunDirectory.new(home / "run", "laptop", False) for _ in range(2))
    fast.begin(0)
    fast.log(step=0, val_loss=4.2)
    with pytest.raises(UserError, match="is in use by process"):
        slow.begin(0)
    fast.close()
    with pytest.raises(UserError, match="contains the metrics of a run"):
        slow.begin(0)
    slow.close()
    assert metrics("run") == [{"step": 0, "val_loss": 4.2}]


def test_refused_run_leaves_no_lock(held, run):
    held.close()
    for words, message in ((resume(), "has finished its 3 steps"), (start(), "already contains"),
                           ([*start(), "--overwrite", "--data=no.txt"], "no.txt")):
        result = run(train_script.main, *words)
        assert result.status == 2 and message in result.err
        assert NAME not in os.listdir("run")


@forks
def test_lock_of_a_killed_process_is_taken_over(home):
    fault = in_child(lambda: Lock(home) and os.kill(os.getpid(), signal.SIGKILL), home)
    assert fault.status == -9 and re.match(r"\d+ ", (home / NAME).read_text())
    lock = Lock(home)
    assert (home / NAME).read_text().startswith(f"{os.getpid()} ")
    lock.release()
    assert not (home / NAME).exists()


@forks
def test_lock_ends_with_its_process_though_its_children_live(home):
    """As a worker does for a moment after the first process is killed."""
    (ended, end), (started, start) = os.pipe(), os.pipe()

    def hold_and_fork():
        Lock(home)
        if os.fork() == 0:
            os.close(end)
            os.write(start, b"x")
            os.read(ended, 1)                    # until the test ends
            os._exit(0)
        os.read(started, 1)

    assert in_child(hold_and_fork, home).status == 0
    Lock(home).release()
    for descriptor in (ended, end, started, start):
        os.close(descriptor)


@forks
def test_child_does_not_release_the_lock_of_its_parent(home):
    lock = Lock(home)
    assert in_child(lock.release, home).status == 0
    assert (home / NAME).exists()
    with pytest.raises(UserError, match="is in use"):
        Lock(home)
    lock.release()


def test_lock_whose_file_was_just_removed_is_not_enough(home, monkeypatch):
    """The last holder removes the file between the opening and the locking."""
    fcntl = pytest.importorskip("fcntl")
    calls = []

    def flock(descriptor, operation, original=fcntl.flock):
        calls.append(operation)
        if len(calls) == 1:
            (home / NAME).unlink()
        return original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(home)
    assert len(calls) == 2
    with pytest.raises(UserError, match="is in use"):
        Lock(home)
    lock.release()


@pytest.mark.parametrize(("content", "holder"), [
    (b"12 a b\n", "process 12 on a b"), (b"\xff\xfe 1", "another process"),
    (b"", "another process"),
])
def test_holder_is_what_the_file_says(home, content, holder):
    lock = Lock(home)
    (home / NAME).write_bytes(content)
    with pytest.raises(UserError, match=f"^{home} is in use by {holder}; wait"):
        Lock(home)
    lock.release()


def test_link_is_not_followed(home, run):
    """The file that it leads to would be overwritten."""
    (home / "run").mkdir()
    (home / "run" / NAME).symlink_to(home / "fox.txt")
    before = (home / "fox.txt").read_text()
    result = run(train_script.main, *start())
    assert result.status == 2 and result.err.count("\n") == 1 and f"run/{NAME}: " in result.err
    assert (home / "fox.txt").read_text() == before and (home / "run" / NAME).is_symlink()


def test_holder_that_cannot_be_written_does_not_matter(home, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    held = Lock(home)
    with pytest.raises(UserError, match="is in use by another process; wait"):
        Lock(home)
    held.release()


def test_on_windows_a_byte_behind_the_content_is_locked(home, monkeypatch):
    """With a msvcrt that records its calls: whether Windows locks was not tried."""
    calls = []

    def locking(descriptor, mode, count):
        calls.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks, "fcntl", None)
    fake = SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setattr(locks, "msvcrt", fake, raising=False)
    held = Lock(home)
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "):
        Lock(home)
    assert calls == [(2**20, 2, 1)] * 2
    assert (home / NAME).read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    held.release()


def test_file_system_without_locks_is_used_without(home, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    both = [Lock(home), Lock(home)]
    for lock in both:
        lock.release()
    assert os.listdir(home) == ["fox.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and fork")
@pytest.mark.parametrize("call", ["ftruncate", "write"])
def test_full_disk_does_not_matter_to_the_lock(home, call):
    def lock():
        first = Lock(home)
        with pytest.raises(UserError, match="is in use by another process; wait"):
            Lock(home)
        first.release()

    fault = in_child(lock, home, number=1, calls=[call])
    assert (fault.call, fault.status) == (f"{call} {NAME}", 0), fault.output
    assert not (home / NAME).exists()


def test_of_two_simultaneous_starts_one_trains(home):
    words = command(*start(), "--eval-interval=3")
    both = [subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = sorted((process.communicate()[1], process.returncode) for process in both)
    assert [status for _, status in results] == [0, 2]
    assert re.fullmatch(r"train\.py: run (is in use by (process \d+ on|another process;) .*|"
                        r"already contains a run; .*|contains the metrics .*)\n", results[1][0])
    assert [line["step"] for line in metrics("run")] == [0, 1, 2, 3, 3, 3]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_lock_that_is_released_or_refused_leaves_no_open_file(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    held = Lock(tmp_path)
    with pytest.raises(UserError, match="is in use"):
        Lock(tmp_path)
    held.release()
    assert len(os.listdir("/proc/self/fd")) == before
