"""The families of decoder-only models, tiny, for the tests of what holds for every family."""

from typing import NamedTuple

import pytest

from npgpt import GPT, Llama

SIZES = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_embd": 16}


class Family(NamedTuple):
    """A family and what it calls the parts that all families have."""

    model: type
    heads: dict
    variants: list              # options that add, leave out or replace parts
    biases: dict                # options that add biases
    embedding: str
    last: tuple                 # the matrices before the residual additions
    norm: str                   # the layer


FAMILIES = {
    "gpt": Family(
        GPT, {"n_head": 2},
        [{}, {"tie_weights": False}, {"attn_bias": False}, {"head_bias": True},
         {"activation": "relu", "tie_weights": False, "attn_bias": False, "head_bias": True}],
        {"head_bias": True}, "wte.weight", ("attn.c_proj.weight", "mlp.c_proj.weight"), "layernorm",
    ),
    "llama": Family(
        Llama, {"n_head": 4, "n_kv_head": 2},
        [{}, {"tie_weights": False}, {"n_kv_head": 4}, {"n_kv_head": 1, "qk_norm": True},
         {"attention_bias": True, "mlp_bias": True, "n_inner": 24},
         {"qk_norm": True, "head_dim": 6, "attention_bias": True, "tie_weights": False}],
        {"attention_bias": True, "mlp_bias": True}, "embed_tokens.weight",
        ("o_proj.weight", "down_proj.weight"), "rmsnorm",
    ),
}
VARIANTS = [pytest.param(name, variant, id="-".join([name, *variant]))
            for name, family in FAMILIES.items() for variant in family.variants]


def config_of(name, **options):
    """-> the configuration of a tiny model of a family."""
    family = FAMILIES[name]
    return family.model.Config(**SIZES | family.heads | options)


def tiny(name, dtype="float32", seed=1, device="cpu", lora_rank=0, freeze="nothing", **options):
    """-> a tiny model of a family. options: of its configuration."""
    return FAMILIES[name].model(config_of(name, **options), seed=seed, device=device, dtype=dtype,
                                lora_rank=lora_rank, freeze=freeze)
