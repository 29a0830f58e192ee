"""Tiny models with adapters, for tests."""

import numpy as np

from npgpt.models.transformer import Transformer, TransformerConfig
from tests.models.families import FAMILIES, config_of

RANK = 3


def base_of(name, **options):
    """-> a family or the Transformer, and a configuration."""
    if name != "transformer":
        return FAMILIES[name].model, config_of(name, **options)
    return Transformer, TransformerConfig(**{
        "source_vocab_size": 11, "target_vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 16,
        "dropout": 0.0} | options)


def adapted(name, variant=(), rank=RANK, dtype="float64", **options):
    """-> a tiny model whose adapters are random, so that A and B both matter. variant: options of
    its configuration."""
    family, config = base_of(name, **dict(variant))
    model = family(config, dtype=dtype, lora_rank=rank, **options)
    normal = np.random.default_rng(5).standard_normal
    for name, array in model.params.items():
        if name.endswith((".lora_A", ".bias")):
            array[...] = normal(array.shape) * 0.3
        elif name.endswith(".lora_B"):
            array[...] = normal(array.shape) * 0.1
    return model


def matrices(name, config):
    """-> for each matrix with adapters: its name, the weight that contains it, its columns there
    and its shape."""
    c, C = config, config.n_embd
    if name == "llama":
        q, kv, F = c.n_head * c.head_dim, c.n_kv_head * c.head_dim, c.n_inner
        stacks = {"layers": [
            ("self_attn.qkv_proj", C, {"self_attn.q_proj": q, "self_attn.k_proj": kv,
                                       "self_attn.v_proj": kv}),
            ("self_attn.o_proj", q, {"self_attn.o_proj": C}),
            ("mlp.gate_up_proj", C, {"mlp.gate_proj": F, "mlp.up_proj": F}),
            ("mlp.down_proj", F, {"mlp.down_proj": C})]}
    else:
        def plain(widths):
            return [(layer, n_in, {layer: n_out}) for layer, (n_in, n_out) in widths.items()]

        F = 4 * C if name == "transformer" else c.inner
        block = plain({"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, F),
                       "mlp.c_proj": (F, C)})
        cross = plain({f"crossattention.{layer}": (C, n * C)
                       for layer, n in (("q_attn", 1), ("c_attn", 2), ("c_proj", 1))})
        stacks = ({"h": block} if name == "gpt" else
                  {"encoder.h": block, "decoder.h": block + cross})
    found = []
    for stack, block in stacks.items():
        for i in range(c.n_layer):
            for layer, n_in, widths in block:
                start = 0
                for module, width in widths.items():
                    found.append((f"{stack}.{i}.{module}", f"{stack}.{i}.{layer}.weight",
                                  slice(start, start + width), (n_in, width)))
                    start += width
    return found
