"""Reading GGUF files, damaged ones too."""

import errno
import mmap
import os
import random
import struct
import sys
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from npgpt import UserError
from npgpt.checkpoints.gguf import read
from npgpt.gguf_file import READ, GGUFFile, GGUFTensor
from npgpt.models.llama import Llama
from npgpt.text.gguf import gguf_tokenizer
from tests.gguf_files import (
    KINDS,
    metadata_of,
    random_llama,
    tensors_of,
    tokenizer_metadata,
    write_gguf,
)

VALUES = {"a.number": 7, "a.float": 0.25, "a.text": "naïve\n", "a.bool": True, "some.numbers":
          [1, -2, 3], "some.floats": [0.5, 2.0], "some.texts": ["a", "", "é"], "no.things": [False]}
FIRST_TENSOR = b"\1\0\0\0\0\0\0\0b"        # its name, with the length in front
MATRIX = np.random.default_rng(0).standard_normal((5, 3, 64)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return write_gguf(tmp_path / "m.gguf", VALUES, {"w": MATRIX, "b": MATRIX[0, 0, :7]})


def refusal(path):
    """-> the message with which the file is refused, a line that names it."""
    with pytest.raises(UserError) as error:
        GGUFFile(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def test_metadata_are_those_that_were_written(path):
    found = GGUFFile(path).metadata
    assert dict(found) == VALUES | {"general.architecture": "llama"}
    assert len(found) == 9 and found["a.bool"] is True and "other" not in found


def test_every_type_of_number_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values = {}
    for kind, value in (("uint8", 255), ("int8", -128), ("uint16", 65535), ("int16", -32768),
                        ("uint32", 2**32 - 1), ("int32", -2**31), ("uint64", 2**64 - 1),
                        ("int64", -2**63), ("float32", 0.5), ("float64", 0.1)):
        getattr(writer, f"add_{kind}")(kind, value)
        values[kind] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert dict(GGUFFile(tmp_path / "m.gguf").metadata) == values | {
        "general.architecture": "llama"}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_dequantised_as_by_the_package(kind, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": MATRIX, "b": MATRIX[0, 0, :7]}, kind)
    tensors = GGUFFile(path).tensors
    assert list(tensors) == ["w", "b"]
    assert tensors["w"].shape == (5, 3, 64) and tensors["w"].quantisation == kind
    assert tensors["b"].shape == (7,) and tensors["b"].quantisation == "F32"
    of = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(gguf.quants.quantize(MATRIX, of), of)
    found = tensors["w"].array()
    assert found.dtype == np.float32 and found.flags.writeable
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, MATRIX, atol=0.3)
    np.testing.assert_array_equal(tensors["b"].array(), MATRIX[0, 0, :7])


def test_long_tensor_is_dequantised_in_parts(tmp_path):
    rows = np.random.default_rng(0).standard_normal((2500, 32)).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": rows}, "Q8_0")
    np.testing.assert_allclose(GGUFFile(path).tensors["w"].array(), rows, atol=0.02)


def test_each_row_is_dequantised_once():
    """With a package that keeps the rows it is given."""
    found, rows = [], np.arange(5000, dtype=np.float32)[:, None]
    package = SimpleNamespace(quants=SimpleNamespace(
        dequantize=lambda data, _: found.append(data.view(np.float32)) or found[-1]))
    tensor = GGUFTensor(rows.shape, gguf.GGMLQuantizationType.F32, rows.view(np.uint8).ravel(),
                        package)
    np.testing.assert_array_equal(tensor.array(), rows)
    assert 1 < len(found) < 50
    np.testing.assert_array_equal(np.concatenate(found), rows)


def test_tensor_of_four_dimensions_is_read(tmp_path):
    array = MATRIX.reshape(5, 3, 2, 32)
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": array})
    np.testing.assert_array_equal(GGUFFile(path).tensors["w"].array(), array)


@pytest.mark.parametrize("alignment", [8, 256])
def test_data_are_aligned_as_the_file_says(alignment, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(alignment)
    writer.add_tensor("b", MATRIX[0, 0, :7])
    writer.add_tensor("w", MATRIX)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.testing.assert_array_equal(GGUFFile(tmp_path / "m.gguf").tensors["w"].array(), MATRIX)


@pytest.mark.parametrize("kind", ["Q5_0", "Q4_K", "F64", "I8"])
def test_other_types_of_tensors_are_refused_by_name(kind, tmp_path):
    of = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    _, size = gguf.GGML_QUANT_SIZES[of]
    writer.add_tensor("blk.0.w", np.zeros((2, size), np.uint8), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refusal(tmp_path / "m.gguf") == (
        f"{tmp_path / 'm.gguf'}: blk.0.w has the type {kind}; npgpt reads F32, F16, BF16, Q8_0, "
        "Q4_0 and Q4_1")


def test_package_knows_every_type_that_npgpt_reads():
    assert set(READ) == set(KINDS) <= set(gguf.GGMLQuantizationType.__members__)


def change(path, at, content):
    data = bytearray(path.read_bytes())
    data[at:at + len(content)] = content
    path.write_bytes(data)


@pytest.mark.parametrize(("at", "content", "message"), [
    (0, b"GGML", "is not a GGUF file"),
    (4, struct.pack("<I", 1), "is of version 1 of GGUF; npgpt reads 2 and 3"),
    (4, struct.pack("<I", 4), "is of version 4 of GGUF; npgpt reads 2 and 3"),
    (4, struct.pack(">I", 3), "is big-endian; npgpt reads little-endian GGUF files"),
    (8, struct.pack("<Q", 2**60), "is damaged: "),
    (16, struct.pack("<Q", 2**60), "is damaged: "),
    (56, struct.pack("<Q", 2**62), "in the middle of its header"),
    (24, struct.pack("<Q", 257), "it has a name of 257 bytes; at most 256 are expected"),
    (24, struct.pack("<Q", 0), "'' is not a valid name"),
    (32, b"\n", "is not a valid name"),
    (32, b"\xff", "is damaged: 'utf-8' codec"),
    (52, struct.pack("<I", 13), "a value of the type 13, which is unknown"),
    (52, struct.pack("<I", 2**31 + 8), "a value of the type 2147483656, which is unknown"),
])
def test_damaged_header_is_refused(at, content, message, path):
    change(path, at, content)
    assert message in refusal(path)


@pytest.mark.parametrize(("old", "new", "message"), [
    (b"a.text", b"a.bool", "a.bool is there twice"),
    (FIRST_TENSOR, b"\1\0\0\0\0\0\0\0w", "the tensor w is there twice"),
])
def test_name_that_is_there_twice_is_refused(old, new, message, path):
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    assert message in refusal(path)


def test_list_of_lists_is_refused(path):
    data = path.read_bytes()
    at = data.index(b"some.numbers") + 12
    change(path, at + 4, struct.pack("<I", 9))
    assert "some.numbers: a list of the type 9, which is unknown" in refusal(path)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("dimensions", struct.pack("<I", 5), "has 5 dimensions"),
    ("dimensions", struct.pack("<I", 0), "has 0 dimensions"),
    ("dimensions", struct.pack("<I", 2**31 + 1), "has 2147483649 dimensions"),
    ("size", struct.pack("<Q", 0), "has the shape"),
    ("size", struct.pack("<Q", 2**60), "but the tensor b at byte"),
    ("type", struct.pack("<I", 99), "the tensor b has the unknown type 99"),
    ("type", struct.pack("<I", 8), "the tensor b of the type Q8_0 has the shape (7,)"),
    ("offset", struct.pack("<Q", 0), "the tensor b starts at 0, expected 3,840"),
    ("offset", struct.pack("<Q", 2**63), "expected 3,840"),
])
def test_damaged_description_of_a_tensor_is_refused(field, value, message, path):
    at = path.read_bytes().index(FIRST_TENSOR) + 9
    offset = {"dimensions": 0, "size": 4, "type": 12, "offset": 16}[field]
    change(path, at + offset, value)
    assert message in refusal(path)


def test_longest_name_is_read(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"n" * 256: 7})
    assert GGUFFile(path).metadata["n" * 256] == 7


@pytest.mark.parametrize(("text", "message"), [
    ("x" * 58, f"is '{'x' * 58}'"),
    ("x" * 59, f"is '{'x' * 59}..."),
])
def test_long_value_is_cut_in_a_message(text, message, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"general.alignmenT": text}, {"w": MATRIX})
    change(path, path.read_bytes().index(b"alignmenT"), b"alignment")
    assert refusal(path).endswith(message)


