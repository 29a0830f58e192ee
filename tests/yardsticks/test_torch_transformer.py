"""The encoder-decoder against PyTorch's own modules, post-norm with ReLU, in float64."""

import math

import numpy as np
import pytest

from npgpt.models.parameters import flatten, nest
from npgpt.models.stacks import PAD, sinusoid
from npgpt.models.transformer import Transformer, TransformerConfig
from tests.yardsticks.test_torch import TOLERANCE, apart

VARIANTS = [{}, {"tie_weights": False}, {"n_layer": 3, "n_head": 1, "n_embd": 7}]


def odd_model(**options):
    """A model with pairwise distinct dimensions, and no parameter at its initial value."""
    sizes = {"source_vocab_size": 19, "target_vocab_size": 23, "n_layer": 2, "n_head": 3,
             "n_embd": 15}
    model = Transformer(TransformerConfig(**sizes | options), dtype="float64")
    draw = np.random.default_rng(0).standard_normal
    model.params.flat[...] = draw(model.params.flat.size) * 0.3
    return model


def batch(model, B=5, S=13, T=8):
    """Padding at the end of some rows; some ignored targets."""
    rng = np.random.default_rng(1)
    V = model.config.target_vocab_size
    source = rng.integers(1, model.config.source_vocab_size, (B, S))
    idx, targets = rng.integers(1, V, (B, T)), rng.integers(-1, V, (B, T))
    source[1, 9:] = source[3, 4:] = idx[2, 5:] = idx[4, 1:] = PAD
    return source, idx, targets


def packed(p):
    """The parameters of a block, or their gradients, in the format of torch.nn's layers: a weight
    is (out, in), and one matrix computes queries, keys and values. p: nested."""
    p = flatten(p)
    is_decoder = "ln_cross_attn.weight" in p
    names = {"attn.c_attn.": "self_attn.in_proj_", "attn.c_proj.": "self_attn.out_proj.",
             "ln_1.": "norm1.", "mlp.c_fc.": "linear1.", "mlp.c_proj.": "linear2.",
             "ln_2.": "norm3." if is_decoder else "norm2."}
    if is_decoder:
        names |= {"ln_cross_attn.": "norm2.", "crossattention.c_proj.": "multihead_attn.out_proj."}
    found = {theirs + kind: p[ours + kind].T
             for ours, theirs in names.items() for kind in ("weight", "bias")}
    if is_decoder:
        found |= {f"multihead_attn.in_proj_{kind}": np.concatenate(
            [p[f"crossattention.{part}.{kind}"].T for part in ("q_attn", "c_attn")])
            for kind in ("weight", "bias")}
    return found


def torch_twin(torch, model):
    """-> the two stacks of torch.nn with the model's parameters."""
    c, nn = model.config, torch.nn
    layer = {"d_model": c.n_embd, "nhead": c.n_head, "dim_feedforward": 4 * c.n_embd,
             "dropout": 0.0, "activation": "relu", "batch_first": True, "dtype": torch.float64}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), c.n_layer,
                                    enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), c.n_layer)
    for name, stack in (("encoder", encoder), ("decoder", decoder)):
        for i, block in enumerate(stack.layers):
            values = packed(model.params.tree[name]["h"][i])
            block.load_state_dict({n: torch.tensor(v) for n, v in values.items()})
    return encoder, decoder


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_agree_with_those_of_torch_modules(variant, torch):
    model = odd_model(**variant)
    encoder, decoder = torch_twin(torch, model)
    source, idx, targets = batch(model)
    tables = {name: torch.tensor(w, requires_grad=True) for name, w in model.params.items()
              if not name.count(".h.")}

    def embedded(name, idx):
        C = model.config.n_embd
        return tables[name][torch.tensor(idx)] * math.sqrt(C) + torch.tensor(
            sinusoid(np, idx.shape[1], C))

    blank, T = torch.tensor(source == PAD), idx.shape[1]
    memory = encoder(embedded("encoder.wte.weight", source), src_key_padding_mask=blank)
    x = decoder(
        embedded("decoder.wte.weight", idx), memory, memory_key_padding_mask=blank,
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        tgt_key_padding_mask=torch.tensor(idx == PAD),
    )
    logits = x @ tables.get("lm_head.weight", tables["decoder.wte.weight"]).T
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten(),
                                             ignore_index=-1)
    loss.backward()

    ours, grads = model.loss_and_grads(source, idx, targets)
    assert apart(model.logits(source, idx), logits) < TOLERANCE
    assert apart(ours, loss) < TOLERANCE
    compared = set()
    for name, table in tables.items():
        assert apart(grads[name], table.grad) < TOLERANCE
        compared.add(name)
    for name, stack in (("encoder", encoder), ("decoder", decoder)):
        for i, block in enumerate(stack.layers):
            part = nest(grads)[name]["h"][i]
            theirs = dict(block.named_parameters())
            found = packed(part)
            assert found.keys() == theirs.keys()
            assert max(apart(found[n], theirs[n].grad) for n in theirs) < TOLERANCE
            compared |= {f"{name}.h.{i}.{n}" for n in flatten(part)}
    assert compared == grads.keys()
