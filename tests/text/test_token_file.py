import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npgpt import UserError
from npgpt.durable import verify
from npgpt.errors import RunError
from npgpt.text import cache, dataset, files, source, token_file
from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import CharTokenizer
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource, load_source
from npgpt.text.token_file import FILES, encode_files, open_tokens

TEXT = "The quick brown fox, naïve: café.\r\n" * 40


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BYTES", 100)              # in many parts
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    return tmp_path / "a.txt"


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([TEXT], 290)


def test_ids_are_those_of_the_text(text, bpe, tmp_path):
    for number, tokenizer in enumerate((None, bpe, CharTokenizer(TEXT + "xyz"))):
        tokens = encode_files([text], tokenizer, tmp_path / f"tokens{number}")
        plain = TokenSource.from_text(TEXT, tokenizer=tokenizer)
        mapped = TokenSource.from_file(tokens, "tokens")
        assert isinstance(tokens.ids, np.memmap) and mapped.is_mapped and not plain.is_mapped
        for name in ("ids", "train", "val"):
            ours, theirs = getattr(mapped, name), getattr(plain, name)
            assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()
        assert mapped.fingerprint == plain.fingerprint == hashlib.sha256(TEXT.encode()).hexdigest()
        assert mapped.summary == plain.summary and mapped.note == ""
        assert tokens.tokenizer.digest == plain.tokenizer.digest
        assert {path.name for path in tokens.path.iterdir()} == FILES
        assert np.load(tokens.path / "tokens.npy").tolist() == tokens.ids.tolist()


def test_documents_are_separated(text, bpe, tmp_path):
    other = tmp_path / "b.txt"
    other.write_text("fox")
    tokens = encode_files([text, other], bpe, tmp_path / "bpe")
    assert tokens.ids.tolist() == [*bpe.encode(TEXT), bpe.end, *bpe.encode("fox")]
    characters = encode_files([other, other], None, tmp_path / "characters")
    assert characters.tokenizer.decode(characters.ids) == "fox\nfox"
    assert characters.tokenizer.characters == "\nfox"
    digest = hashlib.sha256(b"fox").digest()
    assert characters.facts["sha256"] == hashlib.sha256(digest + digest).hexdigest()
    assert characters.facts["documents"] == 2
    assert characters.facts["bytes"] == characters.facts["characters"] == 6
    assert TokenSource.from_file(characters, "x").summary.startswith("2 texts, 6 characters")
    assert characters.facts["sha256"] not in (tokens.facts["sha256"], hashlib.sha256(b"foxfox"))


def test_summary_of_byte_pairs_counts_tokens_and_their_length(text, bpe, tmp_path):
    n = len(bpe.encode(TEXT))
    distinct = len(set(bpe.encode(TEXT).tolist()))
    expected = (f"{n} tokens, {len(TEXT.encode()) / n:.2f} bytes per token, {distinct} of "
                f"{bpe.vocab_size} in use")
    assert TokenSource.from_text(TEXT, tokenizer=bpe).summary == expected


@pytest.mark.parametrize(("V", "dtype"), [(256, np.uint8), (257, np.uint16), (65_537, np.uint32)])
def test_ids_have_the_smallest_type(V, dtype, tmp_path):
    content = "".join(map(chr, range(100_000, 100_000 + V)))
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    tokens = encode_files([tmp_path / "a.txt"], None, tmp_path / "tokens")
    assert tokens.ids.dtype == dtype and tokens.ids.tolist() == list(range(V))
    assert tokens.facts["distinct"] == V


