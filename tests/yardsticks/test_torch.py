"""npgpt against PyTorch's autograd and against transformers, in float64.

Two correct implementations agree up to rounding; if they do not, finite differences show which is
wrong.
"""

import numpy as np
import pytest
from hypothesis import given

from npgpt import GPT, GPTConfig
from npgpt.layers import LAYERS, causal_mask
from npgpt.optim import AdamW, learning_rate
from npgpt.training.config import TrainingConfig
from npgpt.training.step import train_step
from tests.cases import CASES

TOLERANCE = 1e-10


def apart(ours, theirs):
    """The distance of two arrays, divided by the norm of theirs, or by 1e-3 if that is smaller."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-3)


def masked_attention(torch, q, k, v, mask, p, key):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    att = scores.softmax(-1)
    if mask is not None:
        mask = torch.tensor(np.broadcast_to(mask, scores.shape).copy())
        att = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)
        att = torch.where(mask, att, torch.zeros_like(att))
    return dropped(torch, att, p, key) @ v


def tiled(torch, q, k, v, mask, p, key, causal, tile):
    past = causal_mask(np, q.shape[2], k.shape[2]) if causal else True
    return masked_attention(torch, q, k, v, past if mask is None else past & mask, p, key)


def dropped(torch, x, p, key):
    """Dropout with npgpt's mask, which is a function of the key."""
    from npgpt.layers.dropout import keep_mask

    return x * torch.tensor(keep_mask(np, key, p, tuple(x.shape))) / (1 - p) if p else x


def rotated(torch, x, cos, sin):
    """Pairs of channels as complex numbers."""
    D = x.shape[-1]
    turned = torch.complex(x[..., :D // 2], x[..., D // 2:]) * torch.complex(*map(torch.tensor,
                                                                                  (cos, sin)))
    return torch.cat([turned.real, turned.imag], -1)


def crossed(torch, logits, targets, count):
    F = torch.nn.functional
    total = F.cross_entropy(logits.flatten(0, -2), torch.tensor(targets).flatten(),
                            ignore_index=-1, reduction="sum")
    return total / (count or max((targets >= 0).sum(), 1))


def functions(torch):
    F = torch.nn.functional
    return {
        "linear": lambda x, w, b: F.linear(x, w.T, b),
        "embedding": lambda idx, w: F.embedding(torch.tensor(idx), w),
        "positional": lambda x, w, start: x + w[start:start + x.shape[-2]],
        "layernorm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        "relu": F.relu,
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "dropout": lambda x, p, key: dropped(torch, x, p, key),
        "attention": lambda *inputs: masked_attention(torch, *inputs),
        "cross_entropy": lambda *inputs: crossed(torch, *inputs),
        "rmsnorm": lambda x, w, eps: F.rms_norm(x, x.shape[-1:], w, eps),
        "rope": lambda x, cos, sin: rotated(torch, x, cos, sin),
        "swiglu": lambda gate, up: F.silu(gate) * up,
        "tiled_attention": lambda *inputs, **options: tiled(torch, *inputs, **options),
        "linear_cross_entropy": lambda x, w, b, targets, count, tokens: crossed(
            torch, F.linear(x, w.T, b), targets, count),
        "lora": lambda x, A, B: F.linear(F.linear(x, A.T), B.T),
    }


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


@pytest.mark.parametrize("name", LAYERS)
def test_layer_agrees_with_autograd(name, torch):
    assert functions(torch).keys() == LAYERS.keys()

    @given(CASES[name]())
    def check(case):
        inputs = [torch.tensor(x, requires_grad=True) if is_float(x) else x for x in case.inputs]
        theirs = functions(torch)[name](*inputs, **case.options)
        ours, cache = case.forward(*case.inputs)
        assert apart(ours, theirs) < TOLERANCE

        dy = np.random.default_rng(0).standard_normal(np.shape(ours))
        theirs.backward(torch.tensor(dy))
        gradients = case.backward(dy, cache)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        gradients = [d for d in gradients if d is not None]
        expected = [x.grad for x in inputs if hasattr(x, "grad")]
        assert len(gradients) == len(expected)
        assert max(map(apart, gradients, expected)) < TOLERANCE

    check()


