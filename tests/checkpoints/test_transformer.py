import json

import numpy as np
import pytest

from npgpt import GPT, UserError
from npgpt.models.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(source_vocab_size=9, target_vocab_size=7, n_layer=1, n_head=2, n_embd=8,
                           dropout=0.25, tie_weights=False)
ABSENT = object()


def saved(tmp_path):
    model = Transformer(CONFIG, seed=3)
    model.save_pretrained(tmp_path / "m")
    return model, tmp_path / "m"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_model_comes_back_with_its_configuration_and_every_parameter(dtype, tmp_path):
    model, path = saved(tmp_path)
    read = Transformer.from_pretrained(path, dtype=dtype)
    assert read.config == CONFIG and read.dtype == dtype
    for name, array in model.params.items():
        np.testing.assert_array_equal(read.params[name], array, err_msg=name)


def test_one_family_is_not_read_as_another(tmp_path):
    _, path = saved(tmp_path)
    with pytest.raises(UserError, match="model_type is 'npgpt-transformer'"):
        GPT.from_pretrained(path)
    (path / "SHA256SUMS").unlink()
    for config in ({"model_type": "gpt2"}, {}):
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="does not describe an npgpt Transformer"):
            Transformer.from_pretrained(path)


@pytest.mark.parametrize(("change", "message"), [
    ({"n_layer": 0}, r"config\.json: n_layer must be at least 1, got 0"),
    ({"wings": 2, "legs": 6}, "has missing or unknown keys: legs, wings"),
    ({"n_layer": ABSENT}, "has missing or unknown keys: n_layer"),
    ({"n_layer": 2}, r"encoder\.h\.1\..* is missing"),
])
def test_configuration_that_does_not_fit_is_refused(change, message, tmp_path):
    _, path = saved(tmp_path)
    found = json.loads((path / "config.json").read_text())
    values = {name: value for name, value in (found | change).items() if value is not ABSENT}
    (path / "config.json").write_text(json.dumps(values))
    (path / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=message):
        Transformer.from_pretrained(path)
