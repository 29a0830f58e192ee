import numpy as np

from npgpt import GPT, GPTConfig
from npgpt.models.parameters import under

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


def test_groups_stand_one_after_another():
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


def test_under_takes_the_prefix_off():
    assert under({"h.1.a": 1, "h.10.a": 2, "b": 3}, "h.1.") == {"a": 1}
