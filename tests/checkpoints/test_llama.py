"""Llama's directories without transformers; tests/yardsticks/test_transformers_llama.py compares
with it."""

import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import npgpt
from npgpt import GPT, GPTConfig, Llama, LlamaConfig, UserError
from npgpt.models.language_model import LanguageModel
from npgpt.models.transformer import Transformer, TransformerConfig

SMALL = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 4, "n_kv_head": 2,
         "n_embd": 16, "n_inner": 10}
VARIANTS = [{}, {"tie_weights": False}, {"attention_bias": True, "mlp_bias": True},
            {"qk_norm": True, "head_dim": 6, "n_embd": 13}, {"dropout": 0.1, "attn_dropout": 0.3},
            {"dropout": 0.2, "rope_theta": 7.0, "norm_eps": 0.1}, {"attn_dropout": 0.1}]
IDX = np.arange(8)[None]
ABSENT = object()


def random_model(**options):
    """A model with no parameter at its initial value, as after training."""
    model = Llama(LlamaConfig(**SMALL | options))
    draw = np.random.default_rng(3).standard_normal
    model.params.flat[...] = draw(model.params.flat.size) * 0.2
    return model


def edited(tmp_path, model=None, tensors=(), **changes):
    """-> the directory of a small model with another config.json and other arrays."""
    path = tmp_path / "m"
    (model or random_model()).save_pretrained(path)
    (path / "SHA256SUMS").unlink()
    values = json.loads((path / "config.json").read_text()) | changes
    values = {name: value for name, value in values.items() if value is not ABSENT}
    (path / "config.json").write_text(json.dumps(values))
    if tensors:
        arrays = load_file(path / "model.safetensors") | tensors
        save_file({name: array for name, array in arrays.items() if array is not ABSENT},
                  path / "model.safetensors")
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_model_is_loaded_unchanged(variant, tmp_path):
    model = random_model(**variant)
    model.save_pretrained(tmp_path / "m")
    for read in (Llama.from_pretrained(tmp_path / "m"), npgpt.from_pretrained(tmp_path / "m")):
        assert type(read) is Llama and read.config == model.config
        np.testing.assert_array_equal(read.params.flat, model.params.flat)


def test_configuration_file_says_what_a_llama_is(tmp_path):
    found = json.loads((edited(tmp_path) / "config.json").read_text())
    assert found == {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 11,
        "max_position_embeddings": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_size": 16, "head_dim": 4, "intermediate_size": 10,
        "hidden_act": "silu", "attention_dropout": 0.0, "npgpt_dropout": 0.0,
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }


