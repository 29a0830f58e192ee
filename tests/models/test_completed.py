"""When a model's gradients are complete, which lets their sum over ranks begin."""

import numpy as np
import pytest

from npgpt.layers import Key
from npgpt.models.transformer import PAD, Transformer, TransformerConfig
from tests.models.families import FAMILIES, VARIANTS, tiny


def parts(model, grads):
    """A backward of the model."""
    idx = np.random.default_rng(0).integers(11, size=(2, 8))
    model.loss_and_grads(idx, idx, Key(1, 1), into=grads)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("passes", [1, 3])
def test_every_gradient_is_complete_exactly_once_in_the_last_backward(name, options, passes):
    model, completed = tiny(name, "float64", **options), []
    grads = model.gradients()
    grads.zero(passes, completed.append)
    for _ in range(passes - 1):
        parts(model, grads)
    assert completed == []
    parts(model, grads)
    assert sorted(completed) == sorted(grads)
    alone = model.gradients()
    for _ in range(passes):
        parts(model, alone)
    np.testing.assert_array_equal(grads.flat, alone.flat)


def test_gradients_of_a_transformer_are_complete_once():
    for tied in (True, False):
        model, completed = Transformer(TransformerConfig(
            9, 9, n_layer=2, n_head=2, n_embd=8, tie_weights=tied)), []
        grads = model.gradients()
        grads.zero(1, completed.append)
        ids = np.full((2, 5), PAD + 1)
        model.loss_and_grads(ids, ids, ids, into=grads)
        assert sorted(completed) == sorted(grads)


def test_gradient_with_more_parts_than_it_has_uses_is_refused():
    model = tiny("gpt")
    grads = model.gradients()
    grads.zero(1, lambda name: None)
    parts(model, grads)
    with pytest.raises(ValueError, match="has more parts than"):
        parts(model, grads)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("tied", "uses"), [(True, 2), (False, 1)])
def test_embedding_has_a_use_more_if_the_head_shares_it(name, tied, uses):
    model = tiny(name, tie_weights=tied)
    found = {key: param.uses for key, param in model.params.architecture.items()}
    assert found.pop(FAMILIES[name].embedding) == uses
    assert set(found.values()) == {1}
