"""Byte-level BPE. tests/yardsticks compares it with transformers."""

import json
import os
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from npgpt import UserError
from npgpt.text import bpe
from npgpt.text.bpe import END, BPETokenizer, byte_level
from npgpt.text.stream import TextStream
from npgpt.text.tokenizer import FILES, load_tokenizer

BOOK = ("It's 1999's café — naïve “quotes”, 3.14 and 12345; don't! The fox's dens. \n\n\t"
        "for i in range(10):\n    print(i)\r\n" * 30)
words = st.text() | st.text(st.sampled_from("a é1'. \n\t\U0001f600"), max_size=60)
split = st.lists(words | st.just(END)).map(lambda parts: ["", *parts])


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train([BOOK], 320)


def test_own_vocabulary_has_all_bytes_and_an_end(tokenizer):
    assert tokenizer.vocab_size == 320
    assert {tokenizer.token_bytes(i) for i in range(320)} >= {bytes([b]) for b in range(256)}
    assert tokenizer.token_bytes(tokenizer.end) == END.encode()
    assert tokenizer.start.tolist() == [tokenizer.end]
    assert len(tokenizer.encode(BOOK)) < len(BOOK.encode()) / 2


def test_training_is_reproducible(tokenizer):
    assert BPETokenizer.train([BOOK], 320).digest == tokenizer.digest
    assert BPETokenizer.train([BOOK], 300).digest != tokenizer.digest


