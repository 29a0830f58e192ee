"""Adapters in files: what npgpt writes, and what it reads of peft's. tests/yardsticks/test_peft.py
has peft itself."""

import json
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import npgpt
from npgpt import GPT, GPTConfig, Llama, LlamaConfig, UserError
from npgpt.checkpoints import adapter, hub
from npgpt.checkpoints.models import read_model, tokenizer_of, write_model
from npgpt.durable import SUMS, atomic_directory, verify
from npgpt.models.transformer import Transformer, TransformerConfig
from npgpt.text.bpe import BPETokenizer
from tests.gguf_files import (
    metadata_of,
    random_llama,
    tensors_of,
    tokenizer_metadata,
    write_gguf,
)

IDX = np.arange(8)[None]
SIZES = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}


def randomised(model, seed=3):
    """A model with no parameter at its initial value."""
    draw = np.random.default_rng(seed).standard_normal
    model.params.flat[...] = draw(model.params.flat.size) * 0.2
    return model


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=[GPT, Llama])
def family(request):
    return request.param


@pytest.fixture
def adapted(home, family):
    """A model in "base", and the same with adapters, which are in "a" -> the adapted model."""
    options = {"n_kv_head": 1, "n_inner": 12} if family is Llama else {}
    config = family.Config(**SIZES | options)
    model = randomised(family(config, lora_rank=3))
    family(config, values=[(n, model.params[n]) for n in config.shapes()]).save_pretrained("base")
    write(model, home / "a", "base", adapter.digest(home / "base"))
    return model


def write(model, path, name, sha256):
    with atomic_directory(path, adapter.FILES | {SUMS}) as folder:
        write_model(model, folder, base=(name, sha256))


@pytest.fixture
def llama(home):
    """A Llama in "base" -> the model."""
    model = randomised(Llama(LlamaConfig(**SIZES, n_kv_head=1, n_inner=12)))
    model.save_pretrained("base")
    return model


