import math
from dataclasses import replace

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.backend import get_device
from npgpt.training.config import TrainingConfig
from npgpt.training.optim import AdamW, clip_scale, gradient_norm, learning_rate

CPU = get_device("cpu")
CONFIG = GPTConfig(vocab_size=7, block_size=5, n_layer=1, n_head=2, n_embd=8)


def state(dtype="float64"):
    p = GPT(CONFIG, dtype=dtype).params
    rng = np.random.default_rng(0)
    p.flat[...] = rng.standard_normal(p.flat.size)
    return p, p.on(rng.standard_normal(p.flat.size).astype(dtype))


def one(x):
    return np.float64(x)


@pytest.mark.parametrize("size", [1.0, 1e-8])      # at 1e-8, ε is half of what is divided by
def test_steps_follow_the_paper_number_by_number(size):
    """One parameter, three steps, in Python's own numbers, once with decay and once without."""
    for name, decay in (("wte.weight", 0.1), ("ln_f.bias", 0.0)):
        p, grads = state()
        grads.flat[...] *= size
        optimizer = AdamW(p, CPU, 0.9, 0.99, 0.1)
        w, m, v = float(p[name].ravel()[3]), 0.0, 0.0
        for t in (1, 2, 3):
            grads.flat[...] *= -1.7
            g = float(grads[name].ravel()[3]) * 0.5
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            mhat, vhat = m / (1 - 0.9**t), v / (1 - 0.99**t)
            w -= 1e-2 * (decay * w + mhat / (math.sqrt(vhat) + 1e-8))
            optimizer.step(p, grads, 1e-2, one(0.5), t)
        assert p[name].ravel()[3] == pytest.approx(w, rel=1e-13)


def test_ten_steps_are_those_of_pytorch(torch):
    p, grads = state()
    ours = AdamW(p, CPU, 0.9, 0.95, 0.1)
    theirs = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in p.items()}
    decayed = [w for w in theirs.values() if w.ndim == 2]
    rest = [w for w in theirs.values() if w.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    rng = np.random.default_rng(1)
    for t in range(1, 11):
        grads.flat[...] = rng.standard_normal(grads.flat.size) * t
        rate = 1e-2 / t
        for name, w in theirs.items():
            w.grad = torch.tensor(grads[name])
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 20.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        ours_norm = gradient_norm(grads, CPU)
        assert float(ours_norm) == pytest.approx(float(norm), rel=1e-12)
        ours.step(p, grads, rate, clip_scale(ours_norm, 20.0, CPU), t)
    for name, w in theirs.items():
        np.testing.assert_allclose(p[name], w.detach().numpy(), rtol=0, atol=1e-13)


def test_matrices_and_embeddings_decay_and_nothing_else():
    p, grads = state()
    grads.flat[...] = 0
    before = {name: array.copy() for name, array in p.items()}
    AdamW(p, CPU, 0.9, 0.99, 0.1).step(p, grads, 1e-2, one(1), 1)
    for name, array in p.items():
        factor = 1 - 1e-2 * 0.1 if array.ndim == 2 else 1
        np.testing.assert_allclose(array, before[name] * factor, rtol=1e-14)


def test_gradients_are_not_changed():
    p, grads = state()
    kept = grads.flat.copy()
    AdamW(p, CPU, 0.9, 0.99, 0.1).step(p, grads, 1e-2, one(0.3), 1)
    np.testing.assert_array_equal(grads.flat, kept)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_leave_the_parameters_alone(bad):
    p, grads = state("float32")
    optimizer = AdamW(p, CPU, 0.9, 0.99, 0.1)
    optimizer.step(p, grads, 1e-2, one(1), 1)
    before, m, v = p.flat.copy(), optimizer.m.copy(), optimizer.v.copy()
    grads.flat[17] = bad
    with np.errstate(invalid="ignore"):
        scale = clip_scale(gradient_norm(grads, CPU), 1.0, CPU)
        assert scale == 0
        optimizer.step(p, grads, 1e-2, scale, 2)
    np.testing.assert_array_equal(p.flat, before)
    np.testing.assert_allclose(optimizer.m, m * np.float32(0.9), rtol=1e-5)    # they fade
    np.testing.assert_allclose(optimizer.v, v * np.float32(0.99), rtol=1e-5)
    grads.flat[17] = 0
    optimizer.step(p, grads, 1e-2, one(1), 3)
    assert np.isfinite(p.flat).all() and not np.array_equal(p.flat, before)


def test_chunks_do_not_matter():
    results = []
    for chunk in (10**9, 7, 1000):
        p, grads = state()
        device = replace(CPU, chunk=chunk)
        AdamW(p, device, 0.9, 0.99, 0.1).step(p, grads, 1e-2, one(1), 1)
        results.append((p.flat.copy(), gradient_norm(grads, device)))
    for flat, norm in results[1:]:
        np.testing.assert_array_equal(flat, results[0][0])
        assert norm == pytest.approx(results[0][1], rel=1e-14)


def test_dtype_stays():
    p, grads = state("float32")
    optimizer = AdamW(p, CPU, 0.9, 0.99, 0.1)
    optimizer.step(p, grads, 1e-2, one(0.5), 1)
    assert {p.flat.dtype, optimizer.m.dtype, optimizer.v.dtype} == {np.dtype("float32")}


def test_norm_is_that_of_all_gradients_together():
    _, grads = state()
    parts = [np.linalg.norm(g) for g in grads.values()]
    assert gradient_norm(grads, CPU) == pytest.approx(math.hypot(*parts), rel=1e-12)


def test_norm_of_huge_finite_gradients_is_finite():
    _, grads = state("float32")
    grads.flat[...] = 1e30
    assert gradient_norm(grads, CPU) == pytest.approx(1e30 * grads.flat.size**0.5, rel=1e-6)


@pytest.mark.parametrize(("norm", "limit", "scale"), [
    (0.5, 1.0, 1.0), (4.0, 1.0, 1 / (4 + 1e-6)), (1e6, 2.0, 2 / (1e6 + 1e-6)), (4.0, 0.0, 1.0),
    (0.0, 1.0, 1.0), (1e-6, 1e-7, 1e-7 / 2e-6),
    (math.inf, 1.0, 0.0), (math.nan, 1.0, 0.0), (math.nan, 0.0, 0.0),
])
def test_clipping_keeps_the_norm_at_its_limit(norm, limit, scale):
    found = clip_scale(one(norm), limit, CPU)
    assert found.dtype == np.float64
    assert found == pytest.approx(scale, rel=1e-12)
    if limit and math.isfinite(norm):
        assert found * norm <= limit


def test_rate_rises_falls_and_stays():
    c = TrainingConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=9, lr_decay_iters=109,
                       max_iters=200)
    assert learning_rate(0, c) == pytest.approx(0.1)
    assert learning_rate(8, c) == pytest.approx(0.9)
    assert learning_rate(9, c) == pytest.approx(1.0)
    assert learning_rate(59, c) == pytest.approx(0.55)        # half-way down the cosine
    assert learning_rate(109, c) == learning_rate(199, c) == 0.1
    rates = [learning_rate(step, c) for step in range(200)]
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


def test_rate_after_a_warm_up_that_is_all_there_is():
    c = TrainingConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=5, lr_decay_iters=5)
    assert learning_rate(4, c) == pytest.approx(5 / 6)
    assert learning_rate(5, c) == 0.1


def test_rate_without_warm_up_or_decay_is_constant():
    c = TrainingConfig(learning_rate=0.3, min_lr=0.3, warmup_iters=0)
    assert {learning_rate(step, c) for step in range(3000)} == {0.3}
