import json
import subprocess
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npgpt import GPT, GPTConfig, UserError
from npgpt.checkpoints import models
from npgpt.checkpoints.models import write_model

SMALL = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
VARIANTS = [{}, {"tie_weights": False}, {"attn_bias": False}, {"head_bias": True},
            {"activation": "relu", "dropout": 0.1}, {"n_inner": 24, "norm_eps": 0.02},
            {"n_inner": 64, "dropout": 0.1, "attn_dropout": 0.3, "embd_dropout": 0.0}]
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


def test_subclass_of_a_family_has_its_format(tmp_path):
    class MyGPT(GPT):
        pass

    model = random_model()
    MyGPT(model.config, values=model.params.items()).save_pretrained(tmp_path / "model")
    for family in (GPT, MyGPT):
        read = family.from_pretrained(tmp_path / "model")
        assert type(read) is family
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


@pytest.mark.parametrize("form", ["tied", "untied", "with its head", "float16", "bfloat16",
                                  "shards"])
def test_opening_a_model_takes_its_size_once(form, tmp_path):
    sizes = {"vocab_size": 2000, "n_embd": 128, "n_layer": 4}
    if form == "with its head":                  # little but the table: comparing may not copy it
        sizes = {"vocab_size": 20000}
    model = random_model(**sizes, tie_weights=form != "untied")
    size, table = model.params.flat.nbytes, model.params["wte.weight"].nbytes
    path = tmp_path / "m"
    model.save_pretrained(path)
    arrays = load_file(path / "model.safetensors")
    if form == "with its head":
        arrays["lm_head.weight"] = arrays["wte.weight"].copy()
    if form == "float16":
        arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    if form == "bfloat16":
        arrays = {name: (array.view(np.uint32) >> 16).astype("<u2")
                  for name, array in arrays.items()}
    if form == "shards":
        for name, array in arrays.items():
            save_file({name: array}, path / f"{name}.safetensors")
        files = {name: f"{name}.safetensors" for name in arrays}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        (path / "model.safetensors").unlink()
    else:
        save_file(arrays, path / "model.safetensors")
    if form == "bfloat16":
        data = (path / "model.safetensors").read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = data[8:end].replace(b'"U16"', b'"BF16"')
        (path / "model.safetensors").write_bytes(
            len(header).to_bytes(8, "little") + header + data[end:])
    (path / "SHA256SUMS").unlink()
    del model, arrays
    tracemalloc.start()
    read = GPT.from_pretrained(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.params.flat.nbytes == size and size <= peak
    # A converted array is there until the next one is.
    assert peak < size + (2.5 if form == "bfloat16" else 0.5) * table


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
                         "transformer.h.1.attn.masked_bias": np.float32([-1e4]),
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


ABSENT = object()


def edited(tmp_path, *, variant=(), tensors=(), **changes):
    """A saved model whose config.json and arrays were edited; a change to ABSENT removes."""
    path = tmp_path / "m"
    random_model(**dict(variant)).save_pretrained(path)
    (path / "SHA256SUMS").unlink()
    values = json.loads((path / "config.json").read_text()) | changes
    values = {name: value for name, value in values.items() if value is not ABSENT}
    (path / "config.json").write_text(json.dumps(values))
    if tensors:
        arrays = load_file(path / "model.safetensors") | tensors
        arrays = {name: array for name, array in arrays.items() if array is not ABSENT}
        save_file(arrays, path / "model.safetensors")
    return path


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "llama"}, "model_type is 'llama'"),
    ({"activation_function": "silu"}, "does not support the activation 'silu'"),
    ({"activation_function": "gelu"}, "the activation 'gelu'"),       # with erf
    ({"layer_norm_epsilon": 0}, r"config\.json: layer_norm_epsilon must be above 0, got 0"),
    ({"layer_norm_epsilon": None}, "layer_norm_epsilon must be a number, got None"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ({"n_inner": 99}, r"mlp\.c_fc\.weight has the shape \(16, 64\), expected \(16, 99\)"),
    ({"n_inner": 0}, r"config\.json: n_inner must be at least 1, got 0"),
    ({"n_inner": "64"}, "n_inner must be a whole number, got '64'"),
    ({"n_layer": 3}, r"h\.2\..* is missing"),
    ({"n_layer": 1}, r"h\.1\..* is unknown"),
    ({"vocab_size": 12}, r"wte.weight has the shape \(11, 16\), expected \(12, 16\)"),
    ({"scale_attn_weights": False}, "does not support scale_attn_weights = False"),
    ({"add_cross_attention": True}, "does not support add_cross_attention = True"),
    ({"pruned_heads": {"0": [1]}}, r"does not support pruned_heads = \{'0': \[1\]\}"),
    ({"activation_function": None}, "the activation None"),
    ({"activation_function": ["relu"]}, r"the activation \['relu'\]"),
    ({"n_embd": "wide"}, "n_embd must be a whole number, got 'wide'"),
    ({"n_head": 0}, r"config\.json: n_head must be at least 1, got 0"),
    ({"n_head": "2"}, "n_head must be a whole number, got '2'"),
    ({"n_head": 2.0}, "n_head must be a whole number, got 2.0"),
    ({"n_head": True}, "n_head must be a whole number, got True"),
    ({"n_head": None}, "n_head must be a whole number, got None"),
    ({"n_head": 3}, "n_embd must be a multiple of n_head, got 16 and 3"),
    ({"n_positions": 0}, r"config\.json: n_positions must be at least 1, got 0"),
    ({"resid_pdrop": 1}, r"config\.json: resid_pdrop must be below 1, got 1"),
    ({"embd_pdrop": 1}, r"config\.json: embd_pdrop must be below 1, got 1"),
    ({"attn_pdrop": -1}, r"config\.json: attn_pdrop must be at least 0, got -1"),
    ({"embd_pdrop": None}, r"config\.json: embd_pdrop must be a number, got None"),
    ({"attn_pdrop": None}, r"config\.json: attn_pdrop must be a number, got None"),
    ({"resid_pdrop": None}, r"config\.json: resid_pdrop must be a number, got None"),
    ({"resid_pdrop": None, "embd_pdrop": None}, "resid_pdrop must be a number, got None"),
    ({"tie_word_embeddings": 0}, "tie_word_embeddings must be true or false, got 0"),
    ({"tie_word_embeddings": None}, "tie_word_embeddings must be true or false, got None"),
    ({"npgpt_attn_bias": 1}, "npgpt_attn_bias must be true or false, got 1"),
    ({"npgpt_head_bias": 1}, "npgpt_head_bias must be true or false, got 1"),
    ({"npgpt_head_bias": True}, r"lm_head\.bias .* is missing"),
    ({"model_type": ABSENT}, "model_type is None, expected gpt2"),
    ({"n_layer": 10**12}, "n_layer must be"),
    ({"tie_word_embeddings": False}, r"lm_head\.weight .* is missing"),
])
def test_unsupported_configuration_is_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        GPT.from_pretrained(edited(tmp_path, **change))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_array_is_written_in_the_dtype_of_the_model(dtype, tmp_path):
    config = random_model(attn_bias=False).config
    GPT(config, dtype=dtype).save_pretrained(tmp_path / "m")
    arrays = load_file(tmp_path / "m" / "model.safetensors")
    assert {array.dtype.name for array in arrays.values()} == {dtype}
    assert not arrays["h.1.attn.c_attn.bias"].any()        # zeros, since GPT-2 has this bias


