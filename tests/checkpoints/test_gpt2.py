import json
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npgpt import GPT, GPTConfig, UserError
from npgpt.checkpoints import models

SMALL = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
VARIANTS = [{}, {"tie_weights": False}, {"attn_bias": False}, {"head_bias": True},
            {"activation": "relu", "dropout": 0.1}]
IDX = np.arange(8)[None]


def random_model(seed=3, **options):
    """A model with no parameter at its initial value, as after training."""
    model = GPT(GPTConfig(**SMALL | options))
    draw = np.random.default_rng(seed).standard_normal
    model.params.flat[...] = draw(model.params.flat.size) * 0.2
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_model_is_loaded_unchanged(variant, tmp_path):
    model = random_model(**variant)
    model.save_pretrained(tmp_path / "model")
    read = GPT.from_pretrained(tmp_path / "model")
    assert read.config == model.config
    np.testing.assert_array_equal(read.params.flat, model.params.flat)


def test_model_is_loaded_to_the_requested_device_and_dtype(tmp_path):
    random_model().save_pretrained(tmp_path / "model")
    assert GPT.from_pretrained(tmp_path / "model").params.flat.dtype == np.float32
    assert GPT.from_pretrained(tmp_path / "model", dtype="float64").params.flat.dtype == np.float64
    with pytest.raises(UserError, match="device must be one of auto, cpu, gpu, got 'tpu'"):
        GPT.from_pretrained(tmp_path / "model", device="tpu")


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "head_bias" not in v])
def test_transformers_computes_the_same_logits(variant, tmp_path, torch, transformers):
    model = random_model(**variant)
    model.save_pretrained(tmp_path / "model")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = theirs(torch.tensor(IDX)).logits.numpy()
    np.testing.assert_allclose(model.logits(IDX), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(-1), model.logits(IDX).argmax(-1))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_model_saved_by_transformers_is_loaded(prefix, tied, tmp_path, torch, transformers):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_layer=2, n_head=2, n_embd=16, tie_word_embeddings=tied
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if not prefix:
        save_file({n.removeprefix("transformer."): a for n, a in load_file(path).items()}, path)
    assert any(name.startswith("transformer.") for name in load_file(path)) == prefix
    model = GPT.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = theirs(torch.tensor(IDX)).logits.numpy()
    np.testing.assert_allclose(model.logits(IDX), logits, rtol=1e-4, atol=1e-4)


def test_masks_in_old_files_are_ignored(tmp_path):
    model = random_model()
    model.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    tensors = {f"transformer.{name}": array for name, array in load_file(path).items()}
    mask = np.tril(np.ones((1, 1, 8, 8), np.float32))
    save_file(tensors | {"transformer.h.0.attn.bias": mask,
                         "lm_head.weight": tensors["transformer.wte.weight"]}, path)
    (tmp_path / "old" / "SHA256SUMS").unlink()
    np.testing.assert_array_equal(GPT.from_pretrained(tmp_path / "old").params.flat,
                                  model.params.flat)


def test_bias_trained_by_another_program_is_kept(tmp_path):
    random_model(attn_bias=False).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["h.0.attn.c_attn.bias"][3] = 0.5
    save_file(tensors, path)
    (tmp_path / "m" / "SHA256SUMS").unlink()
    model = GPT.from_pretrained(tmp_path / "m")
    assert model.config.attn_bias
    assert model.params["h.0.attn.c_attn.bias"][3] == 0.5


def test_saving_again_replaces_the_whole_directory(tmp_path):
    random_model(1).save_pretrained(tmp_path / "m")
    model = random_model(2)
    model.save_pretrained(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    np.testing.assert_array_equal(GPT.from_pretrained(tmp_path / "m").params.flat,
                                  model.params.flat)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_save_keeps_the_old_directory(tmp_path, monkeypatch, error):
    model = random_model(1)
    model.save_pretrained(tmp_path / "m")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(models, "write_tensors", fail)
    with pytest.raises(type(error)):
        random_model(2).save_pretrained(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    np.testing.assert_array_equal(GPT.from_pretrained(tmp_path / "m").params.flat,
                                  model.params.flat)


def test_saving_onto_a_file_is_refused(tmp_path):
    (tmp_path / "m").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        random_model().save_pretrained(tmp_path / "m")
    assert (tmp_path / "m").read_text() == "mine"


def test_sha256sum_can_check_the_files(tmp_path):
    random_model().save_pretrained(tmp_path / "m")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "m",
                   check=True, capture_output=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_flipped_bit_is_detected_and_the_file_is_named(name, tmp_path):
    random_model().save_pretrained(tmp_path / "m")
    data = bytearray((tmp_path / "m" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m" / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        GPT.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(name, tmp_path):
    random_model().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        GPT.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        GPT.from_pretrained(tmp_path / "m")


def edited(tmp_path, **changes):
    """A saved model whose config.json was edited; a change to None removes the key."""
    random_model().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "SHA256SUMS").unlink()
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return tmp_path / "m"


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "llama"}, "model_type is 'llama'"),
    ({"activation_function": "silu"}, "does not support the activation 'silu'"),
    ({"activation_function": "gelu"}, "the activation 'gelu'"),       # with erf
    ({"layer_norm_epsilon": 1e-6}, "does not support layer_norm_epsilon = 1e-06"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ({"n_inner": 99}, r"n_inner must be 4 \* n_embd, got 99"),
    ({"n_layer": 3}, r"h\.2\..* is missing"),
    ({"n_layer": 1}, r"h\.1\..* is unknown"),
    ({"vocab_size": 12}, r"wte.weight has the shape \(11, 16\), expected \(12, 16\)"),
    ({"n_embd": "wide"}, "n_embd"),
    ({"n_head": 0}, r"config\.json: n_head must be at least 1, got 0"),
    ({"n_layer": 10**12}, "n_layer must be"),
    ({"tie_word_embeddings": False}, r"lm_head\.weight .* is missing"),
])
def test_unsupported_configuration_is_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        GPT.from_pretrained(edited(tmp_path, **change))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"model_type": []}'])
def test_invalid_configuration_file_is_refused(text, tmp_path):
    path = edited(tmp_path)
    (path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}"])
def test_invalid_weights_file_is_refused(data, tmp_path):
    path = edited(tmp_path)
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        GPT.from_pretrained(path)


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(UserError, match=r"the model directory .*nowhere does not exist"):
        GPT.from_pretrained(tmp_path / "nowhere")


def test_run_is_told_apart_from_a_model_and_its_checkpoints_are_named(tmp_path):
    for step in (10, 20):
        random_model().save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(UserError, match=r"run is a run, not a model; its models are its checkpoints"
                                        r": .*checkpoint-10, .*checkpoint-20"):
        GPT.from_pretrained(tmp_path / "run")
    assert GPT.from_pretrained(tmp_path / "run" / "checkpoint-20").config == random_model().config