def by_hand(folder, tensors, **config):
    """A directory as peft writes it: r is 4, lora_alpha 8. Named arrays of blocks."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, "lora_alpha": 8,
         "target_modules": ["q_proj", "v_proj"]} | config))
    save_file({f"base_model.model.model.{name}.weight": array for name, array in tensors.items()},
              folder / "adapter_model.safetensors")


def pairs(dtype=np.float32):
    """Adapters of q and v in the second of two blocks, and of v in the first."""
    rng = np.random.default_rng(1)
    return {f"layers.{block}.self_attn.{module}.{kind}":
                rng.standard_normal((4, 16) if kind == "lora_A" else (rows, 4)).astype(dtype)
            for block, module, rows in ((0, "v_proj", 8), (1, "q_proj", 16), (1, "v_proj", 8))
            for kind in ("lora_A", "lora_B")}


def change(name, values):
    """Change a JSON file in "a"; "absent" removes a key."""
    path = f"a/{name}"
    with open(path) as file:
        found = json.load(file) | values
    with open(path, "w") as file:
        json.dump({key: value for key, value in found.items() if value != "absent"}, file)


def refused(message=None):
    with pytest.raises(UserError, match=message) as error:
        npgpt.from_pretrained("a")
    assert "\n" not in error.value.message
    return error.value.message


def test_files_are_those_of_peft(adapted, family, home):
    assert {path.name for path in (home / "a").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base.json", SUMS}
    verify("a")
    found = json.loads((home / "a/adapter_config.json").read_text())
    modules = (["c_attn", "c_fc", "c_proj"] if family is GPT else
               ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"])
    assert found == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 3,
        "lora_alpha": 3, "lora_dropout": 0.0, "bias": "none", "target_modules": modules,
        "fan_in_fan_out": family is GPT, "inference_mode": True}
    assert json.loads((home / "a/base.json").read_text()) == {
        "sha256": adapter.digest(home / "base")}


def test_tensors_are_transposed_and_have_the_names_of_transformers(adapted, family, home):
    found = load_file(home / "a/adapter_model.safetensors")
    name, there, rows = (("h.1.attn.c_attn", "transformer.h.1.attn.c_attn", 48)
                         if family is GPT else
                         ("layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj", 8))
    A, B = (found[f"base_model.model.{there}.lora_{kind}.weight"] for kind in "AB")
    assert (A.shape, B.shape) == ((3, 16), (rows, 3))
    np.testing.assert_array_equal(A, adapted.params[f"{name}.lora_A"].T)
    np.testing.assert_array_equal(B, adapted.params[f"{name}.lora_B"].T)
    assert len(found) == 2 * 2 * (4 if family is GPT else 7)


def test_read_model_has_the_adapters_merged(adapted, family):
    read = npgpt.from_pretrained("a")
    assert type(read) is family and read.params.keys() == read.config.shapes().keys()
    np.testing.assert_allclose(read.logits(IDX), adapted.logits(IDX), rtol=1e-4, atol=1e-5)
    base = npgpt.from_pretrained("base")
    assert np.abs(read.logits(IDX) - base.logits(IDX)).max() > 0.05


def test_a_training_reads_the_adapters_apart_from_their_model(adapted, family, home):
    read = read_model(home / "a", family, lora_rank=3)
    assert read.config == adapted.config and read.params.keys() == adapted.params.keys()
    for name, array in adapted.params.items():
        np.testing.assert_array_equal(read.params[name], array)


def test_saved_model_has_the_adapters_merged(adapted, home):
    adapted.save_pretrained("whole")
    assert not (home / "whole/adapter_config.json").exists()
    np.testing.assert_array_equal(npgpt.from_pretrained("whole").params.flat,
                                  npgpt.from_pretrained("a").params.flat)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_some_matrices_change_by_alpha_over_r(dtype, llama, home):
    tensors = pairs(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    stored = {n: a.view(np.uint16) for n, a in tensors.items()} if dtype == "bfloat16" else tensors
    by_hand(home / "a", stored)
    if dtype == "bfloat16":
        path = home / "a/adapter_model.safetensors"
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = data[8:end].replace(b'"U16"', b'"BF16"')
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    _assert_changed(llama, npgpt.from_pretrained("a"), tensors, 2)


def test_float64_is_not_rounded(llama, home):
    model = randomised(Llama(llama.config, dtype="float64"))
    model.save_pretrained("base")
    by_hand(home / "a", pairs(np.float64))
    read = npgpt.from_pretrained("a", dtype="float64").params
    w = read["layers.0.self_attn.qkv_proj.weight"][:, 24:]
    A, B = (pairs(np.float64)[f"layers.0.self_attn.v_proj.lora_{kind}"] for kind in "AB")
    np.testing.assert_allclose(w, model.params["layers.0.self_attn.qkv_proj.weight"][:, 24:]
                               + 2 * (B @ A).T, atol=1e-14)


def _assert_changed(model, read, tensors, factor):
    """w of q, k and v side by side: (C, 16 + 8 + 8)."""
    columns = {"q_proj": slice(0, 16), "v_proj": slice(24, 32)}
    expected = {name: np.array(array) for name, array in model.params.items()}
    for name in (name for name in tensors if name.endswith("lora_A")):
        block, _, module = name.removeprefix("layers.").split(".")[:3]
        A, B = (tensors[name[:-1] + kind].astype(np.float32) for kind in "AB")
        expected[f"layers.{block}.self_attn.qkv_proj.weight"][:, columns[module]] += (
            factor * (B @ A).T)
    for name, array in read.params.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("config", "factor"), [
    ({"use_rslora": True}, 4), ({"lora_alpha": 4}, 1), ({"lora_alpha": 0.5}, 0.125),
    ({"use_rslora": False, "lora_alpha": 0}, 0),
])
def test_factor_is_that_of_the_configuration(config, factor, llama, home):
    by_hand(home / "a", pairs(), **config)
    _assert_changed(llama, npgpt.from_pretrained("a"), pairs(), factor)


def test_absent_keys_have_the_defaults_of_peft(llama, home):
    tensors = {name: np.repeat(array, 2, int(name.endswith("B"))) for name, array
               in pairs().items()}
    by_hand(home / "a", tensors)
    change("adapter_config.json", {"r": "absent", "lora_alpha": "absent"})
    _assert_changed(llama, npgpt.from_pretrained("a"), tensors, 1)


# A value of each name that changes what is computed.
OTHER = {
    "peft_type": "IA3", "bias": "all", "use_dora": True, "use_qalora": True,
    "use_bdlora": {"nblocks": 2}, "lora_bias": True, "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2}, "modules_to_save": ["lm_head"], "layer_replication": [[0, 2]],
    "trainable_token_indices": [1], "target_parameters": ["a"], "init_lora_weights": "pissa",
    "alora_invocation_tokens": [1], "arrow_config": {"top_k": 1}, "kasa_config": {"a": 1},
    "monteclora_config": {"a": 1},
}


@pytest.mark.parametrize("name", adapter.FIXED)
def test_what_is_not_computed_is_refused_by_name(name, llama, home):
    by_hand(home / "a", pairs())
    for value in adapter.FIXED[name]:
        change("adapter_config.json", {name: value})
        npgpt.from_pretrained("a")
    change("adapter_config.json", {name: OTHER[name]})
    assert refused() == f"a/adapter_config.json: npgpt does not support {name} = {OTHER[name]!r}"


@pytest.mark.parametrize(("values", "message"), [
    ({"r": 0}, "r must be a whole number of at least 1, got 0"),
    ({"r": 4.0}, "r must be a whole number of at least 1, got 4.0"),
    ({"r": True}, "r must be a whole number of at least 1, got True"),
    ({"r": 9}, "r must be at most 8, the smaller side of layers.0.self_attn.k_proj, got 9"),
    ({"lora_alpha": "8"}, "lora_alpha must be a number, got '8'"),
    ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
    ({"lora_alpha": float("inf")}, "lora_alpha must be a number, got inf"),
    ({"base_model_name_or_path": 3},
     "base_model_name_or_path must name the model that is adapted, got 3"),
    ({"base_model_name_or_path": ""},
     "base_model_name_or_path must name the model that is adapted, got ''"),
    ({"base_model_name_or_path": "absent"},
     "base_model_name_or_path must name the model that is adapted, got None"),
    ({"base_model_name_or_path": "nowhere"},
     "the base model nowhere does not exist; if it has moved, change base_model_name_or_path"),
    ({"base_model_name_or_path": "a" * 300},
     f"the base model {'a' * 300} does not exist; if it has moved, change "
     "base_model_name_or_path"),
])
def test_invalid_configuration_is_refused(values, message, llama, home):
    by_hand(home / "a", pairs())
    change("adapter_config.json", values)
    assert refused() == f"a/adapter_config.json: {message}"


def test_rank_may_be_that_of_the_smallest_matrix(llama, home):
    tensors = {name: np.repeat(array, 2, int(name.endswith("B"))) for name, array
               in pairs().items()}
    by_hand(home / "a", tensors, r=8)
    _assert_changed(llama, npgpt.from_pretrained("a"), tensors, 1)
    one = {name: array[:1] if name.endswith("A") else array[:, :1]
           for name, array in tensors.items()}
    save_file({f"base_model.model.model.{name}.weight": np.ascontiguousarray(array)
               for name, array in one.items()}, home / "a/adapter_model.safetensors")
    change("adapter_config.json", {"r": 1})
    _assert_changed(llama, npgpt.from_pretrained("a"), one, 8)


Q = "layers.1.self_attn.q_proj"
THERE = f"base_model.model.model.{Q}"


@pytest.mark.parametrize(("damage", "message"), [
    (lambda t: t.pop(f"{Q}.lora_A"), f"lora_A of {Q} is missing"),
    (lambda t: t.pop(f"{Q}.lora_B"), f"lora_B of {Q} is missing"),
    (lambda t: t.update({"layers.2.self_attn.q_proj.lora_A": t[f"{Q}.lora_A"]}),
     "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight is unknown"),
    (lambda t: t.update({f"{Q}.lora_A": t[f"{Q}.lora_B"]}),
     f"{THERE}.lora_A.weight has the shape (16, 4), expected (4, 16)"),
    (lambda t: t.update({f"{Q}.lora_A": t[f"{Q}.lora_A"].astype(np.int32)}),
     f"{THERE}.lora_A.weight has the dtype I32; npgpt reads F64, F32, F16 and BF16"),
])
def test_invalid_tensors_are_refused(damage, message, llama, home):
    tensors = pairs()
    damage(tensors)
    by_hand(home / "a", tensors)
    assert refused() == f"a/adapter_model.safetensors: {message}"


def test_directory_without_tensors_is_refused(llama, home):
    by_hand(home / "a", {})
    assert refused() == "a/adapter_model.safetensors has no adapters"
    (home / "a/adapter_model.safetensors").unlink()
    assert refused() == "a/adapter_model.safetensors is missing"


def test_changed_file_is_refused(adapted, home):
    change("adapter_config.json", {"lora_alpha": 6})
    refused(r"a/adapter_config\.json is damaged: its SHA-256 is not that in SHA256SUMS")


def test_model_that_is_elsewhere_is_found_again(adapted, home):
    (home / "base").rename(home / "moved")
    assert refused("the base model base does not exist").endswith(
        "if it has moved, change base_model_name_or_path and delete SHA256SUMS")
    change("adapter_config.json", {"base_model_name_or_path": "moved"})
    (home / "a" / SUMS).unlink()
    read = npgpt.from_pretrained("a")
    np.testing.assert_allclose(read.logits(IDX), adapted.logits(IDX), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sums", [True, False])
def test_another_model_in_the_same_place_is_refused(sums, adapted, family, home):
    if not sums:
        (home / "base" / SUMS).unlink()
        write(adapted, home / "a", "base", adapter.digest(home / "base"))
    npgpt.from_pretrained("a")
    other = npgpt.from_pretrained("base")
    other.params.flat[0] += 1
    other.save_pretrained("base")
    if not sums:
        (home / "base" / SUMS).unlink()
    refused(r"base is not the base model of the adapters in a: its SHA-256 is not that in "
            r"base\.json; restore that version, or change base_model_name_or_path in ")
    (home / "a/base.json").unlink()                 # as peft writes it
    (home / "a" / SUMS).unlink()
    npgpt.from_pretrained("a")


def test_damaged_model_is_refused(llama, home):
    by_hand(home / "a", pairs())
    (home / "base/config.json").write_text((home / "base/config.json").read_text() + " ")
    refused(r"base/config\.json is damaged")


def test_adapters_of_adapters_are_refused(llama, home):
    by_hand(home / "first", pairs())
    by_hand(home / "a", pairs(), base_model_name_or_path="first")
    assert refused() == ("a/adapter_config.json: first contains adapters itself; merge them "
                           "with npgpt merge first")


def test_model_may_be_a_gguf_file(home):
    model = random_llama()
    write_gguf(home / "m.gguf", metadata_of(model.config), tensors_of(model))
    adapted = randomised(Llama(model.config, lora_rank=2))
    for name, array in model.params.items():
        adapted.params[name] = array
    write(adapted, home / "a", "m.gguf", adapter.digest(home / "m.gguf"))
    np.testing.assert_allclose(npgpt.from_pretrained("a").logits(IDX), adapted.logits(IDX),
                               rtol=1e-4, atol=1e-5)
    (home / "m.gguf").write_bytes((home / "m.gguf").read_bytes() + b" ")
    refused(r"m\.gguf is not the base model of the adapters in a")


def test_name_of_the_model_may_be_one_on_hugging_face(llama, home, monkeypatch):
    def snapshot_download(name, allow_patterns):
        if name != "someone/llama":
            raise OSError("Repository not found")
        return "base"

    monkeypatch.setitem(sys.modules, "huggingface_hub",
                        SimpleNamespace(snapshot_download=snapshot_download))
    by_hand(home / "a", pairs(), base_model_name_or_path="someone/llama")
    _assert_changed(llama, npgpt.from_pretrained("a"), pairs(), 2)
    change("adapter_config.json", {"base_model_name_or_path": "nobody/llama"})
    assert refused() == (
        "a/adapter_config.json: the base model nobody/llama does not exist, and nobody/llama "
        "cannot be downloaded from Hugging Face: Repository not found")


def test_reference_names_the_model_and_its_digest(adapted, home):
    sha256 = adapter.digest(home / "base")
    assert adapter.reference(home / "a") == ("base", sha256)
    (home / "base").rename(home / "moved")
    assert adapter.reference(home / "a") == ("base", sha256)
    change("adapter_config.json", {"base_model_name_or_path": "moved"})
    (home / "a/base.json").unlink()
    assert adapter.reference(home / "a") == ("moved", sha256)


def test_digest_is_that_of_all_weights(home):
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors", "config.json"):
        (home / name).write_text(name)
    found = [adapter.digest(home)]
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors", "config.json"):
        (home / name).write_text("other")
        found.append(adapter.digest(home))
    assert len(set(found)) == 3 and found[2] == found[3]
    (home / SUMS).write_text("of all files")
    found.append(adapter.digest(home))
    (home / "model-1-of-2.safetensors").write_text("model-1")
    assert adapter.digest(home) == found[4] and found[4] not in found[:4]
    (home / SUMS).write_text("of other files")
    assert adapter.digest(home) != found[4]


def test_tokenizer_is_that_of_the_model_unless_there_is_another(llama, home):
    by_hand(home / "a", pairs())
    text = "the quick brown fox jumps over the lazy dog\n"
    of_base, other = (BPETokenizer.train([text * 9], n) for n in (260, 262))
    of_base.save(home / "base")
    (home / "base/generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    found = tokenizer_of(home / "a")
    assert (found.digest, found.ends) == (of_base.digest, (of_base.end, 3, 5))
    other.save(home / "a")
    found = tokenizer_of(home / "a")
    assert (found.digest, found.ends) == (other.digest, tuple(sorted({3, 5, of_base.end,
                                                                      other.end})))
    assert tokenizer_of(home / "base").digest == of_base.digest


def test_text_ends_where_the_gguf_file_of_the_model_ends_it(home):
    metadata = tokenizer_metadata()
    model = random_llama(vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    write_gguf(home / "base", metadata_of(model.config) | metadata, tensors_of(model))
    by_hand(home / "a", {})
    own = BPETokenizer.train(["the quick brown fox " * 9], 260)
    own.save(home / "a")
    end = metadata["tokenizer.ggml.eos_token_id"]
    assert end != own.end and set(tokenizer_of(home / "a").ends) == {own.end, end}


def test_model_needs_no_tokenizer_if_its_adapters_have_one(llama, home):
    by_hand(home / "a", pairs())
    own = BPETokenizer.train(["the quick brown fox " * 9], 260)
    own.save(home / "a")
    assert tokenizer_of(home / "a").digest == own.digest
    vocabulary = json.loads((home / "a/tokenizer.json").read_text())["model"]
    (home / "a/vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    pairs_of_text = (" ".join(pair) if isinstance(pair, list) else pair
                     for pair in vocabulary["merges"])
    (home / "a/merges.txt").write_text("\n".join(["#version: 0.2", *pairs_of_text]))
    (home / "a/tokenizer.json").unlink()
    assert tokenizer_of(home / "a").vocab_size == own.vocab_size


def test_transformer_may_have_adapters(home):
    config = TransformerConfig(source_vocab_size=5, target_vocab_size=6, n_layer=1, n_head=2,
                               n_embd=8)
    model = randomised(Transformer(config, lora_rank=3))
    Transformer(config, values=[(n, model.params[n]) for n in config.shapes()]).save_pretrained(
        "base")
    write(model, home / "a", "base", adapter.digest(home / "base"))
    np.testing.assert_allclose(Transformer.from_pretrained("a").params.flat,
                               model.merged().params.flat, rtol=1e-6)


def test_digest_is_downloaded_with_the_adapters():
    assert adapter.FILES - {adapter.WEIGHTS} <= set(hub.FILES)


def test_run_of_adapters_is_not_a_model(adapted, home):
    (home / "run").mkdir()
    (home / "a").rename(home / "run/checkpoint-3")
    with pytest.raises(UserError, match="run is a run, not a model; its models are its checkpoints:"
                                        " run/checkpoint-3"):
        npgpt.from_pretrained("run")


def test_family_is_that_of_the_model(adapted, family):
    np.testing.assert_array_equal(family.from_pretrained("a").params.flat,
                                  npgpt.from_pretrained("a").params.flat)
    other = Llama if family is GPT else GPT
    with pytest.raises(UserError, match=r"base/config\.json: model_type is"):
        other.from_pretrained("a")


def test_adapters_of_a_gpt_take_its_configuration(home):
    config = GPTConfig(**SIZES, tie_weights=False, n_inner=24)
    model = randomised(GPT(config, lora_rank=2))
    model.merged().save_pretrained("whole")
    GPT(config, values=[(n, model.params[n]) for n in config.shapes()]).save_pretrained("base")
    write(model, home / "a", str(home / "base"), adapter.digest(home / "base"))
    assert npgpt.from_pretrained("a").config == config
    np.testing.assert_allclose(npgpt.from_pretrained("a").params.flat,
                               npgpt.from_pretrained("whole").params.flat, atol=1e-6)