@given(words.filter(lambda text: END not in text))
def test_decoding_undoes_encoding(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64 and tokenizer.decode(ids) == text
    assert sum(tokenizer.byte_lengths[ids]) == len(text.encode())


@given(split)
def test_parts_have_the_ids_of_the_whole_text(tokenizer, parts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "PART", 3)
        patch.setattr(bpe, "BATCH", 2)
        found = [i for ids in tokenizer.encode_parts(parts) for i in ids]
    assert found == tokenizer.encode("".join(parts)).tolist()


def test_long_text_is_encoded_in_parts(monkeypatch):
    tokenizer = BPETokenizer.train([BOOK], 320)
    monkeypatch.setattr(bpe, "PART", 100)
    monkeypatch.setattr(bpe, "BATCH", 2)
    arrays = list(tokenizer.encode_parts([BOOK]))
    monkeypatch.setattr(bpe, "BATCH", 1)
    pieces = list(tokenizer.encode_parts([BOOK]))
    assert len(pieces) > 20 and len(arrays) == -(-len(pieces) // 2)
    assert np.concatenate(arrays).tolist() == tokenizer.encode(BOOK).tolist()


CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")       # GPT-4's, and Llama 3's
QWEN = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern):
    return Sequence([Split(tokenizers.Regex(pattern), "isolated"),
                     ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.mark.parametrize(("pre", "is_cut"), [
    (ByteLevel(add_prefix_space=True), False),
    (ByteLevel(add_prefix_space=False, use_regex=False), False),
    (Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]), True),
    (Sequence([Digits(), ByteLevel(add_prefix_space=True)]), False),
    (_split(r"\s*\S+"), True),
    (_split(r"[^\n]*\n"), False),
    (_split(CL100K), True),
    (_split(QWEN), True),
], ids=["a space before a text", "one piece", "digits", "digits and a space", "words", "lines",
        "cl100k", "qwen"])
def test_parts_have_the_ids_of_the_whole_text_with_other_pieces(pre, is_cut, monkeypatch):
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer, library.decoder = pre, tokenizers.decoders.ByteLevel()
    library.train_from_iterator([BOOK], tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tokenizer = BPETokenizer.from_json(library.to_str().encode())
    monkeypatch.setattr(bpe, "PART", 20)
    monkeypatch.setattr(bpe, "BATCH", 1)
    arrays = list(tokenizer.encode_parts([BOOK[:4000], BOOK[4000:]]))
    assert (len(arrays) > 1) == is_cut
    assert np.concatenate(arrays).tolist() == library.encode(BOOK, add_special_tokens=False).ids


def test_part_of_a_character_is_decoded_as_a_mark(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\U0001f600")[:2]) == "a\ufffd"


def test_several_texts_are_encoded_in_threads_and_none_are_left_for_a_fork(tokenizer, monkeypatch):
    seen = []

    class Recorder:
        pre_tokenizer = ByteLevel(add_prefix_space=False)

        def encode_batch_fast(self, texts, add_special_tokens):
            seen.append((len(texts), os.environ["TOKENIZERS_PARALLELISM"]))
            return tokenizers.Tokenizer(tokenizers.models.BPE()).encode_batch_fast(texts)

    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setattr(tokenizer, "_tokenizer", Recorder())
    monkeypatch.setattr(bpe, "PART", 100)
    tokenizer.encode("a")
    list(tokenizer.encode_parts([BOOK[:1000]]))
    assert seen[0] == (1, "false") and {n for n, _ in seen[1:]} != {1}
    assert all(threads == ("true" if n > 1 else "false") for n, threads in seen)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    tokenizer.encode("a")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_limits_of_the_file_are_not_those_of_a_text(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    library.enable_truncation(2)
    library.enable_padding(length=50, pad_id=3)
    library.save(str(path))
    text = "The quick brown fox"
    assert load_tokenizer(tmp_path).encode(text).tolist() == tokenizer.encode(text).tolist()


def test_added_token_that_is_not_special_is_text(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text())
    found["added_tokens"].append(found["added_tokens"][0] | {
        "id": 320, "content": "hello", "special": False})
    path.write_text(json.dumps(found))
    more = load_tokenizer(tmp_path)
    ids = more.encode("hello")
    assert ids.tolist() == [320] and more.byte_lengths[ids].tolist() == [5]


@pytest.mark.parametrize("change", [
    {"normalizer": {"type": "NFC"}},
    {"added_tokens": [{"content": "for i"}]},
    {"added_tokens": [{"content": "for", "rstrip": True}]},
    {"added_tokens": [{"content": "for", "lstrip": True}]},
    {"added_tokens": [{"content": "for", "single_word": True}]},
])
def test_text_is_not_cut_where_more_than_its_pieces_matters(change, tokenizer, tmp_path,
                                                            monkeypatch):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text())
    for token in change.get("added_tokens", []):
        found["added_tokens"].append(found["added_tokens"][0] | {"id": 320} | token)
    path.write_text(json.dumps(found | {"normalizer": change.get("normalizer")}))
    changed = load_tokenizer(tmp_path)
    monkeypatch.setattr(bpe, "PART", 20)
    monkeypatch.setattr(bpe, "BATCH", 1)
    (ids,) = changed.encode_parts([BOOK])
    assert ids.tolist() == changed.encode(BOOK).tolist()


def test_special_token_in_a_text_is_one_token_of_no_bytes(tokenizer):
    ids = tokenizer.encode(f"a{END}b")
    assert ids[1] == tokenizer.end and len(ids) == 3
    assert tokenizer.byte_lengths[ids].tolist() == [1, 0, 1]
    assert tokenizer.decode(ids) == f"a{END}b"


@pytest.mark.parametrize("half", ["\ud800", "\udfff"])
def test_half_of_a_surrogate_pair_is_refused(tokenizer, half):
    with pytest.raises(UserError) as error:
        tokenizer.encode(f"ab{half}")
    with pytest.raises(UserError, match=r"^a\.txt contains .*half of a surrogate pair"):
        list(tokenizer.encode_parts(["a", half], "a.txt"))
    assert str(error.value) == (f"the text contains {half!r}, half of a surrogate pair, which "
                                "UTF-8 cannot represent; remove it")


@given(words)
def test_stream_shows_characters_as_soon_as_they_are_whole(tokenizer, text):
    stream, shown, read = TextStream(tokenizer), "", b""
    for i in tokenizer.encode(text):
        shown += stream.push(i)
        read += tokenizer.token_bytes(i)
        assert shown == read.decode(errors="ignore")
    assert shown + stream.finish() == text


def test_stream_ends_half_a_character(tokenizer):
    stream = TextStream(tokenizer)
    first = tokenizer.encode("\U0001f600")[0]
    assert stream.push(first) == "" and stream.finish() == "\ufffd"


def test_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    again = load_tokenizer(tmp_path)
    assert again.digest == tokenizer.digest and again.end == tokenizer.end
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert [settings[name] for name in ("bos_token", "eos_token", "unk_token")] == [END] * 3


def test_files_from_elsewhere_are_kept_as_they_are(tokenizer, tmp_path):
    content = tokenizers.Tokenizer.from_str(
        (tokenizer.save(tmp_path), (tmp_path / "tokenizer.json").read_text())[1]).to_str()
    settings = '{"tokenizer_class": "GPT2Tokenizer", "eos_token": {"content": "a"}}'
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text(settings)
    found = load_tokenizer(tmp_path)
    assert found.token_bytes(found.end) == b"a"
    (tmp_path / "new").mkdir()
    found.save(tmp_path / "new")
    assert (tmp_path / "new/tokenizer.json").read_text() == content
    assert (tmp_path / "new/tokenizer_config.json").read_text() == settings


def test_pair_of_files_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    pairs = load_tokenizer(tmp_path)
    assert (pairs.vocab_size, pairs.end) == (320, tokenizer.end)
    assert pairs.encode(f"{BOOK}{END}").tolist() == tokenizer.encode(f"{BOOK}{END}").tolist()
    (tmp_path / "again").mkdir()
    pairs.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").digest == pairs.digest
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"eos_token": "a"}')
    named = load_tokenizer(tmp_path)
    assert named.token_bytes(named.end) == b"a"
    named.save(tmp_path / "again")
    assert (tmp_path / "again/tokenizer_config.json").read_text() == settings.read_text()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"] | {"\u4e00": 320}))
    with pytest.raises(UserError, match=r"vocab\.json: '\u4e00' in the token"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(UserError, match=r"vocab\.json needs the package tokenizers"):
            load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("q zz\n")
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt are not a valid tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges\.txt is missing"):
        load_tokenizer(tmp_path)


def test_vocabulary_without_an_end_starts_from_a_line_break(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text())
    found["added_tokens"] = []
    vocab = found["model"]["vocab"]
    vocab.pop(END)
    path.write_text(json.dumps(found))
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.end is None
    assert tokenizer.decode(tokenizer.start) == "\n"
    tokenizer.save(tmp_path)
    assert "eos_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("kind", [
    tokenizers.models.WordPiece({"a": 0}, unk_token="a"), tokenizers.models.Unigram([("a", 0.0)])])
def test_other_kinds_are_refused_by_name(kind, tmp_path):
    tokenizers.Tokenizer(kind).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=rf"json is a tokenizer of the kind {type(kind).__name__}; "
                                        "npgpt reads byte-level BPE and characters"):
        load_tokenizer(tmp_path)