def odd_model(seed=0, **options):
    """A model with pairwise distinct dimensions, and no parameter at its initial value."""
    sizes = {"vocab_size": 23, "block_size": 11, "n_layer": 2, "n_head": 3, "n_embd": 15}
    gpt = GPT(GPTConfig(**sizes | options), dtype="float64")
    draw = np.random.default_rng(seed).standard_normal
    gpt.params.flat[...] = draw(gpt.params.flat.size) * 0.3
    return gpt


def batch(gpt, rows=5, length=None, seed=0):
    rng = np.random.default_rng(seed)
    V, shape = gpt.config.vocab_size, (rows, length or gpt.config.block_size)
    return rng.integers(V, size=shape), rng.integers(-1, V, size=shape)


VARIANTS = [
    {}, {"tie_weights": False}, {"attn_bias": False}, {"activation": "relu", "n_layer": 1},
    {"head_bias": True, "tie_weights": False, "n_head": 1, "n_embd": 7},
    {"n_layer": 3, "n_head": 5, "n_embd": 10, "block_size": 4, "vocab_size": 3},
    {"n_inner": 17, "norm_eps": 0.05},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_agrees_with_pytorch(variant, torch):
    from benchmarks.torch_gpt import TorchGPT

    gpt = odd_model(**variant)
    theirs = TorchGPT(gpt.config).double().take(gpt.params)
    idx, targets = batch(gpt, length=gpt.config.block_size - 1)
    loss = theirs(torch.tensor(idx), torch.tensor(targets))
    loss.backward()
    ours, grads = gpt.loss_and_grads(idx, targets)
    assert apart(ours, loss) < TOLERANCE
    named = dict(theirs.named_parameters())
    assert named.keys() == grads.keys()
    assert max(apart(grads[name], named[name].grad) for name in named) < TOLERANCE


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "head_bias" not in v])
def test_model_agrees_with_transformers(variant, torch, transformers, tmp_path):
    gpt = odd_model(**variant)
    gpt.save_pretrained(tmp_path / "m")
    GPT2 = transformers.GPT2LMHeadModel
    theirs = GPT2.from_pretrained(tmp_path / "m", dtype=torch.float64).eval()
    idx, targets = batch(gpt)
    logits = theirs(torch.tensor(idx)).logits
    assert apart(gpt.logits(idx), logits) < TOLERANCE
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten(),
                                             ignore_index=-1)
    loss.backward()
    ours, grads = gpt.loss_and_grads(idx, targets)
    assert apart(ours, loss) < TOLERANCE
    named = {name.removeprefix("transformer."): p for name, p in theirs.named_parameters()}
    assert grads.keys() <= named.keys()
    assert max(apart(grads[name], named[name].grad) for name in grads) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_ten_steps_of_training_agree_with_pytorch(variant, torch):
    """Gradients, clipping, schedule and AdamW combined."""
    from benchmarks.torch_gpt import TorchGPT

    gpt = odd_model(**variant)
    theirs = TorchGPT(gpt.config).double().take(gpt.params)
    c = TrainingConfig(max_iters=10, warmup_iters=3, learning_rate=1e-2, min_lr=1e-3, grad_clip=0.5)
    named = dict(theirs.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in named.values() if p.ndim == 2], "weight_decay": c.weight_decay},
         {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0}],
        betas=(c.beta1, c.beta2), eps=1e-8,
    )
    adamw, grads = AdamW(gpt.params, c.beta1, c.beta2, c.weight_decay), gpt.gradients()
    for step in range(10):
        idx, targets = batch(gpt, seed=step)
        rate = learning_rate(step, c)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        theirs(torch.tensor(idx), torch.tensor(targets)).backward()
        torch.nn.utils.clip_grad_norm_(named.values(), c.grad_clip)
        optimizer.step()

        train_step(gpt, adamw, [(idx, targets)], grads, lr=rate, grad_clip=c.grad_clip)
    furthest = max(np.abs(gpt.params[name] - named[name].detach().numpy()).max() for name in named)
    assert furthest < 1e-9
