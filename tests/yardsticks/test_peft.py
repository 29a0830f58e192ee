"""LoRA in files that Hugging Face's peft and npgpt give each other: both compute the same, forward
and backward."""

import json

import numpy as np
import pytest

import npgpt
from npgpt import GPT, GPTConfig, Llama, LlamaConfig
from npgpt.checkpoints import adapter
from npgpt.checkpoints.models import write_model
from npgpt.durable import atomic_directory

# peft asks a model of transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is dep:FutureWarning")

IDX = np.array([[1, 5, 0, 10, 3, 3, 7, 2], [4, 4, 4, 0, 1, 2, 3, 9]])
TARGETS = np.roll(IDX, 1)
SIZES = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
CONFIGS = {"gpt": GPTConfig(**SIZES), "llama": LlamaConfig(**SIZES, n_kv_head=1, n_inner=12),
           "qwen3": LlamaConfig(**SIZES, n_kv_head=1, n_inner=12, qk_norm=True)}


@pytest.fixture(params=CONFIGS)
def adapted(request, tmp_path):
    """A model in "base", and the same with random adapters, which are in "a" -> the latter."""
    config = CONFIGS[request.param]
    family = GPT if request.param == "gpt" else Llama
    model = family(config, lora_rank=3)
    draw = np.random.default_rng(3).standard_normal
    model.params.flat[...] = draw(model.params.flat.size) * 0.3
    base = tmp_path / "base"
    family(config, values=[(n, model.params[n]) for n in config.shapes()]).save_pretrained(base)
    with atomic_directory(tmp_path / "a", adapter.FILES) as folder:
        write_model(model, folder, base=(str(base), adapter.digest(base)))
    return model


def same(ours, theirs):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_peft_opens_what_npgpt_writes_and_computes_the_same(adapted, tmp_path, peft, torch):
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    same(adapted.logits(IDX), theirs(torch.tensor(IDX)).logits)
    same(npgpt.from_pretrained(tmp_path / "a").logits(IDX), theirs(torch.tensor(IDX)).logits)
    theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
    same(adapted.logits(IDX), torch.tensor(npgpt.from_pretrained(tmp_path / "merged").logits(IDX)))


def test_gradients_of_adapters_are_those_of_peft(adapted, tmp_path, peft, torch):
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a", is_trainable=True).eval()
    loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(IDX)).logits.flatten(0, 1),
                                             torch.tensor(TARGETS).flatten())
    loss.backward()
    ours, grads = adapted.loss_and_grads(IDX, TARGETS)
    assert float(ours) == pytest.approx(loss.item(), abs=1e-5)
    prefix = "base_model.model.transformer." if isinstance(adapted, GPT) else "base_model.model."
    found = {name.removeprefix(prefix).removeprefix("model.").replace(".default.weight", ""):
             parameter.grad.numpy().T
             for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert found.keys() == set(grads)
    for name, grad in found.items():
        np.testing.assert_allclose(grads[name], grad, rtol=1e-4,
                                   atol=1e-4 * np.abs(grad).max(), err_msg=name)


def test_first_adapters_have_the_variance_of_peft(peft, torch, tmp_path, transformers):
    """A is uniform there, and B is 0."""
    config = LlamaConfig(**SIZES | {"n_embd": 64, "n_inner": 96})
    Llama(config).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=16, target_modules="all-linear"))
    ours, name = Llama(config, lora_rank=16).params, "layers.0.mlp.down_proj"
    there = dict(theirs.named_parameters())
    a = there[f"base_model.model.model.{name}.lora_A.default.weight"].detach().numpy()
    assert ours[f"{name}.lora_A"].std() == pytest.approx(a.std(), rel=0.1)
    assert not ours[f"{name}.lora_B"].any()
    assert not there[f"base_model.model.model.{name}.lora_B.default.weight"].any()


@pytest.mark.parametrize("options", [
    {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 12},
    {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 12, "use_rslora": True},
    {"target_modules": "all-linear", "lora_alpha": 3},
    {"target_modules": ["down_proj"], "layers_to_transform": [1]},
    {"target_modules": ["k_proj"], "init_lora_weights": "orthogonal"},
])
def test_what_peft_writes_is_read(options, tmp_path, peft, torch, transformers):
    _compare(CONFIGS["llama"], Llama, {"r": 4} | options, tmp_path, peft, torch, transformers)


@pytest.mark.parametrize("options", [
    {"target_modules": ["c_attn"], "lora_alpha": 12}, {"target_modules": ["c_proj", "c_fc"]},
])
def test_what_peft_writes_of_gpt2_is_read(options, tmp_path, peft, torch, transformers):
    _compare(CONFIGS["gpt"], GPT, {"r": 4, "fan_in_fan_out": True} | options, tmp_path, peft, torch,
             transformers)


def _compare(config, family, options, tmp_path, peft, torch, transformers):
    model = family(config)
    draw = np.random.default_rng(3).standard_normal
    model.params.flat[...] = draw(model.params.flat.size) * 0.3
    model.save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    theirs = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "a")
    logits = theirs(torch.tensor(IDX)).logits
    found = npgpt.from_pretrained(tmp_path / "a")
    same(found.logits(IDX), logits)
    assert np.abs(model.logits(IDX) - found.logits(IDX)).max() > 0.1


def test_keys_that_npgpt_refuses_are_those_of_peft(peft):
    """With their defaults, which change nothing. An older peft lacks some."""
    theirs = json.loads(json.dumps(peft.LoraConfig().to_dict(), default=str))
    assert len(theirs.keys() & adapter.FIXED) > 8
    for name in theirs.keys() & adapter.FIXED:
        assert theirs[name] in adapter.FIXED[name], name
