import json
import mmap
import os
import tracemalloc

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from npgpt.checkpoints.tensors import Parts, read_tensors, write_tensors
from npgpt.errors import RunError, UserError

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.float64([1, 2])
SHAPES = {"a": (2, 3), "b": (2,)}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"b": B, "a": A})
    return tmp_path / "x.safetensors"


def test_arrays_come_back_in_the_requested_order_with_their_dtypes(path):
    read = read_tensors(path, SHAPES)
    assert list(read) == ["a", "b"]
    for name, array in (("a", A), ("b", B)):
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_array_that_is_not_contiguous_is_written_as_it_reads(path):
    write_tensors(path, {"a": A.T, "b": B[::-1]})
    np.testing.assert_array_equal(load_file(path)["a"], A.T)
    np.testing.assert_array_equal(load_file(path)["b"], [2, 1])


@pytest.mark.parametrize("arrays", [
    {"b": B, "a": A}, {"long name": A.astype(np.float16), "z": B, "a": A, "none": np.zeros((0, 3))},
    {"one": np.array(3, np.float32)}, {},
], ids=["two", "dtypes", "scalar", "none"])
def test_file_has_the_bytes_that_safetensors_writes(arrays, tmp_path):
    write_tensors(tmp_path / "ours", arrays)
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_array_in_parts_is_written_as_a_whole_one_and_never_held(tmp_path):
    parts = (np.full(250_000, n, np.float32) for n in range(20))                # 1 MB each
    tracemalloc.start()
    write_tensors(tmp_path / "x", {"a": Parts((20, 250_000), np.dtype("float32"), parts), "b": B})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
    found = load_file(tmp_path / "x")["a"]
    np.testing.assert_array_equal(found, np.repeat(np.arange(20.0), 250_000).reshape(20, -1))


def test_file_says_that_it_is_meant_for_pytorch(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}         # transformers refuses it without


def test_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"^x\.safetensors cannot be written: .*No such file"):
        write_tensors(tmp_path / "missing" / "x.safetensors", {"a": A})


@pytest.mark.parametrize(("shapes", "message"), [
    ({"a": (3, 2), "b": (2,)}, r"x\.safetensors: a has the shape \(2, 3\), expected \(3, 2\)"),
    ({"a": [2, 3], "b": [3]}, r"x\.safetensors: b has the shape \(2,\), expected \[3\]"),
    ({"a": (2, 3)}, r"x\.safetensors: b is unknown"),
    (SHAPES | {"c": (1,)}, r"x\.safetensors: c \(1,\) is missing"),
])
def test_first_array_that_does_not_fit_is_named(shapes, message, path):
    with pytest.raises(UserError, match=message):
        read_tensors(path, shapes)


def test_shapes_may_be_lists(path):
    assert read_tensors(path, {"a": [2, 3], "b": [2]}).keys() == {"a", "b"}


def test_optional_array_may_be_missing_but_not_of_another_shape(path):
    assert read_tensors(path, SHAPES | {"c": (1,)}, optional={"c"}).keys() == {"a", "b"}
    assert read_tensors(path, SHAPES, optional={"b"}).keys() == {"a", "b"}
    with pytest.raises(UserError, match="b has the shape"):
        read_tensors(path, SHAPES | {"b": (3,)}, optional={"b"})
    with pytest.raises(UserError, match=r"d \(1,\) is missing"):
        read_tensors(path, SHAPES | {"c": (1,), "d": (1,)}, optional={"c"})


def test_names_are_translated_and_arrays_without_a_name_are_not_read(path):
    names = {"a": "first", "b": None}
    read = read_tensors(path, {"first": (2, 3)}, names.get)
    assert list(read) == ["first"]
    np.testing.assert_array_equal(read["first"], A)
    save_file({"a": A, "b": B, "c": B}, path)
    assert list(read_tensors(path, {"first": (2, 3)}, names.get)) == ["first"]
    with pytest.raises(UserError, match=r"x\.safetensors contains first twice"):
        read_tensors(path, {"first": (2, 3)}, lambda name: "first")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_floats_are_read_in_their_dtype(dtype, path):
    save_file({"a": A.astype(dtype)}, path)
    np.testing.assert_array_equal(read_tensors(path, {"a": (2, 3)})["a"], A.astype(dtype),
                                  strict=True)


@pytest.mark.parametrize(("name", "size"), [
    ("I64", 8), ("I32", 4), ("U8", 1), ("BOOL", 1), ("F8_E4M3", 1), ("C64", 8),
])
def test_other_dtypes_are_refused_by_name(name, size, path):
    header = (f'{{"a":{{"dtype":"{name}","shape":[2],"data_offsets":[0,{2 * size}]}}}}').encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2 * size))
    with pytest.raises(UserError, match=rf"x\.safetensors: a has the dtype {name}; npgpt reads "
                                        "F64, F32, F16 and BF16$"):
        read_tensors(path, {"a": (2,)})


@pytest.mark.parametrize("padding", range(4))
def test_bfloat16_becomes_float32_exactly_wherever_it_is_in_the_file(padding, path):
    bits = np.arange(2**16, dtype=np.uint32)                  # every number, NaN and infinity
    entry = {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 2**17]}
    header = json.dumps({"a": entry}).encode() + b" " * padding
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits.astype("<u2").tobytes())
    read = read_tensors(path, {"a": (256, 256)})["a"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.view(np.uint32).ravel(), bits << 16)


def test_arrays_are_read_when_they_are_asked_for_and_do_not_change_the_file(path):
    before = path.read_bytes()
    tracemalloc.start()
    large = np.zeros((1000, 1000))
    save_file({"a": large}, path)
    tracemalloc.reset_peak()
    size, _ = tracemalloc.get_traced_memory()
    read = read_tensors(path, {"a": large.shape})
    total = sum(row.sum() for row in read["a"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 0 and peak - size < large.nbytes / 10
    path.write_bytes(before)
    with pytest.raises(ValueError, match="read-only"):
        read_tensors(path, SHAPES)["a"][0] = 1
    assert path.read_bytes() == before


def test_file_that_may_not_be_read_is_named(path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"x\.safetensors cannot be read: Permission denied$"):
        read_tensors(path, SHAPES)


def test_file_that_cannot_be_mapped_is_named(path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(19, "No such device")

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(UserError, match=r"x\.safetensors cannot be read: No such device$"):
        read_tensors(path, SHAPES)


def test_file_that_is_missing_damaged_or_a_directory_is_named(path):
    with pytest.raises(UserError, match=r"y\.safetensors is missing"):
        read_tensors(path.with_name("y.safetensors"), SHAPES)
    with pytest.raises(UserError, match=r" is a directory$"):
        read_tensors(path.parent, SHAPES)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"x\.safetensors is damaged or not a safetensors file: "):
        read_tensors(path, SHAPES)
