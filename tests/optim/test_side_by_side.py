"""Muon on matrices that are side by side in one array, as q, k and v, equals Muon on each of them
alone, also if their widths differ, as in a Llama whose heads share keys."""

import numpy as np
import pytest

from npgpt.models.parameters import Param, Parameters, count
from npgpt.optim import AdamW, Muon, OptimizerGroup
from tests.models.families import config_of

NAMES = {"c_attn": ("q", "k", "v"), "qkv_proj": ("q", "k", "v"), "gate_up_proj": ("gate", "up")}


def apart_from_each_other(architecture):
    """An architecture -> the same with each matrix in an array of its own."""
    table = {}
    for name, param in architecture.items():
        for part, width in zip(parts_of(name), param.widths, strict=True):
            table[part] = Param((*param.shape[:-1], width), param.group)
    return table


def parts_of(name):
    """The name of an array -> the names of the arrays that are side by side in it."""
    *path, layer, kind = name.split(".")
    return [".".join([*path, part, kind]) for part in NAMES.get(layer, (layer,))]


def split_up(values, architecture):
    """name -> array, of an architecture -> the same of the other."""
    return {part: array for name, param in architecture.items() for part, array in zip(
        parts_of(name), np.split(values[name], np.cumsum(param.widths)[:-1], axis=-1))}


def optimizer_of(p):
    return OptimizerGroup([Muon(p, 0.9, 0.1, relative_lr=2.0), AdamW(p, start=p.n_matrices)])


@pytest.mark.parametrize(("name", "options"), [
    ("gpt", {}),
    ("llama", {}),                                              # 16, 8 and 8 of 16; 64 and 64
    ("llama", {"n_kv_head": 1, "n_inner": 6}),                  # 16, 4 and 4 of 16;  6 and  6
    ("llama", {"head_dim": 10, "qk_norm": True, "attention_bias": True}),      # 40, 20 and 20
])
def test_muon_updates_each_of_several_matrices_as_if_it_were_alone(name, options):
    architecture = config_of(name, **options).architecture()
    together = Parameters(architecture, np.zeros(count(architecture)))
    alone = Parameters(apart_from_each_other(architecture), np.zeros(count(architecture)))
    assert len(alone) > len(together) and alone.n_matrices == together.n_matrices
    rng = np.random.default_rng(0)
    together.flat[...] = rng.standard_normal(together.flat.size)
    for part, value in split_up(together, architecture).items():
        alone[part] = value
    optimizers = [(p, optimizer_of(p)) for p in (together, alone)]
    for lr in (0.1, 0.2, 0.15):
        grads = together.on(rng.standard_normal(together.flat.size))
        of_each = split_up(grads, architecture)
        for p, optimizer in optimizers:
            given = grads.flat if p is together else np.concatenate(
                [of_each[part].ravel() for part in alone])
            optimizer.step(given, lr)
    for part, value in split_up(together, architecture).items():
        np.testing.assert_allclose(alone[part], value, rtol=0, atol=1e-12, err_msg=part)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_shards_of_a_llama_hold_whole_arrays_and_combine_to_the_whole_step(size):
    """All matrices of an array are updated by one rank."""
    architecture, found = config_of("llama", n_kv_head=1, qk_norm=True).architecture(), []
    grads = np.random.default_rng(1).standard_normal(count(architecture))
    for ranks in (1, size):
        p = Parameters(architecture, np.random.default_rng(0).standard_normal(len(grads)))
        optimizers = [optimizer_of(p) for _ in range(ranks)]
        for rank, optimizer in enumerate(optimizers):
            optimizer.set_rank(rank, ranks)
            shards = optimizer.optimizers[0].shard
            assert {(s.start, s.stop) for s in shards} <= {
                (s.start, s.stop) for s in p.slices.values()}
        for _ in range(2):
            for optimizer in optimizers:
                optimizer.step(grads, 0.1)
        found.append(p.flat)
    np.testing.assert_array_equal(found[1], found[0])
