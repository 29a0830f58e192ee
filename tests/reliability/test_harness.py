"""The harness notices what goes wrong. `python -m tests.reliability` tries npgpt itself."""

import os
import random
import sys

import pytest

from npgpt import UserError
from npgpt.durable import SUMS
from tests.reliability import bad_input, damage, exact
from tests.reliability.damage import Damage, Format, all_damage, changed, random_damage, tried
from tests.reliability.table import Table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and fork")


def refuse():
    raise UserError("the file is damaged")


def refuse_in_lines():
    raise UserError("one line\nand another")


def fail():
    raise KeyError("a")


def end():
    os._exit(7)


def hang():
    while True:
        pass


READERS = {         # -> what is said of it
    refuse: [], list: [], refuse_in_lines: ["not one short line"], fail: ["KeyError: 'a'"],
    end: ["the process ended with status 7"], hang: ["the process ended with status -14"],
}


@pytest.mark.parametrize(("reader", "said"), READERS.items(), ids=lambda value: str(value)[:20])
def test_every_way_to_go_wrong_is_found(reader, said, home, monkeypatch):
    monkeypatch.setattr(damage, "SECONDS", 1)
    (home / "a").write_bytes(b"abc")
    form = Format("a file", None, ("a",), reader)
    found = tried(form, [Damage("a", "bit", 3, False), Damage("a", "length", 1, False)])
    assert len(found) == 2 and all(bool(problem) == bool(said) for problem in found)
    assert all(part in problem for part in said for problem in found)
    if reader not in (end, hang):                              # they leave the file as it is
        assert (home / "a").read_bytes() == b"abc"


def test_damage_that_a_hash_should_have_found_is_reported(home):
    (home / "m").mkdir()
    (home / "m/a.json").write_bytes(b"{}")
    (home / "m" / SUMS).write_text("x")
    form = Format("a directory", None, ("m/*",), lambda: None, "m")
    with_hashes, without = tried(form, [Damage("m/a.json", "bit", 3, hashed)
                                        for hashed in (True, False)])
    assert "in spite of its hash" in with_hashes and without == ""
    assert sorted(path.name for path in (home / "m").iterdir()) == [SUMS, "a.json"]


def test_every_bit_and_every_length_is_tried_with_hashes_and_without(home):
    (home / "m").mkdir()
    (home / "m/a").write_bytes(b"abc")
    form = Format("a directory", None, ("m/*",), None, "m")
    assert len(all_damage(form)) == 3 * (1 + 8)
    (home / "m" / SUMS).write_bytes(b"xy")
    every = all_damage(form)
    assert len(every) == 2 * 3 * (1 + 8) + 2 * (1 + 8)
    assert {d.of(b"abc") for d in every if d.file == "m/a" and d.kind == "length"} == {
        b"", b"a", b"ab"}
    flips = {d.of(b"abc") for d in every if d.file == "m/a" and d.kind == "bit"}
    assert len(flips) == 24 and all(len(content) == 3 for content in flips)
    assert {d.file for d in random_damage(form, 20, random.Random(1))} == {"m/a"}


def test_random_changes_are_many_and_repeat():
    found = {changed(b'{"a": 1, "b": 22}', random.Random(seed)) for seed in range(200)}
    assert len(found) > 100 and any(b"1e400" in content for content in found)
    assert changed(b"abc", random.Random(5)) == changed(b"abc", random.Random(5))


def test_table_of_bad_input_covers_every_command():
    found = bad_input.cases()
    assert len(found) >= 120 and all(command and begins for command, begins in found)
    assert len({command for command, _ in found}) == len(found)
    assert {command.split()[0] for command, _ in found} >= {
        "train", "sample", "eval", "tokenizer", "merge", "report", "explain", "ranks"}


def test_command_that_does_not_refuse_is_reported(home):
    assert bad_input.problems("train --n-layer=0", "--n-layer must be at least 1, got 0") == []
    assert bad_input.problems("train --n-layer=0", "--n-layer must be 5") == [
        "it says: train.py: --n-layer must be at least 1, got 0"]
    status, stdout, stderr = bad_input.problems("explain relu", "x")
    assert (status, stderr) == ("status 0", "not one line: ") and stdout.startswith("on stdout: ")


def test_what_differs_from_an_uninterrupted_run_is_named(home, monkeypatch):
    monkeypatch.setattr(exact, "left", lambda folder: {"latest": 1, "best": 2, "metrics": 4})
    assert exact.different("run", {"latest": 1, "best": 3, "metrics": 4}) == ["best differs"]


def test_table_counts_tries_and_failures(capsys):
    table = Table()
    for found in ([], ["broken"], []):
        table.record("a fault", found, "try 1")
    assert table.show() == 1
    out, err = capsys.readouterr()
    assert out.endswith("| a fault | 3 | 1 |\n") and err == "a fault, try 1: broken\n"