@pytest.mark.parametrize("tied", [True, False])
def test_configuration_file_says_what_a_gpt2_is(tied, tmp_path):
    model = random_model(dropout=0.25, tie_weights=tied, attn_bias=False)
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 11, "n_positions": 8, "n_layer": 2, "n_head": 2, "n_embd": 16,
        "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.25, "embd_pdrop": 0.25, "attn_pdrop": 0.25,
        "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": None,
        "npgpt_attn_bias": False, "npgpt_head_bias": False,
    }


def test_model_that_gpt2_cannot_express_has_a_model_type_of_its_own(tmp_path):
    random_model(head_bias=True, activation="relu").save_pretrained(tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    assert values["model_type"] == "npgpt" and values["architectures"] == ["GPT"]
    assert values["npgpt_head_bias"] is True and values["activation_function"] == "relu"


def test_absent_keys_have_the_values_of_gpt2(tmp_path):
    GPT(GPTConfig(n_embd=12)).save_pretrained(tmp_path / "m")        # GPT-2, but for its width
    (tmp_path / "m" / "SHA256SUMS").unlink()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "gpt2", "n_embd": 12}')
    assert GPT.from_pretrained(tmp_path / "m").config == GPTConfig(
        vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=12, dropout=0.1,
        activation="gelu", tie_weights=True, attn_bias=True, head_bias=False)
    (tmp_path / "m" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match=r"\(50257, 12\), expected \(50257, 768\)"):
        GPT.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("change", [
    {"n_inner": None}, {"scale_attn_weights": True}, {"pruned_heads": {}},
    {"pruned_heads": None}, {"add_cross_attention": False}, {"n_ctx": 4},
    {"reorder_and_upcast_attn": True}, {"n_inner": ABSENT},
    {"n_head": 2, "num_attention_heads": 2}, {"activation_function": "gelu_pytorch_tanh"},
    {"layer_norm_epsilon": ABSENT}, {"architectures": ["GPT2Model"]}, {"model_type": "npgpt"},
])
def test_value_that_changes_nothing_is_accepted(change, tmp_path):
    model, read = random_model(), GPT.from_pretrained(edited(tmp_path, **change))
    assert read.config == model.config
    np.testing.assert_array_equal(read.params.flat, model.params.flat)


