"""`npgpt tokenizer`."""

import os
import re
import signal
import subprocess
import sys

import pytest

from npgpt import reading
from npgpt.__main__ import main
from npgpt.durable import SUMS
from npgpt.text.bpe import END
from npgpt.text.token_file import FILES, open_tokens
from npgpt.text.tokenizer import load_tokenizer
from tests.commands.tiny import ENVIRONMENT, TEXT, everything


@pytest.fixture
def tokenizer(run, home):
    """-> function: words -> Result of npgpt tokenizer. There are some texts."""
    (home / "texts/more").mkdir(parents=True)
    (home / "texts/a.txt").write_text(TEXT)
    (home / "texts/more/b.md").write_text("naïve " * 50, encoding="utf-8")
    return lambda *words: run(main, "tokenizer", *words)


def test_tokenizer_is_trained_and_texts_are_encoded_and_verified(tokenizer, home):
    trained = tokenizer("train", "texts", "--vocab-size=280", "--out-dir=bpe")
    assert (trained.status, trained.err) == (0, "")
    assert trained.out == "a vocabulary of 280 tokens in bpe\n"
    bpe = load_tokenizer("bpe")
    assert bpe.vocab_size == 280 and bpe.decode([bpe.end]) == END
    encoded = tokenizer("encode", "texts", "fox.txt", "texts/*.txt", "--tokenizer=bpe",
                        "--out-dir=tokens")
    tokens = open_tokens("tokens")
    n_bytes = 2 * len(TEXT) + 350
    assert (encoded.status, encoded.err, encoded.out) == (
        0, "", f"{len(tokens.ids):,} tokens (uint16, vocabulary 280) from {n_bytes:,} bytes of 3 "
        "texts in tokens\n")
    text = END.join([TEXT, "naïve " * 50, TEXT])
    assert tokens.ids.tolist() == bpe.encode(text).tolist()
    assert tokenizer("verify", "tokens").out == f"tokens is intact: {len(tokens.ids):,} tokens\n"
    (home / "fox.txt").write_text("dog")
    assert f"note: {home}/fox.txt has changed since" in tokenizer("verify", "tokens").out


def test_damage_is_found_and_what_cannot_be_verified_is_not_called_intact(tokenizer, home,
                                                                         monkeypatch):
    tokenizer("encode", "fox.txt", "--tokenizer=chars", "--out-dir=tokens")
    monkeypatch.setattr(reading, "free_memory", lambda: 0)      # it is read in parts
    monkeypatch.setattr(reading, "LARGEST", 1000)
    assert tokenizer("verify", "tokens").status == 0
    ids, sums = home / "tokens/tokens.npy", home / "tokens" / SUMS
    content, listed = ids.read_bytes(), sums.read_text()
    ids.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "tokens/tokens.npy is damaged: its SHA-256 is not" in tokenizer("verify", "tokens").err
    ids.write_bytes(content)
    sums.write_text("".join(line for line in listed.splitlines(True) if "npy" not in line))
    result = tokenizer("verify", "tokens")
    assert (result.status, result.out) == (2, "")
    assert "tokens.npy is not listed in SHA256SUMS" in result.err
    sums.unlink()
    result = tokenizer("verify", "tokens")
    assert (result.status, result.out) == (2, "")
    assert result.err == ("npgpt tokenizer: tokens/SHA256SUMS is missing; without it damage cannot "
                          "be detected\n")


def test_characters_are_encoded_too(tokenizer):
    result = tokenizer("encode", "fox.txt", "--tokenizer=chars", "--out-dir=tokens")
    assert result.out == (
        "1,760 tokens (uint8, vocabulary 28) from 1,760 bytes of 1 text in tokens\n")
    tokens = open_tokens("tokens")
    assert tokens.tokenizer.decode(tokens.ids) == TEXT


def test_small_text_gives_a_smaller_vocabulary_and_says_so(tokenizer):
    result = tokenizer("train", "fox.txt", "--vocab-size=5000", "--out-dir=bpe")
    n = load_tokenizer("bpe").vocab_size
    assert n < 400 and result.out == (
        f"a vocabulary of {n} tokens in bpe; the texts are too short for the 5,000 requested\n")


