"""What is trained: the table of a model with adapters or frozen embeddings, and their merging."""

import math

import numpy as np
import pytest

from npgpt import GPT, GPTConfig, Llama, LlamaConfig, UserError
from npgpt.models.parameters import Param
from npgpt.models.trained import adapters, merged, trained
from tests.models.adapted import RANK, adapted, base_of, matrices
from tests.models.families import VARIANTS, config_of

ALL = [*VARIANTS, pytest.param("transformer", {}, id="transformer")]


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_matrix_of_the_blocks_has_adapters_and_only_they_are_trainable(name, variant):
    _, config = base_of(name, **variant)
    table = trained(config, RANK)
    assert {param.trainable for param in table.values()} == {True, False}
    expected = {}
    for module, _, _, (n_in, n_out) in matrices(name, config):
        expected |= {f"{module}.lora_A": (n_in, RANK), f"{module}.lora_B": (RANK, n_out)}
    found = {name: param for name, param in table.items() if param.trainable}
    assert {name: param.shape for name, param in found.items()} == expected
    assert {param.group for param in found.values()} == {"matrix"}
    others = {name: param for name, param in table.items() if not param.trainable}
    assert {name: param.shape for name, param in others.items()} == config.shapes()
    assert list(others) == list(config.architecture())


@pytest.mark.parametrize(("name", "variant"), ALL)
@pytest.mark.parametrize("freeze", ["nothing", "embeddings"])
def test_without_adapters_all_are_trainable_but_frozen_embeddings(name, variant, freeze):
    _, config = base_of(name, **variant)
    table = trained(config, freeze=freeze)
    assert table.keys() == config.architecture().keys()
    frozen = {name for name, param in table.items() if not param.trainable}
    assert frozen == {name for name in table if name.endswith(
        ("wte.weight", "wpe.weight", "embed_tokens.weight", "lm_head.weight"))
        and freeze == "embeddings"}
    assert trained(config) == config.architecture()


def test_adapters_freeze_the_embeddings_as_well():
    with pytest.raises(UserError, match="freeze has no effect with lora_rank, which freezes all "
                                        "but the adapters, got embeddings; leave it out"):
        trained(config_of("gpt"), lora_rank=2, freeze="embeddings")


def test_A_is_random_and_B_is_zero():
    config = GPTConfig(vocab_size=3, block_size=2, n_layer=1, n_head=1, n_embd=256)
    p = GPT(config, lora_rank=64).params
    for module, _, _, (n_in, n_out) in matrices("gpt", config):
        A, B = p[f"{module}.lora_A"], p[f"{module}.lora_B"]
        assert A.shape == (n_in, 64) and B.shape == (64, n_out) and not B.any()
        assert A.std() == pytest.approx(1 / math.sqrt(3 * n_in), rel=0.03)
        assert abs(A.mean()) < 0.1 * A.std()


def test_adapters_depend_on_the_seed_even_if_the_other_values_are_given():
    config = config_of("llama")
    values = dict(Llama(config).params)
    first, same, other = (Llama(config, lora_rank=2, values=values.items(), seed=seed).params
                          for seed in (1, 1, 2))
    A = "layers.0.self_attn.v_proj.lora_A"
    assert np.array_equal(first[A], same[A]) and not np.array_equal(first[A], other[A])
    assert first[A].any() and not np.array_equal(first[A], first[A.replace("v_proj", "k_proj")])
    assert all(np.array_equal(first[name], value) for name, value in values.items())


def test_adapters_may_be_given_and_the_others_must_be():
    config = config_of("gpt")
    values = dict(GPT(config).params)
    given = {"h.1.mlp.c_fc.lora_B": np.ones((2, 64))}
    p = GPT(config, lora_rank=2, values=(values | given).items()).params
    assert (p["h.1.mlp.c_fc.lora_B"] == 1).all() and not p["h.0.mlp.c_fc.lora_B"].any()
    with pytest.raises(UserError, match=r"has no parameter h.1.mlp.c_fc.lora_B \(2, 64\)"):
        GPT(config, values=(values | given).items())
    with pytest.raises(UserError, match=r"has no parameter h.1.mlp.c_fc.lora_B \(2, 64\)"):
        GPT(config, lora_rank=3, values=(values | given).items())
    del values["ln_f.bias"]
    with pytest.raises(UserError, match=r"values for ln_f\.bias are missing"):
        GPT(config, lora_rank=2, values=values.items())