def test_token_that_is_no_bytes_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["vocab"]["a\u4e00"] = 320
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="'\u4e00' in the token 'a\u4e00' is none of the 256"):
        load_tokenizer(tmp_path)


def test_damaged_settings_are_named(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for content, message in (("{", "is not valid JSON: "),
                             ("[]", "does not contain a JSON object"),
                             ("null", "does not contain a JSON object")):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(UserError, match=rf"tokenizer_config\.json {message}"):
            load_tokenizer(tmp_path)


def test_missing_library_is_named_with_its_extra(tokenizer, tmp_path, monkeypatch):
    tokenizer.save(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/tokenizer.json needs the package tokenizers, which is missing; install it "
        "with: pip install 'npgpt[bpe]'")
    with pytest.raises(UserError, match=r"^vocab_size 300 needs the package tokenizers"):
        BPETokenizer.train([BOOK], 300)




def saved_with(tmp_path, **files):
    """-> the tokenizer in a directory with these JSON files, name -> contents."""
    BPETokenizer.train(["the quick brown fox"], 270).save(tmp_path)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize(("settings", "bos", "end"), [
    ({}, None, END), ({"bos_token": "q"}, "q", END),
    ({"bos_token": {"content": "q"}, "eos_token": "t"}, "q", "t"),
    ({"bos_token": "nothing"}, None, END), ({"bos_token": None}, None, END),
])
def test_tokens_before_and_after_a_text_are_those_that_are_named(settings, bos, end, tmp_path):
    tokenizer = saved_with(tmp_path, tokenizer_config=settings)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert (tokenizer.bos, tokenizer.end) == (vocab.get(bos), vocab[end])
    assert tokenizer.ends == (tokenizer.end,)


def test_trained_tokenizer_begins_and_ends_a_text_with_the_same_token(tmp_path):
    trained = BPETokenizer.train(["the quick brown fox"], 270)
    assert trained.bos == trained.end == 0 and trained.ends == (0,)
    trained.save(tmp_path)
    assert load_tokenizer(tmp_path).bos == 0


@pytest.mark.parametrize(("files", "ends"), [
    ({"config": {"eos_token_id": None}}, (0,)), ({"config": {}}, (0,)),
    ({"config": {"eos_token_id": 9}}, (0, 9)), ({"config": {"eos_token_id": [9, 5]}}, (0, 5, 9)),
    ({"generation_config": {"eos_token_id": [7]}, "config": {"eos_token_id": 3}}, (0, 3, 7)),
    ({"config": {"eos_token_id": 50256}}, (0,)), ({"config": {"eos_token_id": [-1, 269, 270]}},
                                                  (0, 269)),
    ({"config": {"eos_token_id": 0}}, (0,)),
])
def test_model_beside_it_says_what_else_ends_a_text(files, ends, tmp_path):
    assert saved_with(tmp_path, **files).ends == ends


@pytest.mark.parametrize("wrong", ["0", 1.0, True, [0, "1"], [[0]], {}])
@pytest.mark.parametrize("file", ["config", "generation_config"])
def test_invalid_end_is_refused(wrong, file, tmp_path):
    with pytest.raises(UserError, match=rf"{file}\.json: eos_token_id must be the id of a token"):
        saved_with(tmp_path, **{file: {"eos_token_id": wrong}})


def test_vocabulary_may_lack_any_byte(tmp_path):
    """Also that of an a, and nothing belongs before a text."""
    tokenizer = byte_level(tokenizers, {"b": 0, "c": 1}, [])
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    found = load_tokenizer(tmp_path)
    assert found.prefix.tolist() == [] and found.encode("bcb").tolist() == [0, 1, 0]


def lines_alone():
    """A tokenizer that divides a text at line breaks only, so that tokens may hold blanks."""
    found = byte_level(tokenizers)
    found.pre_tokenizer = Sequence([Split("\n", "isolated"), ByteLevel(False, use_regex=False)])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=[END],
                                             initial_alphabet=ByteLevel.alphabet())
    found.train_from_iterator(["one two\n" * 9], trainer)
    return BPETokenizer.from_json(found.to_str().encode())


