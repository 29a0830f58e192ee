import numpy as np
import pytest

from npgpt import GPT, GPTConfig, LlamaConfig
from npgpt.models.parameters import (
    Gradients,
    Param,
    Parameters,
    count,
    flatten,
    linear,
    nest,
    norm,
    table,
)
from npgpt.models.transformer import TransformerConfig

CONFIG = GPTConfig(vocab_size=7, block_size=5, n_layer=2, n_head=2, n_embd=4, tie_weights=False,
                   head_bias=True)


def test_names_are_views_of_one_buffer():
    p = GPT(CONFIG).params
    assert sum(array.size for array in p.values()) == p.flat.size
    p.flat[...] = np.arange(p.flat.size)
    assert np.array_equal(np.concatenate([array.ravel() for array in p.values()]), p.flat)
    p["h.1.ln_2.weight"][...] = -1
    assert (p.flat == -1).sum() == 4


def test_setting_a_name_writes_into_the_buffer():
    p = GPT(CONFIG).params
    view = p["ln_f.bias"]
    p["ln_f.bias"] = np.arange(4.0)
    p["ln_f.bias"] -= 1
    assert p["ln_f.bias"] is view and view.tolist() == [-1, 0, 1, 2]
    assert np.shares_memory(view, p.flat)


def test_groups_are_contiguous():
    p = GPT(CONFIG).params
    p.flat[...] = 0
    p.flat[:p.n_matrices] = 1
    p.flat[p.n_matrices:p.n_decayed] = 2
    groups = {name: int(array.ravel()[0]) for name, array in p.items()}
    assert all(len(np.unique(array)) == 1 for array in p.values())
    matrices = {name for name, group in groups.items() if group == 1}
    assert matrices == {f"h.{layer}.{name}.weight" for layer in (0, 1)
                        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    tables = {name for name, group in groups.items() if group == 2}
    assert tables == {"wte.weight", "wpe.weight", "lm_head.weight"}
    assert all(p[name].ndim == 1 for name, group in groups.items() if group == 0)


def test_tree_has_the_same_arrays_under_the_parts_of_their_names():
    p = GPT(CONFIG).params
    assert p.tree["h"][1]["attn"]["c_attn.weight"] is p["h.1.attn.c_attn.weight"]
    assert p.tree["wte.weight"] is p["wte.weight"]
    assert flatten(p.tree) == dict(p)
    assert p.tree is p.tree


def test_nest_is_the_inverse_of_flatten():
    flat = {"h.0.a.w.weight": 1, "h.10.a.w.weight": 2, "x.weight": 3}
    assert nest(flat) == {"h": {0: {"a": {"w.weight": 1}}, 10: {"a": {"w.weight": 2}}},
                          "x.weight": 3}
    assert flatten(nest(flat)) == flat


def test_frozen_parameters_are_last_and_have_no_gradient():
    architecture = flatten({"a": linear(3, 2), "t": table(4, 3), "n": norm(3)})
    architecture["t.weight"] = Param((4, 3), "table", trainable=False)
    p = Parameters(architecture, np.arange(26.0))
    assert list(p)[-1] == "t.weight" and p.n_trainable == p.n_decayed + 8 == 14
    grads = p.gradients(np.zeros(p.n_trainable))
    grads.add("t.weight", np.ones((4, 3)))
    assert "t.weight" not in grads and not grads.flat.any()


def test_first_gradient_is_assigned_and_later_ones_are_added():
    p = GPT(CONFIG).params
    grads = p.gradients(np.full(p.flat.size, 5.0))
    grads.add("wte.weight", np.ones((7, 4)))
    assert (grads["wte.weight"] == 6).all()               # existing values count until `zero`
    grads.zero()
    grads.add("wte.weight", np.ones((7, 4)))
    assert (grads["wte.weight"] == 1).all()
    grads.add("wte.weight", np.ones((7, 4)))
    assert (grads["wte.weight"] == 2).all()
    assert grads.flat.sum() == 2 * 28                     # gradients without additions are 0


@pytest.mark.parametrize("name", ["ln_f.bias", "h.0.mlp.c_fc.weight"])
def test_gradient_without_additions_reads_as_zero(name):
    p = GPT(CONFIG).params
    grads = p.gradients(np.full(p.flat.size, 5.0))
    grads.zero()
    assert not grads[name].any()


def test_tree_of_gradients_is_added_under_its_name_and_emptied():
    p = GPT(CONFIG).params
    grads = p.gradients(np.zeros(p.flat.size))
    tree = {"attn": {"c_proj.bias": np.ones(4)}, "ln_1.bias": np.full(4, 2.0)}
    grads.add("h.1", tree)
    assert tree == {}
    assert (grads["h.1.attn.c_proj.bias"] == 1).all() and (grads["h.1.ln_1.bias"] == 2).all()
    grads.add("h.1.ln_1.bias", None)
    assert grads.flat.sum() == 4 + 8


@pytest.mark.parametrize(("config", "parts"), [
    (CONFIG, {"attn.c_attn": (4, 4, 4)}),
    (LlamaConfig(7, 5, 2, 4, 2, 8, n_inner=6, attention_bias=True, mlp_bias=True),
     {"self_attn.qkv_proj": (8, 4, 4), "mlp.gate_up_proj": (6, 6)}),
    (TransformerConfig(n_layer=1, n_head=2, n_embd=4),
     {"attn.c_attn": (4, 4, 4), "crossattention.c_attn": (4, 4)}),
])
def test_matrices_side_by_side_have_their_widths(config, parts):
    for name, param in config.architecture().items():
        expected = [widths for part, widths in parts.items() if f".{part}." in name]
        assert param.widths == (expected[0] if expected else param.shape[-1:]), name
        assert sum(param.widths) == param.shape[-1]


def test_initial_values_follow_the_table_and_depend_only_on_seed_and_name():
    param = Param((300, 200), "table", std=0.5, mean=2.0)
    value = param.draw("a", 1)
    assert value.dtype == np.float32
    assert value.mean() == pytest.approx(2, abs=0.01)
    assert value.std() == pytest.approx(0.5, rel=0.01)
    assert np.array_equal(value, param.draw("a", 1))
    assert not np.array_equal(value, param.draw("b", 1))
    assert not np.array_equal(value, param.draw("a", 2))
    assert (Param((3,), "vector", mean=1.0).draw("a", 1) == 1).all()


def test_count_is_the_size_of_all():
    assert count(CONFIG.architecture()) == GPT(CONFIG).params.flat.size
    assert isinstance(GPT(CONFIG).gradients(), Gradients)


def test_gradient_that_is_set_stays_and_its_shape_must_fit():
    grads = GPT(CONFIG).gradients()
    grads["ln_f.bias"] = np.ones(4)
    assert (grads["ln_f.bias"] == 1).all() and grads.flat.sum() == 4
    grads.zero()
    assert not grads.tree["ln_f.bias"].any()
    for wrong in (np.ones(()), np.ones(1), np.ones((2, 4))):
        with pytest.raises(ValueError, match=r"the gradient of ln_f.bias \(4,\) has the shape"):
            grads.add("ln_f.bias", wrong)


def test_asking_whether_there_is_a_gradient_does_not_write_zeros():
    p = GPT(CONFIG).params
    flat = np.full(p.flat.size, 5.0)
    grads = p.gradients(flat)
    grads.zero()
    assert "wte.weight" in grads and "wte.bias" not in grads
    assert (flat == 5).all()