@pytest.mark.parametrize("make", [trained, lambda config, rank: GPT(config, lora_rank=rank)])
def test_rank_is_at_most_the_smaller_side_of_every_matrix(make):
    config = config_of("gpt", n_inner=5)
    make(config, 5)
    with pytest.raises(UserError) as error:
        make(config, 6)
    assert str(error.value) == ("lora_rank must be at most 5, the smaller side of h.0.mlp.c_fc, "
                                "got 6")
    llama = LlamaConfig(7, 5, 1, 4, 1, 16)
    trained(llama, 4)
    with pytest.raises(UserError, match=r"at most 4, the smaller side of layers\.0\..*\.k_proj"):
        trained(llama, 5)


@pytest.mark.parametrize("make", [trained, lambda config, rank: GPT(config, lora_rank=rank)])
def test_negative_rank_is_refused(make):
    with pytest.raises(UserError) as error:
        make(config_of("gpt"), -1)
    assert str(error.value) == "lora_rank must be at least 0, got -1"


@pytest.mark.parametrize("wrong", ["everything", "", None, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_unknown_freeze_is_refused(wrong, rank):
    with pytest.raises(UserError) as error:
        GPT(config_of("gpt"), freeze=wrong, lora_rank=rank)
    assert str(error.value) == f"freeze must be one of nothing, embeddings, got {wrong!r}"


def test_rank_of_zero_means_no_adapters():
    config = config_of("llama")
    assert adapters(config, 0) == {} and trained(config, 0) == config.architecture()
    model = Llama(config, lora_rank=0)
    assert list(model.params) == list(Llama(config).params)
    assert model.params.n_trainable == model.params.flat.size
    assert model.merged() is model


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_merged_weights_are_the_weights_and_the_products(name, variant):
    model = adapted(name, variant)
    before = model.params.flat.copy()
    whole = model.merged()
    assert whole.lora_rank == 0 and set(whole.params) == set(model.config.shapes())
    assert type(whole) is type(model) and whole.config == model.config
    expected = {name: model.params[name].copy() for name in whole.params}
    for module, weight, columns, _ in matrices(name, model.config):
        expected[weight][:, columns] += (model.params[f"{module}.lora_A"]
                                         @ model.params[f"{module}.lora_B"])
    for name, value in expected.items():
        np.testing.assert_allclose(whole.params[name], value, rtol=0, atol=1e-15)
    assert np.array_equal(model.params.flat, before)


@pytest.mark.parametrize(("dtype", "found"), [("float16", "float32"), ("float64", "float64")])
def test_adapters_of_some_matrices_change_their_columns_alone(dtype, found):
    """As peft trains them: of q and v."""
    config = LlamaConfig(7, 5, 1, 4, 2, 8, n_inner=6)
    values = {name: np.ones(shape, dtype) for name, shape in config.shapes().items()}
    rows = np.arange(8.0, dtype="float32")[:, None]
    changes = {f"layers.0.self_attn.{module}.lora_{which}": value
               for module, width in (("q_proj", 8), ("v_proj", 4))
               for which, value in (("A", rows), ("B", np.full((1, width), 2, "float32")))}
    whole = dict(merged(config, values.items(), changes))
    assert list(whole) == list(values)
    qkv = "layers.0.self_attn.qkv_proj.weight"
    expected = np.ones((8, 16))
    expected[:, :8] += 2 * rows
    expected[:, 12:] += 2 * rows
    assert whole[qkv].dtype == found and np.array_equal(whole[qkv], expected)
    assert (values[qkv] == 1).all()
    assert all(whole[name] is value for name, value in values.items() if name != qkv)


def test_precision_of_a_merged_model_is_that_of_the_parameters():
    for dtype in ("float32", "float64"):
        model = adapted("gpt", dtype=dtype).merged()
        assert model.dtype == dtype and model.params.flat.dtype == dtype


def test_parts_of_a_matrix_have_adapters_of_their_own_only_with_names():
    """GPT-2's c_attn is one module, as in Hugging Face's models."""
    table = adapters(config_of("gpt"), 2)
    assert table["h.0.attn.c_attn.lora_A"] == Param((16, 2), "matrix", 1 / math.sqrt(48))
    assert table["h.0.attn.c_attn.lora_B"] == Param((2, 48), "matrix")