def test_weights_are_stored_transposed_and_apart(tmp_path):
    model = random_model(attention_bias=True)
    arrays = load_file(edited(tmp_path, model) / "model.safetensors")
    block = "model.layers.1.self_attn."
    qkv = model.params["layers.1.self_attn.qkv_proj.weight"]
    np.testing.assert_array_equal(arrays[block + "q_proj.weight"], qkv[:, :16].T)
    np.testing.assert_array_equal(arrays[block + "k_proj.weight"], qkv[:, 16:24].T)
    np.testing.assert_array_equal(arrays[block + "v_proj.weight"], qkv[:, 24:].T)
    bias = model.params["layers.1.self_attn.qkv_proj.bias"]
    np.testing.assert_array_equal(arrays[block + "k_proj.bias"], bias[16:24])
    gate_up = model.params["layers.0.mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(arrays["model.layers.0.mlp.up_proj.weight"], gate_up[:, 10:].T)


def test_opening_a_model_takes_its_size_once(tmp_path):
    model = random_model(vocab_size=2000, n_embd=128, n_inner=256, n_layer=4)
    size, largest = model.params.flat.nbytes, model.params["embed_tokens.weight"].nbytes
    path = edited(tmp_path, model)
    del model
    tracemalloc.start()
    read = Llama.from_pretrained(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.params.flat.nbytes == size <= peak < size + 0.5 * largest


@pytest.mark.parametrize("base", [npgpt.models.model.Model, LanguageModel])
def test_directory_is_opened_as_the_family_that_it_names(base, tmp_path):
    gpt = GPT(GPTConfig(11, 8, 1, 1, 4))
    gpt.save_pretrained(tmp_path / "gpt")
    assert type(base.from_pretrained(tmp_path / "gpt")) is GPT
    random_model().save_pretrained(tmp_path / "llama")
    assert type(base.from_pretrained(tmp_path / "llama", dtype="float64")) is Llama


def test_family_that_the_caller_does_not_expect_is_refused(tmp_path):
    random_model().save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="model_type is 'llama', expected gpt2"):
        GPT.from_pretrained(tmp_path / "llama")
    GPT(GPTConfig(11, 8, 1, 1, 4)).save_pretrained(tmp_path / "gpt")
    with pytest.raises(UserError, match="model_type is 'gpt2', expected llama"):
        Llama.from_pretrained(tmp_path / "gpt")
    config = TransformerConfig(source_vocab_size=5, target_vocab_size=5, n_layer=1, n_head=1,
                               n_embd=4)
    Transformer(config).save_pretrained(tmp_path / "transformer")
    assert type(npgpt.from_pretrained(tmp_path / "transformer")) is Transformer
    with pytest.raises(UserError, match="'npgpt-transformer', expected one of gpt2, npgpt, llama"):
        LanguageModel.from_pretrained(tmp_path / "transformer")


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "mistral"}, "model_type is 'mistral', expected one of gpt2, npgpt, llama, qw"),
    ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
    ({"hidden_act": "gelu"}, "does not support hidden_act = 'gelu'"),
    ({"use_sliding_window": True}, "does not support use_sliding_window = True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "does not support layer_types"),
    ({"layer_types": 7}, "does not support layer_types = 7"),
    ({"quantization_config": {"bits": 4}}, r"does not support quantization_config = \{'bits': 4"),
    ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": None},
     "rotation rope_type = 'linear'"),
    ({"rope_scaling": {"type": "default"}}, "rope_scaling and rope_parameters are both given"),
    ({"is_causal": False}, "does not support is_causal = False"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "rotation rope_type = 'llama3'"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
    ({"rope_parameters": [1]}, r"rope_parameters must be an object, got \[1\]"),
    ({"rope_theta": 5}, "rope_theta is 5, but 10000.0 in rope_parameters"),
    ({"rope_theta": "1", "rope_parameters": None}, "rope_theta must be a number, got '1'"),
    ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads, "
                                 "got 4 and 3"),
    ({"num_attention_heads": 3}, "hidden_size must be a multiple of num_attention_heads"),
    ({"head_dim": 3}, "head_dim must be even, because RoPE"),
    ({"head_dim": 6}, r"q_proj\.weight has the shape \(16, 16\), expected \(24, 16\)"),
    ({"intermediate_size": 9}, r"gate_proj\.weight has the shape \(10, 16\), expected \(9, 16\)"),
    ({"num_hidden_layers": 3}, r"layers\.2\..* is missing"),
    ({"num_hidden_layers": 1}, r"layers\.1\..* is unknown"),
    ({"attention_bias": True}, r"q_proj\.bias .* is missing"),
    ({"tie_word_embeddings": False}, r"lm_head\.weight .* is missing"),
    ({"model_type": "qwen3"}, r"q_norm\.weight .* is missing"),
    ({"attention_dropout": 1}, "attention_dropout must be below 1, got 1"),
    ({"max_position_embeddings": None}, "max_position_embeddings must be a whole number, got None"),
])
def test_unsupported_configuration_is_refused(change, message, tmp_path):
    path = edited(tmp_path, **change)
    with pytest.raises(UserError, match=message) as error:
        npgpt.from_pretrained(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("change", [
    {"layer_types": ["full_attention", "full_attention"]}, {"attention_dropout": None},
    {"hidden_act": "swish"}, {"rope_theta": ABSENT}, {"rope_parameters": None},
    {"rope_theta": ABSENT, "rope_parameters": {"rope_theta": 77.0}},
    {"rope_theta": ABSENT, "rope_parameters": ABSENT}, {"is_causal": True},
    {"rope_theta": ABSENT, "rope_parameters": ABSENT, "rope_scaling": {"rope_theta": 77.0}},
])
def test_other_spellings_of_what_npgpt_computes_are_read(change, tmp_path):
    theta = 77.0 if "77.0" in str(change) or "rope" not in str(change) else 10_000.0
    model = random_model(rope_theta=theta)
    read = Llama.from_pretrained(edited(tmp_path, model, **change))
    assert read.config == model.config


def test_missing_rate_of_attention_is_zero(tmp_path):
    path = edited(tmp_path, attention_dropout=None, npgpt_dropout=0.25)
    read = Llama.from_pretrained(path).config
    assert (read.dropout, read.attention_dropout) == (0.25, 0)


def test_qwen3_has_no_bias_in_the_mlp_whatever_its_file_says(tmp_path):
    model = random_model(qk_norm=True)
    path = edited(tmp_path, model, mlp_bias=True)
    assert npgpt.from_pretrained(path).config == model.config
    found = json.loads((path / "config.json").read_text())
    assert (found["model_type"], found["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])


def test_head_that_differs_is_named_with_both_files(tmp_path):
    path = edited(tmp_path, tensors={"lm_head.weight": np.ones((11, 16), np.float32)})
    with pytest.raises(UserError) as error:
        Llama.from_pretrained(path)
    assert error.value.message.startswith(f"{path}/model.safetensors: lm_head.weight differs")
    assert f"but {path}/config.json says" in error.value.message


def test_directory_without_a_configuration_says_what_else_is_there(tmp_path):
    path = edited(tmp_path)
    (path / "config.json").unlink()
    with pytest.raises(UserError, match=r"m.config\.json is missing"):
        npgpt.from_pretrained(path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"m has no model\.safetensors, but pytorch_model\.bin"):
        npgpt.from_pretrained(path)


def test_other_family_is_named_with_the_file(tmp_path):
    path = edited(tmp_path, model_type="gpt2")
    with pytest.raises(UserError) as error:
        Llama.from_pretrained(path)
    assert error.value.message.startswith(f"{path}/config.json: model_type is 'gpt2', expected")


@pytest.mark.parametrize("row", [0, 1, 4, 10])
def test_tied_matrices_are_compared_to_the_last_row(row, tmp_path, monkeypatch):
    monkeypatch.setattr("npgpt.checkpoints.hugging_face.ROWS", 3)
    model = random_model()
    head = model.params["embed_tokens.weight"].copy()
    path = edited(tmp_path, model, tensors={"lm_head.weight": head.copy()})
    assert Llama.from_pretrained(path).config.tie_weights
    head[row, 2] += 1
    with pytest.raises(UserError, match="differs"):
        Llama.from_pretrained(edited(tmp_path, model, tensors={"lm_head.weight": head}))


@pytest.mark.parametrize(("name", "array", "message"), [
    ("model.layers.0.self_attn.q_proj.weight", ABSENT, r"q_proj\.weight \(16, 16\) is missing"),
    ("model.layers.0.self_attn.k_proj.weight", np.ones((16, 8), np.float32), r"shape \(16, 8\)"),
    ("model.layers.0.self_attn.q_norm.weight", np.ones(4, np.float32), r"q_norm\.weight is unk"),
    ("embed_tokens.weight", np.ones((11, 16), np.float32), "embed_tokens.weight twice"),
    ("lm_head.weight", np.ones((11, 16), np.float32), "lm_head.weight differs from model.embed"),
    ("model.norm.weight", np.ones(16, np.int32), "dtype I32"),
])
def test_arrays_that_do_not_fit_are_refused_by_name(name, array, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Llama.from_pretrained(edited(tmp_path, tensors={name: array}))


def test_angles_that_old_files_contain_are_not_needed(tmp_path):
    angles = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    read = Llama.from_pretrained(edited(tmp_path, tensors=angles))
    np.testing.assert_array_equal(read.params.flat, random_model().params.flat)


def test_names_without_the_prefix_are_read(tmp_path):
    path = edited(tmp_path)
    arrays = load_file(path / "model.safetensors")
    save_file({name.removeprefix("model."): array for name, array in arrays.items()},
              path / "model.safetensors")
    read = Llama.from_pretrained(path)
    np.testing.assert_array_equal(read.params.flat, random_model().params.flat)
