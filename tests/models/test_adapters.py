"""A model with adapters, or with frozen embeddings: its function, its gradients, its training."""

from types import SimpleNamespace

import numpy as np
import pytest

from npgpt import layers
from npgpt.layers import Key
from npgpt.models.generate import KVCache
from npgpt.models.transformer import teacher_forced
from npgpt.training.config import TrainingConfig
from npgpt.training.setup import build_optimizer
from npgpt.training.step import train_step
from tests.models.adapted import RANK, adapted, base_of, matrices
from tests.models.families import FAMILIES, VARIANTS

ALL = [*VARIANTS, pytest.param("transformer", {}, id="transformer")]
EACH = pytest.mark.parametrize("name", [*FAMILIES, "transformer"])
IDS = np.random.default_rng(0).integers(3, 11, (2, 8))
DROPOUT = {"dropout": 0.3}


def batch(name, ids=IDS):
    return (ids, *teacher_forced(ids)) if name == "transformer" else (ids, np.roll(ids, -1, 1))


def assert_close(found, expected, tolerance=1e-12):
    assert dict(found).keys() == dict(expected).keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, err_msg=name,
                                   atol=tolerance * max(1, np.abs(array).max()))


@pytest.mark.parametrize(("name", "variant"), ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_new_adapters_leave_the_function_unchanged(name, variant, dtype):
    family, config = base_of(name, **variant)
    base = family(config, dtype=dtype)
    model = family(config, dtype=dtype, lora_rank=RANK)
    *tokens, targets = batch(name)
    assert model.logits(*tokens).tobytes() == base.logits(*tokens).tobytes()
    assert model.loss(*tokens, targets) == base.loss(*tokens, targets)
    given = family(config, dtype=dtype, lora_rank=RANK, values=base.params.items(), seed=7)
    assert given.logits(*tokens).tobytes() == base.logits(*tokens).tobytes()


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_merged_model_computes_the_same(name, variant):
    model = adapted(name, variant)
    *tokens, targets = batch(name)
    whole, found = model.merged().logits(*tokens), model.logits(*tokens)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-12)
    base = type(model)(model.config, dtype="float64",
                       values=((n, model.params[n]) for n in model.config.shapes()))
    assert np.abs(found - base.logits(*tokens)).max() > 1e-3           # the adapters matter
    assert float(model.loss(*tokens, targets)) == pytest.approx(
        float(model.merged().loss(*tokens, targets)), rel=1e-12)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_gradients_are_projections_of_those_of_the_merged_weights(name, variant):
    model = adapted(name, variant | DROPOUT)
    loss, grads = model.loss_and_grads(*batch(name), key=Key(5, 2))
    whole, full = model.merged().loss_and_grads(*batch(name), key=Key(5, 2))
    assert float(loss) == pytest.approx(float(whole), rel=1e-12)
    expected = {}
    for module, weight, columns, _ in matrices(name, model.config):
        A, B = model.params[f"{module}.lora_A"], model.params[f"{module}.lora_B"]
        dw = full[weight][:, columns]
        expected |= {f"{module}.lora_A": dw @ B.T, f"{module}.lora_B": A.T @ dw}
    assert_close(grads, expected)
    assert all(array.any() for array in expected.values())
    assert grads.flat.shape == (model.params.n_trainable,)
    assert model.params.n_trainable == sum(array.size for array in expected.values())


@EACH
@pytest.mark.parametrize("options", [{"recompute": True}, {"attention": "tiled"}])
def test_gradients_do_not_depend_on_how_they_are_computed(name, options):
    loss, grads = adapted(name, DROPOUT).loss_and_grads(*batch(name), key=Key(5, 2))
    found, others = adapted(name, DROPOUT, **options).loss_and_grads(*batch(name), key=Key(5, 2))
    assert float(found) == pytest.approx(float(loss), rel=1e-12)
    assert_close(others, grads, 0 if "recompute" in options else 1e-12)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_without_embeddings_the_other_gradients_have_the_same_bits(name, variant):
    family, config = base_of(name, **variant | DROPOUT)
    loss, grads = family(config).loss_and_grads(*batch(name), key=Key(5, 2))
    model = family(config, freeze="embeddings")
    found, others = model.loss_and_grads(*batch(name), key=Key(5, 2))
    assert found == loss
    tables = {n for n, param in config.architecture().items() if param.group == "table"}
    assert set(grads) - set(others) == tables
    for n, grad in others.items():
        assert grad.tobytes() == grads[n].tobytes(), n
    assert others.flat.size == model.params.n_trainable == sum(
        array.size for n, array in grads.items() if n not in tables)


@EACH
@pytest.mark.parametrize("frozen", [{"freeze": "embeddings"}, {"rank": RANK}])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_no_gradient_of_a_frozen_table_is_computed(name, frozen, tie_weights):
    model = adapted(name, {"tie_weights": tie_weights}, **{"rank": 0} | frozen)
    heads = []

    def never(*arguments):
        raise AssertionError("the gradient of a frozen embedding was computed")

    def backward_of_the_head(*arguments):
        heads.append(layers.linear_cross_entropy_backward(*arguments))
        return heads[-1]

    model.layers = SimpleNamespace(**vars(layers) | {
        "embedding_backward": never, "positional_backward": never,
        "linear_cross_entropy_backward": backward_of_the_head})
    model.loss_and_grads(*batch(name))
    (_, dw, _), = heads
    assert dw is None


@EACH
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("frozen", [{"freeze": "embeddings"}, {"rank": RANK}, {}],
                         ids=["embeddings", "all but adapters", "nothing"])
def test_a_step_changes_what_is_trainable_and_has_state_for_nothing_else(name, optimizer, frozen):
    model = adapted(name, **{"rank": 0} | frozen)
    p, n = model.params, model.params.n_trainable
    assert (n < p.flat.size) == bool(frozen)
    before = {name: array.copy() for name, array in p.items()}
    built = build_optimizer(p, TrainingConfig(optimizer=optimizer, weight_decay=0.1))
    grads = model.gradients()
    for step in range(3):
        train_step(model, built, [(*batch(name), Key(1, step))], grads, lr=1e-2)
    for n_, array in p.items():
        assert np.array_equal(array, before[n_]) != p.architecture[n_].trainable, n_
    assert grads.flat.size == n
    one = p.n_matrices if optimizer == "muon" else 0             # Muon has one moment
    assert sum(array.size for array in built.state.values()) == 2 * (n - one) + one


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_adapters_alone_learn_a_sequence(name, optimizer):
    model = adapted(name)
    built = build_optimizer(model.params, TrainingConfig(optimizer=optimizer))
    grads = model.gradients()
    losses = [float(train_step(model, built, [batch(name)], grads, lr=2e-2)[0])
              for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_generation_is_that_of_the_merged_model(name, variant):
    model = adapted(name, variant)
    found = model.generate(IDS[:, :3], 12, seed=3)
    assert found.tolist() == model.merged().generate(IDS[:, :3], 12, seed=3).tolist()
    kv = KVCache(model.config.n_layer, model.config.block_size)
    logits = [model.logits(IDS[:, t:t + 1], kv) for t in range(IDS.shape[1])]
    np.testing.assert_allclose(np.concatenate(logits, 1), model.merged().logits(IDS), rtol=0,
                               atol=1e-12)


def test_translation_is_that_of_the_merged_model():
    model = adapted("transformer")
    assert model.translate(IDS, 6).tolist() == model.merged().translate(IDS, 6).tolist()
    maps = model.cross_attention(IDS, IDS), model.merged().cross_attention(IDS, IDS)
    for found, expected in zip(*maps, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