def test_opening_does_not_read_the_ids(text, tmp_path):
    tokens = encode_files([text], None, tmp_path / "tokens")
    n, path = 2**40, tokens.path
    with open(path / "tokens.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (n,)})
        file.truncate(file.tell() + n)                    # sparse: takes no space
    (path / "tokens.json").write_text(json.dumps(tokens.facts | {"tokens": n}))
    data = Dataset(load_source(str(path)), 8)
    assert len(data.train) > 9e11
    assert data.batch(1, 2, 3)[0].tolist() == [[0] * 8] * 3
    assert data.offsets(data.val, 5).shape == (5,)


def change_facts(path, **values):
    facts = json.loads((path / "tokens.json").read_text())
    (path / "tokens.json").write_text(json.dumps(facts | values))


def replace_in(path, old, new):
    """Change the header of the ids."""
    content = (path / "tokens.npy").read_bytes()
    assert old in content
    (path / "tokens.npy").write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: os.truncate(path / "tokens.npy", 1000), r"tokens\.npy is damaged or cut short"),
    (lambda path: os.truncate(path / "tokens.npy", 20), r"tokens\.npy is damaged or cut short"),
    (lambda path: (path / "tokens.npy").write_bytes(b""), r"tokens\.npy is damaged or cut short"),
    (lambda path: (path / "tokens.npy").unlink(), r"tokens\.npy is missing"),
    (lambda path: np.save(path / "tokens.npy", np.zeros(3, np.uint8)), "has 3 tokens of the type"),
    (lambda path: np.save(path / "tokens.npy", np.zeros(1400, int)), "of the type int64, 1400 of"),
    (lambda path: np.save(path / "tokens.npy", np.zeros(3, object)), r"tokens\.npy is damaged"),
    (lambda path: change_facts(path, tokens="many"), r"tokens\.json is damaged: tokens is 'many'"),
    (lambda path: change_facts(path, sources=[1]), r"tokens\.json is damaged: sources is \[1\]"),
    (lambda path: change_facts(path, sources=[[1, 2, 3]]), r"tokens\.json is damaged: sources"),
    (lambda path: replace_in(path, b"(1400,)", b"(2**99,"), r"tokens\.npy is damaged or cut short"),
    (lambda path: replace_in(path, b"'descr'", b"'descr("), r"tokens\.npy is damaged or cut short"),
    (lambda path: replace_in(path, b"{'descr'", b"{'descr\0"), r"tokens\.npy is damaged or cut "),
    (lambda path: change_facts(path, format=99), "written by another version of npgpt"),
    (lambda path: (path / "tokens.json").write_text("["), r"tokens\.json is not valid JSON"),
    (lambda path: (path / "tokens.json").unlink(), r"tokens\.json is missing"),
    (lambda path: (path / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
])
def test_damaged_file_is_refused_and_named(damage, message, text, tmp_path):
    path = encode_files([text], None, tmp_path / "tokens").path
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        load_source(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
def test_no_change_of_a_byte_of_the_header_gives_a_traceback(text, tmp_path):
    path = encode_files([text], None, tmp_path / "tokens").path / "tokens.npy"
    content = path.read_bytes()
    for at in range(128):
        for bit in range(8):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            with contextlib.suppress(UserError):
                open_tokens(path.parent)


def test_flipped_byte_is_found_by_its_hash_and_a_wrong_id_when_it_is_read(text, tmp_path):
    path = encode_files([text], None, tmp_path / "tokens").path
    verify(path)
    content = bytearray((path / "tokens.npy").read_bytes())
    content[140] = len(set(TEXT))                         # the last id and one
    (path / "tokens.npy").write_bytes(content)
    data = Dataset(load_source(str(path)), 8)
    with pytest.raises(RunError, match=r"tokens\.npy is damaged: it has the token "
                                      f"{len(set(TEXT))}, and the vocabulary ends at "
                                      f"{len(set(TEXT)) - 1}$"):
        data.windows(data.train, data.offsets(data.train))
    with pytest.raises(UserError, match=r"tokens\.npy is damaged: its SHA-256"):
        verify(path)


@pytest.mark.parametrize("stage", ["reading", "encoding", "writing"])
def test_interruption_removes_what_was_written(stage, text, tmp_path):
    def progress(name, done, total):
        assert 0 < done <= total == len(TEXT.encode())
        if name == stage and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_files([text], None, tmp_path / "tokens", progress)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_leaves_nothing_behind(number, status, text, tmp_path):
    code = ("import os, sys\nfrom npgpt.cli.command import run_command\n"
            "from npgpt.text.token_file import encode_files\n"
            "from pathlib import Path\n"
            "def progress(name, done, total):\n"
            f"    if name == 'encoding': os.kill(os.getpid(), {int(number)})\n"
            "def main(): encode_files([Path('a.txt')], None, 'tokens', progress)\n"
            "sys.exit(run_command('x', main))")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                          preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    assert (done.returncode, done.stderr) == (status, "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_text_that_changes_meanwhile_is_refused(text, tmp_path):
    def progress(name, done, total):
        if name == "encoding":
            text.write_text("fox")

    with pytest.raises(UserError, match=r"a\.txt has changed while it was read"):
        encode_files([text], CharTokenizer(TEXT), tmp_path / "tokens", progress)
    assert not (tmp_path / "tokens").exists()


def test_full_disk_is_refused_before_anything_is_read(text, bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    for tokenizer, n in ((None, "1,480"), (CharTokenizer(TEXT), "1,480"), (bpe, "740")):
        with pytest.raises(UserError, match=rf"a\.txt: the token ids need about {n} bytes, and 9 "):
            encode_files([text], tokenizer, tmp_path / "tokens",
                         lambda *state: pytest.fail("it is read"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1480))
    assert len(encode_files([text], None, tmp_path / "tokens").ids) == len(TEXT)


def test_directory_that_cannot_be_written_is_named(text, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_file, "_write_header", full)
    with pytest.raises(UserError, match=r"tokens cannot be written: No space left on device$"):
        encode_files([text], None, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_unknown_character_is_named_with_its_file_and_position(text, tmp_path):
    other = tmp_path / "b.txt"
    other.write_text("fox " * 100 + "#", encoding="utf-8")
    with pytest.raises(UserError) as error:
        encode_files([text, other], CharTokenizer(TEXT), tmp_path / "tokens")
    assert str(error.value).startswith(f"'#', character 401 of {other}, is not among the ")


def test_empty_texts_are_refused(tmp_path):
    for name, content in (("a.txt", b""), ("b.txt", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"[ab]\.txt is empty$"):
            encode_files([tmp_path / name], None, tmp_path / "tokens")
    with pytest.raises(UserError, match=r"^all texts are empty$"):
        encode_files([tmp_path / "a.txt"] * 2, None, tmp_path / "tokens")


def test_text_that_has_changed_since_is_noted(text, tmp_path):
    path = encode_files([text], None, tmp_path / "tokens").path
    assert load_source(path).name == str(path)
    assert load_source(str(path)).note == ""
    text.write_text("another one")
    assert load_source(str(path)).note == f"{text} has changed since it was encoded"
    text.unlink()
    assert load_source(str(path)).note == ""


@pytest.fixture
def encoded(text, tmp_path, monkeypatch):
    """-> list: the tokenizers of the texts that were encoded. Every text is large."""
    made = []
    original = cache.encode_files

    def encode(paths, tokenizer, target, progress):
        made.append(tokenizer)
        return original(paths, tokenizer, target, progress)

    monkeypatch.setattr(cache, "encode_files", encode)
    monkeypatch.setattr(source, "LARGE", 100)
    monkeypatch.chdir(tmp_path)
    return made


def test_large_text_is_encoded_once(encoded, text, bpe):
    first, second = load_source("a.txt"), load_source("a.txt")
    assert encoded == [None] and first.ids.tolist() == second.ids.tolist()
    assert (first.name, first.is_mapped) == ("a.txt", True)
    plain = TokenSource.from_text(TEXT)
    assert first.ids.tolist() == plain.ids.tolist() and first.summary == plain.summary
    load_source("a.txt", bpe), load_source("a.txt", bpe)
    assert encoded == [None, bpe]
    load_source("a.txt", cache="elsewhere")
    assert encoded == [None, bpe, None]
    assert sorted(os.listdir()) == ["a.txt", "data", "elsewhere"]
    assert all(re.fullmatch("a-[0-9a-f]{16}", name) for name in os.listdir("data/cache"))


@pytest.mark.parametrize(("limit", "is_large"), [(0, False), (-1, True)])
def test_text_is_large_above_a_size(limit, is_large, encoded, text, monkeypatch):
    monkeypatch.setattr(source, "LARGE", len(TEXT.encode()) + limit)
    assert load_source("a.txt").is_mapped == is_large


def test_address_is_no_pattern(encoded):
    with pytest.raises(UserError, match=r"takes a file, got the address 'https://a\.b/\*\.txt'"):
        load_source("https://a.b/*.txt")


def test_resumed_run_uses_what_the_first_one_has_encoded(encoded, text):
    first = load_source("a.txt")
    again = load_source("a.txt", CharTokenizer(TEXT))
    assert encoded == [None] and again.tokenizer.digest == first.tokenizer.digest
    larger = CharTokenizer(TEXT + "xyz")
    assert load_source("a.txt", larger).tokenizer.digest == larger.digest
    load_source("a.txt", larger)
    assert encoded == [None, larger]


def test_changed_text_is_encoded_again(encoded, text):
    load_source("a.txt")
    os.utime(text, ns=(1, 1))
    load_source("a.txt")
    text.write_text(TEXT.replace("fox", "dog"))
    assert "dog" in (found := load_source("a.txt")).tokenizer.decode(found.ids)
    assert len(encoded) == 3


def test_damaged_entry_is_encoded_again(encoded, text, tmp_path):
    path = load_source("a.txt").ids.filename
    os.truncate(path, 300)
    assert len(load_source("a.txt").ids) == len(TEXT) and len(encoded) == 2


def test_directory_and_pattern_and_gzip_are_encoded(encoded, text, tmp_path, monkeypatch):
    text.with_name("b.md").write_text("fox")
    assert load_source(".").tokenizer.decode(load_source(".").ids) == TEXT + "\nfox"
    assert load_source("*.md").tokenizer.decode(load_source("*.md").ids) == "fox"
    assert len(encoded) == 2
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"fox and dog"))
    assert load_source("*.gz").is_mapped
    monkeypatch.setattr(source, "LARGE", 10**9)
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"fox and dog"))
    assert load_source("d.txt.gz").is_mapped


def test_entry_of_other_texts_is_not_used(encoded, text):
    """As if two of them had the same name."""
    path = Path(load_source("a.txt").ids.filename).parent
    change_facts(path, sources=[["elsewhere", 1, 2]])
    load_source("a.txt")
    assert len(encoded) == 2


def test_entry_of_several_texts_is_named_after_their_directory(encoded, text, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in "ab":
        (tmp_path / "sub" / f"{name}.txt").write_text("fox")
    load_source("sub")
    assert os.listdir("data/cache")[0].startswith("sub-")


def test_token_file_of_another_tokenizer_is_refused(text, bpe, tmp_path):
    path = encode_files([text], None, tmp_path / "tokens").path
    assert load_source(str(path), CharTokenizer(TEXT)).is_mapped
    with pytest.raises(UserError) as error:
        load_source(str(path), bpe)
    assert str(error.value) == (
        f"{path} was encoded with another tokenizer (characters, {len(set(TEXT))} tokens) than the "
        f"model's (byte-level BPE, {bpe.vocab_size} tokens); encode its texts with the model's")


def test_text_of_one_character_is_refused(encoded, text):
    text.write_text("aaa" * 1000)
    with pytest.raises(UserError, match="contains no character but 'a'; there is nothing to learn"):
        load_source("a.txt")


def test_batches_of_a_mapped_file_are_those_of_the_text(text, tmp_path, device, monkeypatch):
    path = encode_files([text], None, tmp_path / "tokens").path
    for where in ("cpu", device):
        data = Dataset(load_source(str(path)), 8, where)
        plain = Dataset(TokenSource.from_text(TEXT), 8, where)
        for mapped, expected in zip(data.batch(1, 2, 5), plain.batch(1, 2, 5)):
            assert type(mapped) is type(expected) and mapped.tolist() == expected.tolist()
        offsets = data.offsets(data.val)
        assert offsets.tolist() == plain.offsets(plain.val).tolist()
        assert data.count(data.val) == len(offsets) == (len(data.val) - 1) // 8
        monkeypatch.setattr(dataset, "CHUNK", 3)
        targets = "".join(TEXT[len(data.train):][at + 1:at + 9] for at in offsets)
        for d in (data, plain):
            assert d.bytes_per_token(d.val, offsets) == len(targets.encode()) / len(targets)
