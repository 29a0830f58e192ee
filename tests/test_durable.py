import hashlib
import os
import shutil
from pathlib import Path

import pytest

from npgpt import UserError
from npgpt.durable import (
    SUMS,
    atomic_directory,
    remove_directory,
    temporary,
    verify,
    write_json,
    write_text,
)
from npgpt.errors import RunError
from npgpt.reading import read_json

FILES = {"a.json", SUMS}


def write(target, text):
    with atomic_directory(target, FILES) as folder:
        (folder / "a.json").write_text(text)


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_directory_contains_its_files_and_hashes_only(tmp_path):
    target = tmp_path / "deep" / "er" / "m"
    write(target, "one")
    assert tree(tmp_path / "deep") == ["er", "er/m", "er/m/SHA256SUMS", "er/m/a.json"]
    verify(target)
    assert target.stat().st_mode & 0o055 == 0o055          # others may read it
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o644}
    digest = hashlib.sha256(b"one").hexdigest()
    assert (target / "SHA256SUMS").read_text() == f"{digest}  a.json\n"


def test_others_may_read_also_what_was_written_for_the_owner_alone(tmp_path):
    with atomic_directory(tmp_path / "m", FILES) as folder:
        (folder / "a.json").touch(mode=0o600)
    assert (tmp_path / "m" / "a.json").stat().st_mode & 0o777 == 0o644


def test_names_and_texts_are_utf_8(tmp_path):
    with atomic_directory(tmp_path / "m", FILES) as folder:
        write_json(folder / "é.json", {})
        write_json(folder / "two  spaces.json", {})
    lines = (tmp_path / "m" / SUMS).read_bytes().decode().splitlines()
    assert [line[64:] for line in lines] == ["  two  spaces.json", "  é.json"]
    verify(tmp_path / "m")


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "..", ".", "", "under/a.json"])
def test_hash_of_a_path_elsewhere_is_refused(tmp_path, name):
    with atomic_directory(tmp_path / "m", FILES) as folder:
        write_json(folder / "a.json", {})
    with open(tmp_path / "m" / SUMS, "a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(UserError, match=r"SHA256SUMS is damaged: it lists '.*', which is not in"):
        verify(tmp_path / "m")


def test_hashes_are_sorted_by_name_and_one_from_before_is_replaced(tmp_path):
    with atomic_directory(tmp_path / "m", FILES) as folder:
        for name in ("b.json", "a.json", SUMS):
            (folder / name).write_text(name)
    verify(tmp_path / "m")
    lines = (tmp_path / "m" / SUMS).read_text().splitlines()
    assert [line[64:] for line in lines] == ["  a.json", "  b.json"]


def test_temporary_directory_lies_beside_the_target_and_says_whose_it_is(tmp_path):
    with atomic_directory(tmp_path / "m", FILES) as folder:
        assert folder.parent.name.startswith(".m.")        # RunDirectory.begin looks for it
        assert folder.parent.parent == tmp_path


def test_target_may_be_a_link_or_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    monkeypatch.chdir(tmp_path)
    write("link", "one")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path) == ["link", "there", "there/SHA256SUMS", "there/a.json"]


@pytest.mark.parametrize("target", ["file", "file/m", "file/deep/m"])
def test_target_in_a_file_is_refused_before_anything_is_written(target, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file is a file; choose another path for the directory"):
        write(tmp_path / target, "new")
    assert tree(tmp_path) == ["file"]


def test_own_error_is_raised_also_if_the_temporary_directory_is_gone(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "m", FILES) as folder:
        shutil.rmtree(folder.parent)
        raise ZeroDivisionError
    assert tree(tmp_path) == []


def test_target_does_not_exist_before_it_is_complete(tmp_path):
    with atomic_directory(tmp_path / "m", FILES) as folder:
        (folder / "a.json").write_text("one")
        assert not (tmp_path / "m").exists()


@pytest.fixture
def order(tmp_path, monkeypatch):
    """The flushes and renames that are done, in order, with paths relative to tmp_path."""
    done = []

    def fsync(descriptor, original=os.fsync):
        stat = os.fstat(descriptor)
        path = next(path for path in (tmp_path, *tmp_path.rglob("*"))
                    if os.path.samestat(path.stat(), stat))
        done.append(f"flush {path.name} of {stat.st_size}" if path.is_file() else
                    f"flush {path.name}/")
        return original(descriptor)

    def renaming(original):
        def rename(source, target):
            done.append(f"{Path(source).name} becomes {Path(target).name}")
            return original(source, target)
        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renaming(getattr(os, name)))
    return done


def test_everything_is_on_disk_before_a_directory_gets_its_name(tmp_path, order):
    write(tmp_path / "m", "one")
    assert order == ["flush a.json of 3", "flush SHA256SUMS of 73", "flush new/", "new becomes m",
                     f"flush {tmp_path.name}/"]
    order.clear()
    write(tmp_path / "m", "longer")
    assert order == ["flush a.json of 6", "flush SHA256SUMS of 73", "flush new/", "m becomes old",
                     "new becomes m", f"flush {tmp_path.name}/"]


def test_everything_is_on_disk_before_a_text_gets_its_name(tmp_path, order):
    write_text(tmp_path / "latest", "é\n")
    assert order == ["flush .latest.new of 3", ".latest.new becomes latest",
                     f"flush {tmp_path.name}/"]


def test_no_descriptor_stays_open(tmp_path):
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    write(tmp_path / "m", "one")
    write_text(tmp_path / "latest", "one")
    if before:
        assert set(os.listdir("/proc/self/fd")) == before


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