@pytest.mark.parametrize("value", [0, 24, 2**17, 32.0, "32"])
def test_alignment_must_be_a_power_of_two(value, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"general.alignmenT": value}, {"w": MATRIX})
    change(path, path.read_bytes().index(b"alignmenT"), b"alignment")
    assert f"general.alignment is {value!r}" in refusal(path)


def test_text_that_is_not_utf8_is_refused_when_it_is_asked_for(path):
    change(path, path.read_bytes().index("naïve".encode()) + 2, b"\xff")
    file = GGUFFile(path)
    with pytest.raises(UserError, match=r"m\.gguf is damaged: a\.text is not UTF-8"):
        file.metadata["a.text"]


def test_what_is_no_regular_file_is_refused(tmp_path):
    assert "is missing" in refusal(tmp_path / "none")
    assert "is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    assert "is not a GGUF file" in refusal(tmp_path / "empty")


def test_file_that_cannot_be_mapped_is_refused(path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(mmap, "mmap", fail)
    assert refusal(path) == f"{path} cannot be read: No such device"


def test_missing_package_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refusal(path).endswith("install it with: pip install 'npgpt[gguf]'")


@pytest.fixture
def whole(tmp_path):
    """A model with its tokenizer."""
    model = random_llama(vocab_size=320)
    return write_gguf(tmp_path / "whole.gguf", metadata_of(model.config) | tokenizer_metadata(),
                      tensors_of(model), "F16")


def open_all(path):
    """-> whether everything in the file can be read; if not, a UserError in a line names it."""
    try:
        config, values = read(path)
        Llama(config, values=values)
        gguf_tokenizer(GGUFFile(path))
        return True
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600 and str(path) in str(error)
        return False


def test_truncated_file_is_refused(whole):
    data = whole.read_bytes()
    end = max(i for i in range(len(data)) if data[i]) + 1        # after it there is padding
    assert open_all(whole)
    for n in random.Random(0).sample(range(end), 300):
        whole.write_bytes(data[:n])
        assert not open_all(whole), n


def test_changed_byte_of_the_header_ends_in_a_line_or_a_model(whole):
    data = whole.read_bytes()
    header = data.index(b"token_embd.weight") + 4000
    chance, opened = random.Random(0), 0
    for at in [*range(100), *chance.sample(range(100, header), 300)]:
        for byte in {chance.randrange(256), data[at] ^ 1 << chance.randrange(8), 255} - {data[at]}:
            whole.write_bytes(data[:at] + bytes([byte]) + data[at + 1:])
            opened += open_all(whole)
    assert opened > 50              # as in texts that only describe the model


def test_number_of_tensors_is_not_negative(tmp_path):
    data = bytearray(write_gguf(tmp_path / "m.gguf", {}, {"a": np.ones((2, 32))}).read_bytes())
    data[8:16] = b"\xff" * 8
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(UserError, match=r"m\.gguf is damaged: "):
        GGUFFile(tmp_path / "m.gguf")


def test_message_about_a_short_file_says_where_it_should_end(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {}, {"a": np.ones((2, 32)), "b": np.ones((9, 32))})
    data = path.read_bytes()
    path.write_bytes(data[:-500])
    with pytest.raises(UserError) as error:
        GGUFFile(path)
    assert str(error.value) == (
        f"{path} is damaged: it ends at byte {len(data) - 500:,}, but the tensor b at byte "
        f"{len(data):,}")


def test_damaged_numbers_are_read_without_a_warning():
    """An infinite scale times 0."""
    data = np.frombuffer(b"\x00\x7c" + bytes(32), np.uint8)
    tensor = GGUFTensor((1, 32), gguf.GGMLQuantizationType.Q8_0, data, gguf)
    assert np.isnan(tensor.array()).all()
