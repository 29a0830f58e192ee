import os
from pathlib import Path

import pytest

from npgpt import UserError
from npgpt.durable import SUMS, atomic_directory, read_json, verify, write_json, write_text

FILES = {"a.json", SUMS}


def write(target, text):
    with atomic_directory(target, FILES) as folder:
        (folder / "a.json").write_text(text)


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_directory_contains_its_files_and_hashes_only(tmp_path):
    write(tmp_path / "deep" / "m", "one")
    assert tree(tmp_path) == ["deep", "deep/m", "deep/m/SHA256SUMS", "deep/m/a.json"]
    verify(tmp_path / "deep" / "m")
    for path in (tmp_path / "deep" / "m", *(tmp_path / "deep" / "m").iterdir()):
        assert path.stat().st_mode & 0o044 == 0o044        # others may read it


def test_target_does_not_exist_before_it_is_complete(tmp_path):
    with atomic_directory(tmp_path / "m", FILES) as folder:
        (folder / "a.json").write_text("one")
        assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("failing", ["fsync", "rename", "second rename"])
def test_failure_at_any_point_keeps_the_old_directory(tmp_path, monkeypatch, failing):
    write(tmp_path / "m", "old")
    renames = []

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    def rename(path, target, original=Path.rename):
        renames.append(target)
        if failing == "rename" or (failing == "second rename" and len(renames) == 2):
            fail()
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "m", "new")
    assert (tmp_path / "m" / "a.json").read_text() == "old"
    assert tree(tmp_path) == ["m", "m/SHA256SUMS", "m/a.json"]


def test_directory_with_other_files_is_not_replaced(tmp_path):
    write(tmp_path / "m", "old")
    (tmp_path / "m" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains 'thesis\.txt', which npgpt did not write"):
        write(tmp_path / "m", "new")
    assert (tmp_path / "m" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "m" / "a.json").read_text() == "old"


def test_damage_is_detected(tmp_path):
    write(tmp_path / "m", "one")
    (tmp_path / "m" / "a.json").write_text("two")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        verify(tmp_path / "m")
    (tmp_path / "m" / "SHA256SUMS").write_text("")
    with pytest.raises(UserError, match=r"SHA256SUMS is damaged: a\.json is not listed"):
        verify(tmp_path / "m")
    write(tmp_path / "m", "one")
    (tmp_path / "m" / "a.json").unlink()
    with pytest.raises(UserError, match=r"a\.json is missing"):
        verify(tmp_path / "m")
    (tmp_path / "m" / "SHA256SUMS").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="missing"):
        verify(tmp_path / "m")


def test_directory_without_hashes_is_accepted(tmp_path):
    verify(tmp_path)


def test_text_is_replaced_atomically(tmp_path):
    write_text(tmp_path / "latest", "one\n")
    write_text(tmp_path / "latest", "two\n")
    assert tree(tmp_path) == ["latest"]
    assert (tmp_path / "latest").read_text() == "two\n"


def test_json_that_is_not_an_object_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1.5, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1.5, None]}
    for content in (b"[1]", b"{", b"\xff", b""):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json"):
            read_json(tmp_path / "a.json")
