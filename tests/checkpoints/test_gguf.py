"""A Llama from a GGUF file. tests/yardsticks compares a real one with transformers."""

import tracemalloc

import gguf
import numpy as np
import pytest

from npgpt import GPT, UserError, reading
from npgpt.checkpoints.gguf import read
from npgpt.models.llama import Llama
from tests.gguf_files import KINDS, metadata_of, random_llama, tensors_of, write_gguf

VARIANTS = [{}, {"tie_weights": False}, {"n_kv_head": None}, {"n_kv_head": 1}, {"head_dim": 4},
            {"attention_bias": True}, {"mlp_bias": True, "tie_weights": False},
            {"n_head": 3, "n_kv_head": 3, "n_embd": 42, "n_inner": 33, "norm_eps": 3e-6}]
IDX = np.arange(10)[None]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.gguf"


def write(path, model, **changes):
    """Write a model. changes: name of metadata without "llama." -> value; None: it is left out."""
    changes = {f"llama.{name.replace('__', '.')}": value for name, value in changes.items()}
    found = metadata_of(model.config) | changes
    write_gguf(path, {name: value for name, value in found.items() if value is not None},
               tensors_of(model))


def refusal(path):
    """-> the message with which the file is refused, without its name."""
    with pytest.raises(UserError) as error:
        read(path)
    start, message = str(error.value).split(": ", 1)
    assert start == str(path) and "\n" not in message
    return message


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_is_that_which_was_written(variant, path):
    model = random_llama(**variant)
    write(path, model)
    config, values = read(path)
    assert config.shapes() == model.config.shapes()
    assert (config.n_kv_head, config.head_dim) == (model.config.n_kv_head, model.config.head_dim)
    for field in ("block_size", "rope_theta", "norm_eps", "tie_weights", "attention_bias"):
        assert getattr(config, field) == getattr(model.config, field)
    found = Llama(config, values=values)
    np.testing.assert_array_equal(found.params.flat, model.params.flat)
    np.testing.assert_array_equal(found.logits(IDX), model.logits(IDX))


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantisation_is_read(kind, path):
    model = random_llama(n_embd=96, n_head=6, n_kv_head=2, n_inner=160, tie_weights=False)
    tensors = tensors_of(model)
    write_gguf(path, metadata_of(model.config), tensors, kind)
    config, values = read(path)
    found = Llama(config, values=values)
    assert found.params["layers.0.mlp.down_proj.weight"].dtype == np.float32
    of = gguf.GGMLQuantizationType[kind]
    rounded = {name: gguf.quants.dequantize(gguf.quants.quantize(array, of), of)
               if array.ndim > 1 else array for name, array in
               ((name, np.ascontiguousarray(array)) for name, array in tensors.items())}
    read_again = tensors_of(found)
    assert read_again.keys() == rounded.keys()
    for name, array in rounded.items():
        np.testing.assert_array_equal(read_again[name], array)


def test_values_that_may_be_absent_have_llama_cpps_defaults(path):
    model = random_llama(n_kv_head=None, rope_theta=10_000.0)
    write(path, model, attention__head_count_kv=None, attention__key_length=None,
          attention__value_length=None, rope__freq_base=None, rope__dimension_count=None)
    config, values = read(path)
    assert (config.n_kv_head, config.head_dim, config.rope_theta) == (6, 6, 10_000.0)
    np.testing.assert_array_equal(Llama(config, values=values).logits(IDX), model.logits(IDX))


@pytest.mark.parametrize("base", [500.1, 3.4028235e38])
def test_number_is_the_shortest_that_is_stored_as_it_is(base, path):
    write(path, random_llama(), rope__freq_base=base)
    assert read(path)[0].rope_theta == base


