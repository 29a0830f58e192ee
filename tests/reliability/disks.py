"""Disks that fill up, are read-only or lose the run's directory. Root mounts small file systems in
memory for that."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

from tests.commands.tiny import ENVIRONMENT, command
from tests.reliability.tiny_runs import NEW, beginnings, left, problems, resume, start

LONG = 20          # steps; the disk changes after a few of them


def available():
    """Whether this process may mount file systems."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    try:
        with disk("probe", "1m"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def disk(folder, size):
    """Context manager: an empty file system of this size, as for mount, at a directory."""
    Path(folder).mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield Path(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)
        Path(folder).rmdir()


def mount(*words):
    subprocess.run(["mount", *words], check=True, capture_output=True)


def changed_after(step, words, change):
    """Run train.py, and call change() when it has evaluated a step -> status, stderr."""
    with subprocess.Popen(command(*words), env=ENVIRONMENT, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        for line in running.stdout:
            if line.startswith(f"step {step}/"):
                change()
                break
        _, errors = running.communicate()
    return running.returncode, errors


def run(words):
    """Run train.py to its end -> status, stderr."""
    done = subprocess.run(command(*words), env=ENVIRONMENT, text=True, capture_output=True,
                          stdin=subprocess.DEVNULL)
    return done.returncode, done.stderr


def told(result, *parts):
    """-> what is wrong with how a run has failed: status 3 and one line with these parts."""
    status, errors = result
    right = status == 3 and errors.count("\n") == 1 and all(part in errors for part in parts)
    return [] if right else [f"status {status}: {errors}"]


def try_disks(table):
    """In each the run fails, says so, and has lost nothing; where there is space again, it goes
    on."""
    if not available():
        print("file systems cannot be mounted here, so no disk was filled", file=sys.stderr)
        return
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as here, chdir(here):
            _try_with(workers, table)


def _try_with(workers, table):
    whole, folder = beginnings(workers, LONG), "disk/run"
    words = start(NEW, LONG, workers, folder)
    named = f"{workers} worker{'s' * (workers > 1)}"
    with disk("disk", "4m"):
        found = told(changed_after(3, words, fill), "No space left on device", folder)
        os.unlink("disk/other")
        table.record(f"the disk fills up: {named}",
                     found + problems(folder, whole, had_a_run=True), "")
    with disk("disk", "4m"):
        run([*words, "--max-iters=3"])
        mount("-o", "remount,ro", "disk")            # refused while a file is open for writing
        result = run(resume(LONG, folder))
        found = [] if result == (2, result[1]) and "Read-only" in result[1] else [str(result)]
        mount("-o", "remount,rw", "disk")
        table.record(f"the disk is read-only: {named}",
                     found + problems(folder, whole, had_a_run=True), "")
    with disk("disk", "4m"):
        result = changed_after(3, words, lambda: shutil.rmtree(folder))
        if result == (0, ""):                        # what is saved later is there
            same = left(folder)["latest"] == whole[NEW].left["latest"]
            found = [] if same else ["latest differs from that of an uninterrupted run"]
        else:
            found = told(result, folder)
        table.record(f"the run's directory is removed: {named}", found, "")


def fill():
    """Fill the disk with another file."""
    with suppress(OSError), open("disk/other", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
