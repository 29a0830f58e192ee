"""Models in several files: the index and the files must agree, and then the model is the same."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npgpt import GPT, GPTConfig, UserError, reading
from npgpt.durable import SUMS

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def model():
    gpt = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16))
    gpt.params.flat[...] = np.random.default_rng(3).standard_normal(gpt.params.flat.size)
    return gpt


@pytest.fixture
def path(model, tmp_path):
    """The model in two files, every second array in the second."""
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / SUMS).unlink()
    arrays = load_file(tmp_path / "m/model.safetensors")
    (tmp_path / "m/model.safetensors").unlink()
    names = sorted(arrays)
    for file, part in ((FIRST, names[::2]), (SECOND, names[1::2])):
        save_file({name: arrays[name] for name in part}, tmp_path / "m" / file)
    write_map(tmp_path / "m", dict.fromkeys(names[::2], FIRST) | dict.fromkeys(names[1::2], SECOND))
    return tmp_path / "m"


def write_map(path, files):
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (path / INDEX).write_text(json.dumps(index))


def read_map(path):
    return json.loads((path / INDEX).read_text())["weight_map"]


def same(found, model):
    assert found.config == model.config
    np.testing.assert_array_equal(found.params.flat, model.params.flat)


def test_model_in_shards_is_the_model(path, model):
    same(GPT.from_pretrained(path), model)


def test_one_file_goes_before_shards(path, model):
    model.params.flat[...] = 7
    model.save_pretrained(path.parent / "one")
    (path.parent / "one/model.safetensors").rename(path / "model.safetensors")
    same(GPT.from_pretrained(path), model)


def test_shards_may_be_links_and_other_files_are_left_alone(path, model, tmp_path):
    (path / FIRST).rename(tmp_path / "blob")          # as in a cache of downloads
    (path / FIRST).symlink_to("../blob")
    (path / "model-00003-of-00003.safetensors").write_bytes(b"of another model")
    same(GPT.from_pretrained(path), model)


def test_head_in_another_file_than_the_tied_embedding_must_equal_it(path, model):
    files = read_map(path)
    other = SECOND if files["wte.weight"] == FIRST else FIRST
    head = model.params["wte.weight"].copy()
    for change in (0, 1e-3):
        head[-1, -1] += change
        save_file(load_file(path / other) | {"lm_head.weight": head}, path / other)
        write_map(path, files | {"lm_head.weight": other})
        if not change:
            same(GPT.from_pretrained(path), model)
    with pytest.raises(UserError, match=r"index\.json: lm_head\.weight differs from wte\.weight"):
        GPT.from_pretrained(path)


def test_damaged_shard_is_detected_by_its_hash(path):
    for file in (*path.glob("*.json"), *path.glob("*.safetensors")):
        with open(path / SUMS, "a") as sums:
            sums.write(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    GPT.from_pretrained(path)
    data = bytearray((path / SECOND).read_bytes())
    data[-1] ^= 1
    (path / SECOND).write_bytes(data)
    with pytest.raises(UserError, match=f"{SECOND} is damaged: its SHA-256"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize("file", [
    "../m/" + FIRST, "sub/" + FIRST, "/etc/passwd", "..", ".", "", "sub\\" + FIRST, "C:x", "a\0",
    None, 7, [FIRST],
])
def test_name_that_is_not_of_a_file_beside_the_index_is_refused(file, path):
    (path / "sub").mkdir()
    (path / "sub" / FIRST).write_bytes((path / FIRST).read_bytes())
    write_map(path, read_map(path) | {"wte.weight": file})
    with pytest.raises(UserError, match=r"index\.json: the file of wte\.weight is .*, and must be "
                                        r"the name of one in .*m$"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": null}',
                                  '{"weight_map": ["wte.weight"]}', '{"weight_map": 1}'])
def test_index_that_lists_nothing_is_refused(text, path):
    (path / INDEX).write_text(text)
    with pytest.raises(UserError, match=r"index\.json is damaged: weight_map does not list any "
                                        "array; copy the file again"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": {"a": "x", "a": "y"}}'])
def test_index_that_is_not_an_object_of_json_is_refused(text, path):
    (path / INDEX).write_text(text)
    with pytest.raises(UserError, match=r"index\.json .*JSON"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize("name", [SECOND, "x" * 300 + ".safetensors", "\ud800"])
def test_missing_shard_is_named(name, path):
    write_map(path, {array: name if file == SECOND else file
                     for array, file in read_map(path).items()})
    (path / SECOND).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing, but .*index\.json lists arrays in "
                                        "it; copy the file there too"):
        GPT.from_pretrained(path)


def test_shards_without_their_index_are_named(path):
    (path / INDEX).unlink()
    with pytest.raises(UserError, match=rf"m has no model\.safetensors, but {FIRST} \(one of "
                                        r"several shards\), and not their index; "
                                        rf"copy {INDEX} there too"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize(("change", "message"), [
    ("not listed", r"has wte\.weight, but .*index\.json does not list it there; they are of "
                   "different models, so copy all files again"),
    ("in two files", r"has wte\.weight, but .*index\.json does not list it there"),
    ("not there", r"has no wte\.weight, but .*index\.json lists it there"),
    ("in another file", r"wte\.weight, but .*index\.json"),
])
def test_index_and_shards_that_disagree_are_refused(change, message, path):
    files = read_map(path)
    file = files["wte.weight"]
    other = SECOND if file == FIRST else FIRST
    arrays = load_file(path / file)
    table = arrays["wte.weight"]
    if change == "not listed":
        del files["wte.weight"]
    if change in ("not there", "in another file"):
        del arrays["wte.weight"]
    if change in ("in two files", "in another file"):
        save_file(load_file(path / other) | {"wte.weight": table}, path / other)
    save_file(arrays, path / file)
    write_map(path, files)
    with pytest.raises(UserError, match=message):
        GPT.from_pretrained(path)


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros((16, 11), np.float32), r"{}: wte\.weight has the shape \(16, 11\), expected"),
    (np.zeros((11, 16), np.int32), r"{}: wte\.weight has the dtype I32"),
])
def test_array_that_does_not_fit_is_named_with_its_shard(array, message, path):
    file = read_map(path)["wte.weight"]
    save_file(load_file(path / file) | {"wte.weight": array}, path / file)
    with pytest.raises(UserError, match=message.format(file)):
        GPT.from_pretrained(path)


def test_array_that_is_in_no_file_is_named(path):
    files = read_map(path)
    file = files.pop("wte.weight")
    save_file({name: array for name, array in load_file(path / file).items()
               if name != "wte.weight"}, path / file)
    write_map(path, files)
    with pytest.raises(UserError, match=r"index\.json: wte\.weight \(11, 16\) is missing"):
        GPT.from_pretrained(path)


def test_same_parameter_in_two_files_under_two_names_is_refused(path, model):
    files = read_map(path)
    other = SECOND if files["wte.weight"] == FIRST else FIRST
    save_file(load_file(path / other) | {"transformer.wte.weight": model.params["wte.weight"]},
              path / other)
    write_map(path, files | {"transformer.wte.weight": other})
    with pytest.raises(UserError, match=r"index\.json contains wte\.weight twice"):
        GPT.from_pretrained(path)


def test_shard_that_is_damaged_is_named(path):
    (path / SECOND).write_bytes((path / SECOND).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{SECOND} is damaged or not a safetensors file"):
        GPT.from_pretrained(path)


def test_shards_that_only_together_are_too_large_for_the_memory_are_refused(path, model,
                                                                            monkeypatch):
    """The second is stored with 16 bits: in memory it is twice as large."""
    arrays = load_file(path / SECOND)
    save_file({name: array.astype(np.float16) for name, array in arrays.items()}, path / SECOND)
    needed, free = model.params.flat.nbytes, {}
    assert sum((path / file).stat().st_size for file in (FIRST, SECOND)) < needed
    monkeypatch.setattr(reading, "LARGEST", 1)
    monkeypatch.setattr(reading, "free_memory", lambda: free[0])
    for free[0] in (None, needed):
        GPT.from_pretrained(path)
    free[0] = needed - 1
    with pytest.raises(UserError, match=rf"index\.json as float32 has {needed:,} bytes, and "
                                        rf"{needed - 1:,} bytes of memory are free"):
        GPT.from_pretrained(path)


def test_names_of_shards_are_any_plain_names(path, model):
    (path / FIRST).rename(path / "X.safetensors")
    write_map(path, {name: file.replace(FIRST, "X.safetensors")
                     for name, file in read_map(path).items()})
    same(GPT.from_pretrained(path), model)
