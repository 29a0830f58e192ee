"""A model computes with the layers of its own table, from the first to the last."""

from types import SimpleNamespace

import numpy as np
import pytest

from npgpt import layers
from npgpt.layers import Key
from npgpt.models.transformer import Transformer, TransformerConfig, teacher_forced
from tests.models.families import FAMILIES, tiny

IDS = np.random.default_rng(0).integers(3, 7, (2, 6))
MODELS = {
    **{name: (tiny(name, dropout=0.2), (IDS, IDS)) for name in FAMILIES},
    "transformer": (Transformer(TransformerConfig(source_vocab_size=7, target_vocab_size=7,
                                                  n_layer=2, n_head=2, n_embd=8)),
                    (IDS, *teacher_forced(IDS))),
}


@pytest.mark.parametrize("name", MODELS)
def test_model_computes_with_the_layers_of_its_table_and_no_others(name, monkeypatch):
    """The plain functions are taken away; those of the table are the same."""
    model, batch = MODELS[name]
    loss, grads = model.loss_and_grads(*batch, Key(1, 1))
    own = SimpleNamespace(**{name: getattr(layers, name) for name in layers.__all__})
    own.LAYERS = dict(layers.LAYERS)
    monkeypatch.setattr(model, "layers", own)
    for layer in own.LAYERS:
        for way in ("forward", "backward"):
            monkeypatch.setattr(layers, f"{layer}_{way}", None)
    monkeypatch.setattr(layers, "LAYERS", {})
    same_loss, same_grads = model.loss_and_grads(*batch, Key(1, 1))
    assert same_loss == loss and model.loss(*batch) > 0
    np.testing.assert_array_equal(same_grads.flat, grads.flat)
    if name in FAMILIES:
        assert model.generate(IDS[:, :2], 3, seed=0).shape == (2, 3)
    else:
        assert len(model.translate(IDS, 3)) == 2