def test_old_directory_is_kept_and_named_if_it_cannot_be_put_back(tmp_path, monkeypatch):
    write(tmp_path / "m", "old")

    def rename(path, target, original=Path.rename):
        if Path(target).name == "m":
            raise OSError(5, "Input/output error")
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(RunError) as error:
        write(tmp_path / "m", "new")
    [kept] = tmp_path.glob(".m.*/old")
    assert error.value.message == (f"{tmp_path}/m could not be replaced ([Errno 5] Input/output "
                                   f"error) and is now {kept}; move it back")
    assert (kept / "a.json").read_text() == "old"


@pytest.mark.parametrize("failing", ["fsync", "replace", "unlink"])
def test_failed_write_of_a_text_keeps_the_old_one_and_leaves_nothing(tmp_path, monkeypatch,
                                                                     failing):
    write_text(tmp_path / "latest", "old")

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    for name in {failing, "fsync"}:
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "latest", "new")
    assert (tmp_path / "latest").read_text() == "old"
    left = [temporary(tmp_path / "latest").name] if failing == "unlink" else []
    assert tree(tmp_path) == [*left, "latest"]


def test_directory_that_is_removed_has_a_hidden_name_meanwhile(tmp_path, order):
    write(tmp_path / "m", "one")
    remove_directory(tmp_path / "m")
    assert order[-1] == "m becomes old" and tree(tmp_path) == []


def test_directory_with_other_files_is_not_replaced(tmp_path):
    write(tmp_path / "m", "old")
    (tmp_path / "m" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains 'thesis\.txt', which npgpt did not write; "
                                        "choose another directory$"):
        write(tmp_path / "m", "new")
    assert (tmp_path / "m" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "m" / "a.json").read_text() == "old"


def test_damage_is_detected(tmp_path):
    write(tmp_path / "m", "one")
    (tmp_path / "m" / "a.json").write_text("two")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        verify(tmp_path / "m")
    (tmp_path / "m" / "SHA256SUMS").write_text("")
    with pytest.raises(UserError, match=r"a\.json is not listed in SHA256SUMS; if you"):
        verify(tmp_path / "m")
    write(tmp_path / "m", "one")
    (tmp_path / "m" / "a.json").unlink()
    with pytest.raises(UserError, match=r"a\.json is missing"):
        verify(tmp_path / "m")
    (tmp_path / "m" / "SHA256SUMS").write_bytes(b"\xff\xfe  \xff\n")
    with pytest.raises(UserError, match="missing"):
        verify(tmp_path / "m")


def test_file_that_is_not_listed_is_accepted_unless_npgpt_reads_its_kind(tmp_path):
    write(tmp_path / "m", "one")
    (tmp_path / "m" / "README.md").write_text("mine")
    verify(str(tmp_path / "m"))
    for name in ("b.json", "b.safetensors", "b.npy"):
        (tmp_path / "m" / name).touch()
        with pytest.raises(UserError, match=rf"{name} is not listed in SHA256SUMS; if you"):
            verify(tmp_path / "m")
        (tmp_path / "m" / name).unlink()


def test_caller_may_say_how_large_a_file_can_be(tmp_path):
    write(tmp_path / "m", "one")
    verify(tmp_path / "m", most=10**6)
    with pytest.raises(UserError, match="at most 2 are expected"):
        verify(tmp_path / "m", most=2)


def test_directory_in_the_place_of_a_file_is_named(tmp_path):
    write(tmp_path / "m", "one")
    (tmp_path / "m" / "a.json").unlink()
    (tmp_path / "m" / "a.json").mkdir()
    with pytest.raises(UserError, match=r"a\.json is a directory"):
        verify(tmp_path / "m")


def test_odd_names_and_deep_nesting_are_named(tmp_path):
    write(tmp_path / "m", "one")
    digest = hashlib.sha256((tmp_path / "m" / "a.json").read_bytes()).hexdigest().encode()
    (tmp_path / "m" / SUMS).write_bytes(digest + b"  a.json\n" + digest + b"  b\0\n")
    with pytest.raises(UserError, match=r"m/b\x00 cannot be read: embedded null"):
        verify(tmp_path / "m")
    (tmp_path / "deep.json").write_text("[" * 10**6)
    with pytest.raises(UserError, match=r"deep\.json is not valid JSON: it is nested too deeply$"):
        read_json(tmp_path / "deep.json")


def test_directory_that_is_removed_halfway_has_a_temporary_name(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").touch()

    def killed(path, *arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        remove_directory(tmp_path / "m")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".m.") and [path.name for path in left.rglob("a")] == ["a"]
    (tmp_path / "n").mkdir()
    remove_directory(tmp_path / "n")
    assert [*tmp_path.iterdir()] == [left]


def test_directory_without_hashes_is_accepted(tmp_path):
    (tmp_path / "a.json").write_text("one")
    verify(tmp_path)


def test_text_is_replaced_atomically(tmp_path):
    write_text(tmp_path / "latest", "one\n")
    write_text(str(tmp_path / "latest"), "zwei é\n")
    assert tree(tmp_path) == ["latest"]
    assert (tmp_path / "latest").read_bytes() == "zwei é\n".encode()


def test_json_that_is_not_an_object_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1.5, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1.5, None]}
    assert (tmp_path / "a.json").read_text() == (
        '{\n  "\\u00e9": [\n    1.5,\n    null\n  ]\n}\n')
    for content in (b"{", b"\xff", b"", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
            read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"[1]")
    with pytest.raises(UserError, match=r"a\.json does not contain a JSON object"):
        read_json(str(tmp_path / "a.json"))


def test_json_is_read_as_utf_8_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes('{"é": "\U0001f600"}'.encode())
    assert read_json(tmp_path / "a.json") == {"é": "\U0001f600"}
    with pytest.raises(UserError, match=r"b\.json is missing"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match=r" is a directory$"):
        read_json(tmp_path)
