"""Llama and Qwen3 in files that transformers and npgpt give each other: both compute the same.

transformers computes RMSNorm and the rotation's angles in float32 even in a float64 model. So the
tests compare twice: with it as it is, and with these two computed in float64.
"""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npgpt
from npgpt import Llama, LlamaConfig, UserError
from tests.cases import SEEDS, llama_configs


def families(transformers):
    return {"llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
            "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)}


@contextmanager
def in_float64(torch, transformers):
    """RMSNorm and the angles of transformers' Llama and Qwen3 in the model's own dtype."""
    from transformers.models.llama import modeling_llama
    from transformers.models.qwen3 import modeling_qwen3

    def norm(self, x):
        return self.weight * (x * (x.pow(2).mean(-1, keepdim=True)
                                   + self.variance_epsilon) ** -0.5)

    def angles(self, x, position_ids):
        theta, D = self.config.rope_parameters["rope_theta"], self.config.head_dim
        frequency = theta ** -(torch.arange(0, D, 2, dtype=x.dtype) / D)
        angle = position_ids[..., None].to(x.dtype) * frequency
        angle = torch.cat((angle, angle), -1)
        return angle.cos(), angle.sin()

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((modeling_llama, "Llama"), (modeling_qwen3, "Qwen3")):
            patch.setattr(getattr(module, f"{name}RMSNorm"), "forward", norm)
            patch.setattr(getattr(module, f"{name}RotaryEmbedding"), "forward", angles)
        yield


def random_llama(config, seed, dtype="float64"):
    """A model with no parameter at its initial value."""
    model = Llama(config, dtype=dtype)
    draw = np.random.default_rng(seed).standard_normal
    model.params.flat[...] = draw(model.params.flat.size) * 0.4
    return model


def apart(ours, theirs):
    """The distance of two arrays, divided by the norm of theirs."""
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def tokens(config, seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 4), config.block_size
    return rng.integers(config.vocab_size, size=shape), rng.integers(config.vocab_size, size=shape)


@settings(max_examples=30)
@given(config=llama_configs(), seed=SEEDS)
def test_transformers_opens_what_npgpt_saves_and_computes_the_same(config, seed, tmp_path_factory,
                                                                   torch, transformers):
    path = tmp_path_factory.mktemp("llama") / "m"
    model = random_llama(config, seed)
    model.save_pretrained(path)
    auto = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(path, dtype=torch.float64).eval()
    assert theirs.config.model_type == ("qwen3" if config.qk_norm else "llama")
    idx, targets = tokens(config, seed)
    assert apart(model.logits(idx), theirs(torch.tensor(idx)).logits) < 1e-5
    with in_float64(torch, transformers):
        logits = theirs(torch.tensor(idx)).logits
        assert apart(model.logits(idx), logits) < 1e-10
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1),
                                                 torch.tensor(targets).flatten())
        loss.backward()
    ours, grads = model.loss_and_grads(idx, targets)
    assert abs(ours - loss.item()) < 1e-10
    # Gradients as a model, so that the file's names and layouts are those of transformers.
    Llama(config, dtype="float64", values=((n, grads[n]) for n in grads)).save_pretrained(
        path.parent / "gradients")
    named = dict(auto.from_pretrained(path.parent / "gradients",
                                      dtype=torch.float64).named_parameters())
    for name, parameter in theirs.named_parameters():
        difference = (named[name] - parameter.grad).norm() / max(parameter.grad.norm(), 1e-3)
        assert difference < 1e-10, name
    single = Llama.from_pretrained(path)
    float32 = auto.from_pretrained(path, dtype=torch.float32).eval()
    assert apart(single.logits(idx), float32(torch.tensor(idx)).logits) < 1e-4