@pytest.mark.parametrize(("resid", "embd", "attn"), [
    (0.3, 0.1, 0.2), (0.3, 0.3, 0.2), (0.0, 0.1, 0.0), (0.1, 0.0, 0.0), (ABSENT, 0.0, ABSENT)])
def test_three_dropouts_are_read_and_written_as_they_are(resid, embd, attn, tmp_path):
    path = edited(tmp_path, resid_pdrop=resid, embd_pdrop=embd, attn_pdrop=attn)
    model = GPT.from_pretrained(path)
    resid, attn = (0.1 if rate is ABSENT else rate for rate in (resid, attn))   # GPT-2's default
    assert model.config == replace(
        random_model().config, dropout=resid, embd_dropout=None if embd == resid else embd,
        attn_dropout=None if attn == resid else attn)
    model.save_pretrained(tmp_path / "again")
    values = json.loads((tmp_path / "again/config.json").read_text())
    assert (values["resid_pdrop"], values["embd_pdrop"], values["attn_pdrop"]) == (
        resid, embd, attn)


OTHER_NAMES = [("n_embd", "hidden_size", 16), ("n_positions", "max_position_embeddings", 8),
               ("n_head", "num_attention_heads", 2), ("n_layer", "num_hidden_layers", 2)]


@pytest.mark.parametrize(("name", "alias", "value"), OTHER_NAMES)
def test_other_names_of_sizes_are_read(name, alias, value, tmp_path):
    path = edited(tmp_path, **{name: ABSENT, alias: value})
    assert GPT.from_pretrained(path).config == random_model().config


@pytest.mark.parametrize(("name", "alias", "value"), OTHER_NAMES)
def test_two_names_of_one_size_that_differ_are_refused(name, alias, value, tmp_path):
    message = f"{name} is {value}, but {alias}, which means the same, is {2 * value}"
    with pytest.raises(UserError, match=message):
        GPT.from_pretrained(edited(tmp_path, **{alias: 2 * value}))


@pytest.mark.parametrize("said", [True, ABSENT])
def test_head_that_differs_from_the_tied_embedding_is_refused(said, tmp_path):
    head = random_model().params["wte.weight"].copy()
    path = edited(tmp_path, tie_word_embeddings=said, tensors={"lm_head.weight": head})
    assert GPT.from_pretrained(path).config.tie_weights
    head[-1, -1] += 1e-3
    save_file(load_file(path / "model.safetensors") | {"lm_head.weight": head},
              path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: lm_head\.weight differs from "
                                        r"wte\.weight, but .*config\.json says that they are one "
                                        r"matrix; .* set tie_word_embeddings to false there$"):
        GPT.from_pretrained(path)


def test_head_of_another_shape_than_the_tied_embedding_is_refused(tmp_path):
    path = edited(tmp_path, tensors={"lm_head.weight": np.zeros((16, 11), np.float32)})
    with pytest.raises(UserError, match=r"lm_head.weight has the shape \(16, 11\)"):
        GPT.from_pretrained(path)


def test_tied_head_and_embedding_may_both_be_nan(tmp_path):
    table = np.full((11, 16), np.nan, np.float32)
    path = edited(tmp_path, tensors={"wte.weight": table, "lm_head.weight": table.copy()})
    assert np.isnan(GPT.from_pretrained(path).params["wte.weight"]).all()


