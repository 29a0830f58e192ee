"""`npgpt ranks`, in this process and under mpiexec."""

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path

import pytest

from npgpt.__main__ import main
from npgpt.backend import get_device
from npgpt.errors import RunError
from npgpt.parallel import Single
from npgpt.text import source
from npgpt.text.source import Found, load_source
from npgpt.training.ranks import Rank, differences, exchange_seconds, notes, problems, this_rank
from tests.commands.tiny import TEXT, everything
from tests.training.two_ranks import TwoRanks

DIGITS = hashlib.sha256(TEXT.encode()).hexdigest()[:8]
READY, NOT_READY = "result      training can start\n", "result      training cannot start\n"


def joined(text):
    """Each paragraph of the output in one line."""
    return re.sub(r"\n {2,}", " ", text)


def test_one_process_is_told_how_to_start_several(run):
    result = run(main, "ranks", "--data=fox.txt", "--device=cpu")
    assert (result.status, result.err) == (0, "")
    head, rank, *lines = joined(result.out).splitlines()
    assert head.split() == ["rank", "host", "process", "device", "cores", "threads", "Python",
                            "NumPy", "npgpt", "data"]
    me = this_rank("cpu", "fox.txt", Single())
    assert rank.split() == ["0", me.host, str(me.process), "CPU", str(me.cores), str(me.blas),
                            me.python, me.numpy, me.npgpt, DIGITS]
    mpi, data, verdict = lines
    assert re.search(r"; to start several: .*mpiexec -n \d+ npgpt ranks$", mpi)
    assert data == "data        fox.txt; the digits above begin its SHA-256"
    assert verdict + "\n" == READY


def test_narrow_terminal_gets_a_paragraph_for_each_rank(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = run(main, "ranks", "--data=fox.txt").out
    assert max(map(len, out.splitlines())) <= 40
    assert re.search(rf"^rank 0, host \S+, .*threads \d+, .*data {DIGITS}$", joined(out), re.M)


@pytest.mark.parametrize(("words", "status", "message"), [
    (["--data=nowhere"], 2, "problem     rank 0: there is no file 'nowhere'; --data takes"),
    ([], 0, "note        data/tinyshakespeare.txt is missing; rank 0 downloads it when"),
    (["--data=empty.txt"], 2, "problem     rank 0: empty.txt is empty; --data takes"),
    (["--data=fox.txt", "--device=gpu"], 2, "problem     rank 0: no GPU: "),
])
def test_what_is_missing_is_named_and_nothing_is_written(words, status, message, run, home):
    (home / "empty.txt").touch()
    before = everything(home)
    result = run(main, "ranks", *words)
    assert (result.status, result.err) == (status, "")
    assert message in joined(result.out) and result.out.endswith(NOT_READY if status else READY)
    assert everything(home) == before


def test_large_text_has_a_fingerprint_once_it_is_encoded(run, monkeypatch):
    monkeypatch.setattr(source, "LARGE", 100)
    before = run(main, "ranks", "--data=fox.txt")
    assert before.status == 0 and DIGITS not in before.out
    assert ("note        the texts are not encoded yet: rank 0 does it when training starts, into "
            "data/cache\n") in joined(before.out)
    load_source("fox.txt")
    after = run(main, "ranks", "--data=fox.txt").out
    assert f" {DIGITS}\n" in after and "note" not in after


def test_processes_of_slurm_that_do_not_know_each_other_cannot_train(run, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    result = run(main, "ranks", "--data=fox.txt")
    assert result.status == 2
    assert "problem     SLURM has started 2 processes, each of which would train alone; srun " \
           "needs --mpi=pmi2\n" in joined(result.out)


@pytest.mark.parametrize(("values", "expected"), [
    ("aaaa", ""), ("aaba", "rank 2 has NumPy b, the others a"),
    ("abba", "ranks 1, 2 have NumPy b, the others a"), ("ab", "rank 1 has NumPy b, rank 0 a"),
    ("baaac", "rank 0 has NumPy b, rank 4 has NumPy c, the others a"),
    ("ba", "rank 1 has NumPy a, rank 0 b"), ("aa ", "rank 2 has NumPy none, the others a"),
])
def test_difference_is_told_of_the_ranks_that_are_fewer(values, expected):
    assert differences("NumPy", [value.strip() for value in values]) == expected


TOKENS = Found("f00d", "1234", Path("tokens"))
RANK = Rank("alpha", 1, "CPU", "cpu", 2, (0, 1), 1, "3.11.7", "2.4.6", "0.1.0", TOKENS)


def three(**changes):
    """Ranks of which the last one differs."""
    return [RANK, RANK, dataclasses.replace(RANK, host="beta", **changes)]


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, []),
    ({"python": "3.13.1", "numpy": "2.3.1"}, []),
    ({"npgpt": "0.2.0"}, ["rank 2 has npgpt 0.2.0, the others 0.1.0; install the same version on "
                          "every host"]),
    ({"kind": "gpu"}, ["rank 2 has the device gpu, the others cpu; choose a `device` that every "
                       "rank has"]),
    ({"kind": "", "problem": "no GPU"}, ["rank 2: no GPU"]),
    ({"found": Found(), "data_problem": "there is no tokens"}, ["rank 2: there is no tokens"]),
    ({"found": Found("f00d", "5678", Path("tokens"))},
     ["rank 2: tokens has other tokens than rank 0's; copy the directory from there"]),
])
def test_ranks_that_cannot_train_together(changes, expected):
    assert problems(three(**changes)) == expected