def test_arrays_are_read_when_it_is_their_turn(path):
    model = random_llama(vocab_size=1000, n_layer=20, n_embd=96, n_inner=400)
    write(path, model)
    size = model.params.flat.nbytes
    tracemalloc.start()
    config, values = read(path)
    found = Llama(config, values=values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.params.flat.nbytes == size > 10**7
    assert peak < 1.25 * size


def test_model_that_does_not_fit_into_memory_is_refused(path, monkeypatch):
    model = random_llama(n_embd=96, n_head=6, n_inner=160)
    write_gguf(path, metadata_of(model.config), tensors_of(model), "Q4_0")
    monkeypatch.setattr(reading, "LARGEST", 0)
    monkeypatch.setattr(reading, "free_memory", lambda: model.params.flat.nbytes)
    read(path)
    monkeypatch.setattr(reading, "free_memory", lambda: model.params.flat.nbytes - 1)
    with pytest.raises(UserError, match=r"m\.gguf as float32 has .* bytes of memory are free"):
        read(path)


@pytest.mark.parametrize("name", ["context_length", "block_count", "embedding_length",
                                  "feed_forward_length", "attention__head_count",
                                  "attention__layer_norm_rms_epsilon"])
def test_missing_value_is_named(name, path):
    write(path, random_llama(), **{name: None})
    assert refusal(path) == f"llama.{name.replace('__', '.')} is missing"


@pytest.mark.parametrize(("name", "value", "message"), [
    ("rope__scaling__type", "yarn", "npgpt does not support llama.rope.scaling.type = 'yarn'"),
    ("rope__scaling__factor", 4.0, "npgpt does not support llama.rope.scaling.factor = 4.0"),
    ("rope__scale_linear", 2.0, "npgpt does not support llama.rope.scale_linear = 2.0"),
    ("expert_count", 8, "npgpt does not support llama.expert_count = 8"),
    ("attention__sliding_window", 64, "npgpt does not support llama.attention.sliding_window = 64"),
    ("rope__dimension_count", 4,
     "llama.rope.dimension_count must be 6, all channels of a head, got 4"),
    ("attention__value_length", 8,
     "llama.attention.value_length must be 6, as long as the keys, got 8"),
    ("vocab_size", 41, "llama.vocab_size must be 40, the rows of token_embd.weight, got 41"),
    ("attention__head_count", [6, 6], "llama.attention.head_count must be a number, got [6, 6]"),
    ("attention__head_count", [6] * 99, f"llama.attention.head_count must be a number, got "
                                        f"{str([6] * 99)[:60]}..."),
    ("attention__head_count", 0, "llama.attention.head_count must be at least 1, got 0"),
    ("attention__head_count_kv", 5,
     "llama.attention.head_count must be a multiple of llama.attention.head_count_kv, got 6 and 5"),
    ("block_count", 10**9, "llama.block_count must be at most 1000, got 1000000000"),
    ("block_count", 2.0, "llama.block_count must be a whole number, got 2.0"),
    ("attention__layer_norm_rms_epsilon", float("nan"),
     "llama.attention.layer_norm_rms_epsilon must be a finite number, got nan"),
    ("rope__freq_base", True, "llama.rope.freq_base must be a number, got True"),
])
def test_value_that_is_not_supported_is_refused_by_name(name, value, message, path):
    write(path, random_llama(), **{name: value})
    assert refusal(path) == message


@pytest.mark.parametrize(("name", "value"), [
    ("rope__scaling__type", "none"), ("expert_count", 0), ("attention__causal", True),
    ("rope__scaling__factor", 1.0), ("vocab_size", 40)])
def test_values_that_change_nothing_are_accepted(name, value, path):
    model = random_llama()
    write(path, model, **{name: value})
    config, values = read(path)
    np.testing.assert_array_equal(Llama(config, values=values).params.flat, model.params.flat)


def test_other_architecture_is_refused_by_name(path):
    write_gguf(path, {}, {}, architecture="qwen3")
    assert refusal(path) == "the architecture is 'qwen3'; npgpt reads llama"


def test_part_of_a_model_and_an_adapter_are_refused(path):
    model = random_llama()
    for name, value in (("split.count", 3), ("general.type", "adapter")):
        write_gguf(path, metadata_of(model.config) | {name: value}, tensors_of(model))
        assert refusal(path) == f"npgpt does not support {name} = {value!r}"


@pytest.mark.parametrize(("change", "message"), [
    ({"blk.1.attn_k.weight": None}, "blk.1.attn_k.weight (12, 36) is missing"),
    ({"token_embd.weight": None}, "token_embd.weight is missing"),
    ({"output_norm.weight": None}, "output_norm.weight (36,) is missing"),
    ({"blk.0.attn_q.bias": np.ones(36)}, "blk.0.attn_k.bias (12,) is missing"),
    ({"blk.0.ffn_up.bias": np.ones(20)}, "blk.0.ffn_gate.bias (20,) is missing"),
    ({"blk.1.attn_q.bias": np.ones(36)}, "blk.1.attn_q.bias is unknown"),
    ({"rope_freqs.weight": np.ones(3)}, "rope_freqs.weight is unknown"),
    ({"blk.2.attn_norm.weight": np.ones(36)}, "blk.2.attn_norm.weight is unknown"),
    ({"blk.0.attn_v.weight": np.ones((36, 12))},
     "blk.0.attn_v.weight has the shape (36, 12), expected (12, 36)"),
    ({"blk.0.ffn_down.weight": np.ones((20, 36))},
     "blk.0.ffn_down.weight has the shape (20, 36), expected (36, 20)"),
    ({"output.weight": np.ones((41, 36))},
     "output.weight has the shape (41, 36), expected (40, 36)"),
    ({"blk.1.ffn_norm.weight": np.ones((1, 36))},
     "blk.1.ffn_norm.weight has the shape (1, 36), expected (36,)"),
])
def test_missing_unknown_and_misshapen_tensors_are_named(change, message, path):
    model = random_llama()
    tensors = {name: array for name, array in (tensors_of(model) | change).items()
               if array is not None}
    write_gguf(path, metadata_of(model.config), tensors)
    assert refusal(path) == message


def test_file_opens_wherever_a_model_is_read(path):
    from npgpt.models.language_model import LanguageModel
    from npgpt.models.model import Model

    class MyLlama(Llama):
        pass

    model = random_llama()
    write(path, model)
    for family, expected in ((Model, Llama), (LanguageModel, Llama), (Llama, Llama),
                             (MyLlama, MyLlama)):
        read = family.from_pretrained(path)
        assert type(read) is expected
        np.testing.assert_array_equal(read.params.flat, model.params.flat)
    with pytest.raises(UserError, match=r"m\.gguf holds a Llama, not a GPT; npgpt\."):
        GPT.from_pretrained(path)
    with pytest.raises(UserError, match=r"the model directory .*nowhere.gguf does not exist"):
        Llama.from_pretrained(path.parent / "nowhere.gguf")