@pytest.fixture
def write(tmp_path, torch, transformers):
    """Write a random model with transformers -> function: family, options -> model, directory."""
    def write(family, dtype="float32", shard="1GB", **options):
        torch.manual_seed(0)
        config_type, model_type = families(transformers)[family]
        sizes = {"vocab_size": 13, "hidden_size": 24, "intermediate_size": 20, "head_dim": 6,
                 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "max_position_embeddings": 9}
        model = model_type(config_type(**sizes | options)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model = model.to(getattr(torch, dtype))
        model.save_pretrained(tmp_path / family, max_shard_size=shard)
        return model.float(), tmp_path / family
    return write


IDX = np.array([[1, 5, 0, 12, 3, 3, 7, 2, 9], [4, 4, 4, 0, 1, 2, 3, 12, 11]])


def same(ours, theirs, torch):
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs(torch.tensor(IDX)).logits.numpy(),
                                   rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("options", [
    {}, {"tie_word_embeddings": True}, {"shard": "2KB"}, {"dtype": "float16"},
    {"dtype": "bfloat16", "tie_word_embeddings": True}, {"attention_bias": True},
    {"num_key_value_heads": 4}, {"head_dim": 10}, {"rms_norm_eps": 0.1},
    {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    {"attention_dropout": 0.3},
])
def test_directories_of_transformers_open(family, options, write, torch):
    theirs, path = write(family, **options)
    model = npgpt.from_pretrained(path)
    assert type(model) is Llama
    same(model.logits(IDX), theirs, torch)


def test_biases_of_the_mlp_are_read(write, torch):
    theirs, path = write("llama", mlp_bias=True)
    same(npgpt.from_pretrained(path).logits(IDX), theirs, torch)


def change(path, **values):
    file = path / "config.json"
    found = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: v for name, v in found.items() if v != "absent"}))


@pytest.mark.parametrize("old", [
    {"rope_parameters": "absent", "rope_theta": 50.0},
    {"rope_parameters": "absent", "rope_theta": 50.0, "rope_scaling": None},
    {"rope_parameters": "absent", "rope_theta": 50.0, "rope_scaling": {"type": "default"}},
    {"rope_parameters": "absent", "rope_theta": "absent"},
    {"rope_parameters": None, "rope_theta": 50.0},
    {"rope_parameters": {"rope_theta": 50.0}, "rope_theta": "absent"},
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 50.0},
])
def test_both_spellings_of_the_rotation_mean_what_transformers_computes(old, write, torch,
                                                                        transformers):
    _, path = write("llama", rope_parameters={"rope_type": "default", "rope_theta": 70.0})
    change(path, **old)
    theirs = transformers.LlamaForCausalLM.from_pretrained(path).eval()
    same(Llama.from_pretrained(path).logits(IDX), theirs, torch)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_absent_keys_have_the_defaults_of_transformers(family, tmp_path, transformers):
    """By the shape that npgpt expects of an array of the size that transformers computes."""
    from npgpt.checkpoints.llama import KEYS

    theirs = families(transformers)[family][0]().to_dict()
    for key, (_, *defaults) in KEYS.items():
        default = defaults[family == "qwen3"]
        if key in theirs and default is not None:
            assert theirs[key] == default, key
    assert theirs["rope_parameters"]["rope_theta"] == 10000


@pytest.mark.parametrize("part", ["llama", "qwen3"])
def test_model_without_a_head_is_read_as_tied(part, write, torch, transformers):
    theirs, path = write(part, tie_word_embeddings=True)
    theirs.model.save_pretrained(path)                       # LlamaModel: names without a prefix
    change(path, tie_word_embeddings=True)
    same(npgpt.from_pretrained(path).logits(IDX), theirs, torch)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_greedy_text_beyond_the_context_is_that_of_the_whole_context(family, write, torch):
    """With the cache, and after the context has begun to slide."""
    theirs, path = write(family)
    model = npgpt.from_pretrained(path)
    idx = IDX[:, :2]
    found = model.generate(idx, 12, temperature=0)
    for _ in range(12):
        with torch.no_grad():
            logits = theirs(torch.tensor(idx[:, -9:])).logits[:, -1]
        idx = np.concatenate([idx, logits.argmax(-1, keepdim=True).numpy()], axis=1)
    np.testing.assert_array_equal(found, idx[:, 2:])


@pytest.mark.parametrize(("family", "options", "message"), [
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
     "use_sliding_window = True"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
])
def test_what_npgpt_does_not_compute_is_refused_by_name(family, options, message, write):
    _, path = write(family, **options)
    with pytest.raises(UserError, match=message):
        npgpt.from_pretrained(path)


def test_transformers_reads_the_default_configuration(tmp_path, transformers):
    Llama(LlamaConfig(n_layer=1, vocab_size=50)).save_pretrained(tmp_path / "m")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    assert (theirs.hidden_size, theirs.num_key_value_heads, theirs.head_dim) == (576, 9, 64)
    assert theirs.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}


@given(data=st.data())
@settings(max_examples=20)
def test_saved_model_is_read_unchanged(data, tmp_path_factory):
    model = random_llama(data.draw(llama_configs()), 1, "float32")
    path = tmp_path_factory.mktemp("llama") / "m"
    model.save_pretrained(path)
    read = npgpt.from_pretrained(path)
    assert read.config.architecture() == model.config.architecture()
    np.testing.assert_array_equal(read.params.flat, model.params.flat)