def test_ranks_with_the_same_problem_have_one_line():
    assert problems([dataclasses.replace(RANK, problem="no GPU")] * 3) == ["ranks 0, 1, 2: no GPU"]


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, []),
    ({"python": "3.13.1", "numpy": "2.3.1"}, ["rank 2 has Python 3.13.1, the others 3.11.7",
                                              "rank 2 has NumPy 2.3.1, the others 2.4.6"]),
    ({"kind": "gpu", "device": "H200"}, []),                        # a problem
    ({"device": "Other"}, ["rank 2 has the device Other, the others CPU"]),
])
def test_differences_that_do_not_matter_are_noted(changes, expected):
    assert notes(three(**changes)) == expected


@pytest.mark.parametrize(("cores", "allowed", "expected"), [
    (2, [(0, 1)] * 3, 2), (3, [(0, 1, 2)] * 3, None), (2, [()] * 3, 2),
    (1, [(0,), (1,), (2,)], None), (1, [(0,), (1,), (1,)], 2),      # bound to cores
    (2, [(0, 1, 2, 3)] * 3, 2),                                     # a container's quota
])
def test_more_ranks_than_cores_are_noted(cores, allowed, expected):
    ranks = [dataclasses.replace(RANK, cores=cores, allowed=which) for which in allowed]
    assert notes(ranks) == ([] if expected is None else [
        f"3 ranks on alpha share {expected} cores, and are slower than {expected}"])


def test_ranks_with_gpus_may_be_more_than_cores():
    assert notes([dataclasses.replace(RANK, kind="gpu")] * 3) == []


@pytest.mark.parametrize(("first", "last", "expected"), [
    (Found("f00d"), Found("f00d"), []),
    (Found("f00d"), Found(), ["rank 2 does not have this text; rank 0 reads it for all"]),
    (Found(path=Path("cache")), Found(),
     ["the texts are not encoded yet: rank 0 does it when training starts, into cache, a directory "
      "that all hosts must share"]),
])
def test_text_that_rank_0_reads_for_all_is_no_problem(first, last, expected):
    ranks = [dataclasses.replace(RANK, found=first)] * 2
    ranks.append(dataclasses.replace(RANK, host="beta", found=last, data_problem="no file"))
    assert problems(ranks) == [] and notes(ranks) == expected


def test_wrong_sum_is_an_error():
    class Wrong(TwoRanks):
        def reduce_scatter(self, grads, shards):
            return 3 * grads.flat

    cpu = get_device("cpu")
    assert exchange_seconds(Single(), cpu, 5) > 0
    with pytest.raises(RunError, match=r"^rank 0 on .* got a wrong sum of the gradients"):
        exchange_seconds(Wrong(), cpu, 5)                     # the other's shard is 7


def test_ranks_of_mpiexec_have_a_line_each_and_a_time(mpiexec):
    result = mpiexec("-n", "2", "npgpt", "ranks", "--data=fox.txt", "--mb=9")
    assert (result.returncode, result.stderr) == (0, "")
    out = joined(result.stdout)
    assert len(re.findall(rf"^[01] .* CPU .* {DIGITS}$", out, re.M)) == 2
    assert re.search(r"^MPI +\S.*, 2 MPI ranks$", out, re.M)
    assert re.search(r"^all-reduce  9 MB of gradients in [\d.]+ ms .*: [\d.]+ GB/s out of", out,
                     re.M)
    assert out.endswith(READY)


def test_every_rank_needs_the_token_file_of_rank_0(mpiexec, run, home):
    (home / "there").mkdir()
    (home / "other.txt").write_text(TEXT.upper())
    for text, folder in (("fox.txt", "tokens"), ("other.txt", "other")):
        assert run(main, "tokenizer", "train", text, "--vocab-size=257",
                   "--out-dir=vocabulary", "--overwrite").status == 0
        assert run(main, "tokenizer", "encode", text, "--tokenizer=vocabulary",
                   f"--out-dir={folder}").status == 0
    words = ("npgpt", "ranks", "--data=tokens", "--mb=1")

    def two():
        result = mpiexec("-n", "1", *words, ":", "-n", "1", "-wdir", str(home / "there"), *words)
        assert result.stderr == ""
        return result.returncode, joined(result.stdout)

    status, out = two()
    assert status == 2 and "\nproblem     rank 1: " in out and out.endswith(NOT_READY)
    shutil.copytree(home / "tokens", home / "there/tokens")
    status, out = two()
    assert status == 0 and "problem" not in out and out.endswith(READY)
    shutil.rmtree(home / "there/tokens")
    shutil.copytree(home / "other", home / "there/tokens")
    status, out = two()
    assert status == 2
    assert "problem     rank 1: tokens has other tokens than rank 0's; copy the directory" in out


def test_text_that_is_encoded_is_needed_by_rank_0_alone(mpiexec, home):
    (home / "texts").mkdir()
    (home / "texts/fox.txt").write_text(TEXT)
    load_source("texts")
    shutil.copytree(home / "data/cache", home / "there/data/cache")
    words = ("npgpt", "ranks", "--data=texts", "--mb=1")
    result = mpiexec("-n", "1", *words, ":", "-n", "1", "-wdir", str(home / "there"), *words)
    assert (result.returncode, result.stderr) == (0, "")
    digits = [line.split()[-1] for line in result.stdout.splitlines()[1:3]]
    assert digits[0] == digits[1] != "none" and "note" not in result.stdout


def test_mistyped_option_is_answered_once(mpiexec):
    result = mpiexec("-n", "2", "npgpt", "ranks", "--devise=cpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("npgpt ranks: unknown option --devise; did you mean --device? --help "
                             "lists all options\n")