def test_existing_directory_is_replaced_only_if_asked(tokenizer, home):
    for words in (["train", "fox.txt", "--vocab-size=260", "--out-dir=new"],
                  ["encode", "fox.txt", "--tokenizer=chars", "--out-dir=new2"]):
        assert tokenizer(*words).status == 0
        before = everything(home)
        result = tokenizer(*words)
        assert (result.status, result.out) == (2, "")
        assert result.err == (f"npgpt tokenizer: {words[-1][10:]} already exists; --overwrite "
                              "replaces it\n")
        assert everything(home) == before
        assert tokenizer(*words, "--overwrite").status == 0
        (home / words[-1][10:] / "mine").write_text("x")
        assert "contains 'mine', which npgpt did not write" in tokenizer(*words, "--overwrite").err


@pytest.mark.parametrize(("words", "message"), [
    ("trian", "unknown command 'trian'; did you mean 'train'? the commands are train, encode, "),
    ("train fox.txt", "--out-dir is missing; it takes the directory to write"),
    ("train --out-dir=a", "the following arguments are required: TEXT; --help lists all options"),
    ("train fox.txt --out-dir=a --vocab-size=256", "--vocab-size must be at least 257, got 256"),
    ("train nowhere --out-dir=a", "nowhere is missing"),
    ("train fox.txt --out-dir=latin1.txt", "{home}/latin1.txt is a file; choose another path for"),
    ("train empty --out-dir=a", "empty contains no text files (.txt, .text, .md, .rst, or th"),
    ("train latin1.txt --out-dir=a", "latin1.txt is not UTF-8 (byte 3 is 0xe9); convert it with"),
    ("encode fox.txt --out-dir=a", "--tokenizer is missing; it takes chars or the directory of a"),
    ("encode fox.txt --out-dir=a --tokenizer=b", "--tokenizer must be chars or a directory with"),
    ("encode fox.txt --out-dir=a --tokenizer=empty", "empty/tokenizer.json is missing"),
    ("encode *.csv --out-dir=a --tokenizer=chars", "there is no file that matches '*.csv'"),
    ("encode latin1.txt --out-dir=a --tokenizer=chars", "latin1.txt is not UTF-8"),
    ("encode fox.txt --out-dir=a --toknizer=chars", "unknown option --toknizer; did you mean --t"),
    ("verify empty", "empty/tokens.json is missing"),
])
def test_invalid_request_gives_one_line_and_status_2_and_writes_nothing(words, message, tokenizer,
                                                                        home):
    (home / "empty").mkdir()
    (home / "latin1.txt").write_bytes(b"caf\xe9")
    before = everything(home)
    result = tokenizer(*words.split())
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"npgpt tokenizer: {message.format(home=home)}")
    assert result.err.count("\n") == 1
    assert everything(home) == before


def test_help_lists_commands_and_options(tokenizer):
    assert tokenizer().out == tokenizer("--help").out
    assert re.search(r"\n  encode  encode texts into a token file", tokenizer("--help").out)
    assert "--vocab-size N" in tokenizer("train", "--help").out


@pytest.mark.parametrize("words", [
    ["train", "--vocab-size=300"], ["encode", "--tokenizer=chars"]])
def test_ctrl_c_leaves_nothing_behind(words, home):
    """While the texts are read: for characters a second time."""
    (home / "a.txt").write_text(TEXT * 500)
    code = ("import os, signal, sys\nfrom npgpt.text import command, files\n"
            "original, calls = files._read, []\n"
            "def read(path, content):\n"
            "    calls.append(path)\n"
            "    if len(calls) == 5: os.kill(os.getpid(), signal.SIGINT)\n"
            "    return original(path, content)\n"
            "files._read = read\nfiles.BYTES = 2**18\nsys.exit(command.main(sys.argv[1:]))")
    done = subprocess.run(
        [sys.executable, "-c", code, words[0], ".", *words[1:], "--out-dir=new"],
        env=ENVIRONMENT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode in (130, -signal.SIGINT)       # to a shell both are 130
    assert (done.stdout, done.stderr) == ("", "")
    assert {name for name in os.listdir() if "new" in name} == set()


def test_written_files_are_known(tokenizer, home):
    tokenizer("train", "fox.txt", "--vocab-size=260", "--out-dir=bpe")
    tokenizer("encode", "fox.txt", "--tokenizer=bpe", "--out-dir=tokens")
    assert set(os.listdir("bpe")) == {"tokenizer.json", "tokenizer_config.json", SUMS}
    assert set(os.listdir("tokens")) == FILES