def test_text_is_not_cut_inside_a_piece_of_its_own_tokenizer(monkeypatch):
    monkeypatch.setattr(bpe, "PART", 10)
    tokenizer, text = lines_alone(), "one two" * 20 + "\n" + "one two" * 20
    assert max(map(len, map(tokenizer.token_bytes, tokenizer.encode(text)))) > 5
    parts = list(tokenizer.encode_parts([text]))
    assert np.concatenate(parts).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("part", [3, 50])
def test_long_text_is_encoded_in_many_parts(part, monkeypatch):
    monkeypatch.setattr(bpe, "PART", part)
    monkeypatch.setattr(bpe, "AROUND", 20)
    monkeypatch.setattr(bpe, "BATCH", 1)
    tokenizer, text = BPETokenizer.train([BOOK], 320), "the quick brown fox jumps " * 40
    parts = list(tokenizer.encode_parts([text]))
    assert len(parts) > 1000 / max(part + 20, 30)
    assert np.concatenate(parts).tolist() == tokenizer.encode(text).tolist()


def test_merge_of_something_that_is_no_token_is_named(tmp_path):
    content = json.loads(BPETokenizer.train([BOOK], 260)._content)
    for merges, message in ((["t h"], "'th' of the merge 't', 'h' is not a token"),
                            (["t  h"], "too many values to unpack")):
        content["model"]["merges"] = merges
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path)


def test_tokenizer_without_merges_is_named_by_its_kind(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="is a tokenizer of the kind WordLevel"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"vocab": {"a": 4 * 10**9}, "merges": []}, "the token 'a' has the id 4000000000; ids are bel"),
    ({"vocab": {"a": 10**7}, "merges": []}, "ids are below 10,000,000"),
    ({"vocab": {"a": "0"}, "merges": []}, "the token 'a' has the id '0'"),
    ({"vocab": {}, "merges": []}, r"tokenizer\.json has no tokens"),
])
def test_vocabulary_that_is_empty_or_too_large_is_refused(change, message, tmp_path):
    content = json.loads(byte_level(tokenizers, {"b": 0}, []).to_str())
    content["model"] |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("named", [["a"], {"content": [1]}, {"content": {}}, {}, 7, None, "none"])
def test_names_of_tokens_that_are_not_text_are_those_of_no_token(named, tmp_path):
    settings = {"eos_token": named, "bos_token": named}
    tokenizer = saved_with(tmp_path, tokenizer_config=settings)
    assert (tokenizer.bos, tokenizer.end) == (None, 0)                  # by its usual name