def test_array_that_is_there_under_two_names_is_refused(tmp_path):
    table = random_model().params["wte.weight"]
    path = edited(tmp_path, tensors={"transformer.wte.weight": table})
    with pytest.raises(UserError, match=r"model\.safetensors contains wte\.weight twice"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize(("name", "shape"), [
    ("lm_head.bias", (11,)), ("score.weight", (2, 16)), ("h.0.crossattention.bias", (3,)),
    ("h.0.attn.rotary.bias", (3,)), ("attn.bias", (3,))])
def test_array_that_gpt2_does_not_have_is_refused(name, shape, tmp_path):
    path = edited(tmp_path, tensors={name: np.ones(shape, np.float32)})
    with pytest.raises(UserError, match=f"{name} is unknown"):
        GPT.from_pretrained(path)


CALL = "AutoModelForCausalLM.from_pretrained({!r}{}).save_pretrained('NEW')"


@pytest.mark.parametrize(("names", "shown", "options"), [
    (["model.fp16.safetensors"], r"model\.fp16\.safetensors \(a variant\)", ", variant='fp16'"),
    (["model.non-ema-00001-of-00003.safetensors"], r"\(a variant\)", ", variant='non-ema'"),
    (["model-00001-of-00003.fp16.safetensors"], r"\(a shard of a variant\)", ", variant='fp16'"),
    (["flax_model.msgpack", "pytorch_model.bin", "tf_model.h5"],
     r"pytorch_model\.bin \(PyTorch's pickle format\)", ""),
    (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
     r"pytorch_model-00001-of-00002\.bin \(PyTorch's pickle format\)", ""),
    (["pytorch_model.fp16.bin"], r"\(a variant in PyTorch's pickle format\)", ", variant='fp16'"),
    (["tf_model.h5"], r"tf_model\.h5 \(TensorFlow's format", ", from_tf=True"),
    (["flax_model.msgpack"], r"flax_model\.msgpack \(Flax's format", ", from_flax=True"),
])
def test_weights_in_another_format_are_named_with_the_call_that_converts_them(
        names, shown, options, tmp_path):
    path = edited(tmp_path)
    for name in names:
        (path / name).touch()
    GPT.from_pretrained(path)                              # npgpt's file goes before all others
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"m has no model.safetensors, but .*{shown}") as error:
        GPT.from_pretrained(path)
    assert str(error.value).endswith(CALL.format(str(path), options))
    (path / "config.json").unlink()                        # as beside a .gguf
    with pytest.raises(UserError, match="convert it with transformers"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.gguf", "model-1-of-2.safetensors"])
def test_directory_is_not_taken_for_weights(name, tmp_path):
    path = edited(tmp_path)
    (path / "model.safetensors").unlink()
    (path / name).mkdir()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        GPT.from_pretrained(path)


def test_gguf_file_beside_is_named(tmp_path):
    path = edited(tmp_path)
    (path / "m-Q8_0.gguf").touch()
    GPT.from_pretrained(path)                              # npgpt's file goes before all others
    (path / "model.safetensors").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"m has no model\.safetensors, but m-Q8_0\.gguf; give "
                                            "the path of that file$"):
            GPT.from_pretrained(path)
        (path / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["optimizer.bin", "model.txt", "xpytorch_model.bin", "model.h5"])
def test_files_that_are_not_weights_are_not_taken_for_them(name, tmp_path):
    path = edited(tmp_path)
    (path / "model.safetensors").rename(path / name)
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        GPT.from_pretrained(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_directory_in_the_place_of_a_file_is_named(name, tmp_path):
    path = edited(tmp_path)
    (path / name).unlink()
    (path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a directory$"):
        GPT.from_pretrained(path)


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
    random_model().save_pretrained(edited(tmp_path))
    (tmp_path / "run" / "checkpoint-10").rename(tmp_path / "m" / "checkpoint-10")
    assert GPT.from_pretrained(tmp_path / "m").config == random_model().config


@pytest.mark.parametrize(("tokenizer", "bos", "end"), [
    (None, None, None), (SimpleNamespace(bos=None, end=None, ends=()), None, None),
    (SimpleNamespace(bos=None, end=5, ends=(5,)), None, 5),
    (SimpleNamespace(bos=3, end=5, ends=(4, 5)), 3, [5, 4])])
def test_tokens_between_which_a_text_is_are_in_the_configuration(tokenizer, bos, end, tmp_path):
    model = GPT(GPTConfig(11, block_size=4, n_layer=1, n_head=1, n_embd=4))
    write_model(model, tmp_path, tokenizer)
    found = json.loads((tmp_path / "config.json").read_text())
    assert (found["bos_token_id"], found["eos_token_id"]) == (bos, end)
