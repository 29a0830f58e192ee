import math
from dataclasses import replace

import numpy as np
import pytest

from npgpt import GPT, GPTConfig
from npgpt.backend import get_device, register
from npgpt.optim import (
    AdamW,
    Muon,
    OptimizerGroup,
    clip_scale,
    learning_rate,
)
from npgpt.optim.muon import orthogonal
from npgpt.parallel import Single, squared_norm
from npgpt.training.config import TrainingConfig
from tests import double

CPU = get_device("cpu")
CONFIG = GPTConfig(vocab_size=7, block_size=5, n_layer=1, n_head=2, n_embd=8)


def state(dtype="float64"):
    p = GPT(CONFIG, dtype=dtype).params
    rng = np.random.default_rng(0)
    p.flat[...] = rng.standard_normal(p.flat.size)
    return p, p.gradients(rng.standard_normal(p.flat.size).astype(dtype))


def norm_of(grads):
    return np.sqrt(squared_norm(grads.flat))


def one(x):
    return np.float64(x)


@pytest.mark.parametrize("size", [1.0, 1e-8])      # at 1e-8, ε is half of the divisor
def test_steps_follow_the_formula_of_the_paper(size):
    """One parameter, three steps, in Python's own numbers, once with decay and once without."""
    for name, decay in (("wte.weight", 0.1), ("ln_f.bias", 0.0)):
        p, grads = state()
        grads.flat[...] *= size
        optimizer = AdamW(p, 0.9, 0.99, 0.1)
        w, m, v = float(p[name].ravel()[3]), 0.0, 0.0
        for t in (1, 2, 3):
            grads.flat[...] *= -1.7
            g = float(grads[name].ravel()[3]) * 0.5
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            mhat, vhat = m / (1 - 0.9**t), v / (1 - 0.99**t)
            w -= 1e-2 * (decay * w + mhat / (math.sqrt(vhat) + 1e-8))
            optimizer.step(grads.flat, 1e-2, one(0.5))
        assert p[name].ravel()[3] == pytest.approx(w, rel=1e-13)


def test_ten_steps_agree_with_pytorch(torch):
    p, grads = state()
    ours = AdamW(p, 0.9, 0.95, 0.1)
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
        ours_norm = norm_of(grads)
        assert float(ours_norm) == pytest.approx(float(norm), rel=1e-12)
        ours.step(grads.flat, rate, clip_scale(ours_norm, 20.0))
    for name, w in theirs.items():
        np.testing.assert_allclose(p[name], w.detach().numpy(), rtol=0, atol=1e-13)


def test_only_matrices_and_embeddings_decay():
    p, grads = state()
    grads.flat[...] = 0
    before = {name: array.copy() for name, array in p.items()}
    AdamW(p, 0.9, 0.99, 0.1).step(grads.flat, 1e-2)
    for name, array in p.items():
        factor = 1 - 1e-2 * 0.1 if array.ndim == 2 else 1
        np.testing.assert_allclose(array, before[name] * factor, rtol=1e-14)


def test_gradients_are_not_changed():
    p, grads = state()
    kept = grads.flat.copy()
    AdamW(p, 0.9, 0.99, 0.1).step(grads.flat, 1e-2, one(0.3))
    np.testing.assert_array_equal(grads.flat, kept)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_gradients_leave_the_parameters_unchanged(bad):
    p, grads = state("float32")
    optimizer = AdamW(p, 0.9, 0.99, 0.1)
    optimizer.step(grads.flat, 1e-2)
    before, m, v = p.flat.copy(), optimizer.m.copy(), optimizer.v.copy()
    grads.flat[17] = bad
    with np.errstate(invalid="ignore"):
        scale = clip_scale(norm_of(grads), 1.0)
        assert scale == 0
        optimizer.step(grads.flat, 1e-2, scale)
    np.testing.assert_array_equal(p.flat, before)
    np.testing.assert_allclose(optimizer.m, m * np.float32(0.9), rtol=1e-5)    # they fade
    np.testing.assert_allclose(optimizer.v, v * np.float32(0.99), rtol=1e-5)
    grads.flat[17] = 0
    optimizer.step(grads.flat, 1e-2)
    assert np.isfinite(p.flat).all() and not np.array_equal(p.flat, before)


@pytest.fixture
def chunked():
    """-> function that sets the CPU's chunk size."""
    yield lambda chunk: register(replace(CPU, chunk=chunk))
    register(CPU)


def test_results_do_not_depend_on_chunk_size(chunked):
    results = []
    for chunk in (10**9, 7, 1000):
        chunked(chunk)
        p, grads = state()
        AdamW(p, 0.9, 0.99, 0.1).step(grads.flat, 1e-2)
        results.append((p.flat.copy(), norm_of(grads)))
    for flat, norm in results[1:]:
        np.testing.assert_array_equal(flat, results[0][0])
        assert norm == pytest.approx(results[0][1], rel=1e-14)


def test_dtype_is_kept():
    p, grads = state("float32")
    optimizer = AdamW(p, 0.9, 0.99, 0.1)
    optimizer.step(grads.flat, 1e-2, one(0.5))
    assert {p.flat.dtype, optimizer.m.dtype, optimizer.v.dtype} == {np.dtype("float32")}
    assert Muon(p, 0.95, 0.1, 1.0).m.dtype == np.float32


def test_norm_is_over_all_gradients():
    _, grads = state()
    parts = [np.linalg.norm(g) for g in grads.values()]
    assert norm_of(grads) == pytest.approx(math.hypot(*parts), rel=1e-12)


def test_norm_of_huge_finite_gradients_is_finite():
    _, grads = state("float32")
    grads.flat[...] = 1e30
    assert norm_of(grads) == pytest.approx(1e30 * grads.flat.size**0.5, rel=1e-6)


@pytest.mark.parametrize(("norm", "limit", "scale"), [
    (0.5, 1.0, 1.0), (4.0, 1.0, 1 / (4 + 1e-6)), (1e6, 2.0, 2 / (1e6 + 1e-6)), (4.0, 0.0, 1.0),
    (0.0, 1.0, 1.0), (1e-6, 1e-7, 1e-7 / 2e-6),
    (math.inf, 1.0, 0.0), (math.nan, 1.0, 0.0), (math.nan, 0.0, 0.0),
])
def test_clipping_limits_the_norm(norm, limit, scale):
    found = clip_scale(one(norm), limit)
    assert found.dtype == np.float64
    assert found == pytest.approx(scale, rel=1e-12)
    if limit and math.isfinite(norm):
        assert found * norm <= limit


def test_rate_rises_decays_and_stays():
    c = TrainingConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=9, lr_decay_iters=109,
                       max_iters=200)
    assert learning_rate(0, c) == pytest.approx(0.1)
    assert learning_rate(8, c) == pytest.approx(0.9)
    assert learning_rate(9, c) == pytest.approx(1.0)
    assert learning_rate(59, c) == pytest.approx(0.55)        # half-way down the cosine
    assert learning_rate(109, c) == learning_rate(199, c) == 0.1
    rates = [learning_rate(step, c) for step in range(200)]
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


def test_rate_if_warm_up_lasts_until_the_decay_ends():
    c = TrainingConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=5, lr_decay_iters=5)
    assert learning_rate(4, c) == pytest.approx(5 / 6)
    assert learning_rate(5, c) == 0.1


def test_rate_without_warm_up_or_decay_is_constant():
    c = TrainingConfig(learning_rate=0.3, min_lr=0.3, warmup_iters=0)
    assert {learning_rate(step, c) for step in range(3000)} == {0.3}


# --- Muon -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5), (1, 7), (7, 1)])
def test_orthogonal_keeps_singular_vectors_and_equalises_singular_values(shape):
    g = np.random.default_rng(0).standard_normal(shape) * 1e-3
    left, sizes, right = np.linalg.svd(g, full_matrices=False)
    made = left.T @ orthogonal(g) @ right.T               # in the singular vectors of g: diagonal
    found = np.diag(made)
    np.testing.assert_allclose(made, np.diag(found), atol=1e-12)
    assert (0.65 < found[sizes > 0.01 * sizes[0]]).all() and (found < 1.25).all()


def test_gradient_of_zero_stays_zero_and_finite():
    assert not orthogonal(np.zeros((3, 4), np.float32)).any()


def test_muon_follows_its_formula():
    p, grads = state()
    muon = Muon(p, 0.95, 0.1, relative_lr=5.0)
    w, m = {n: p[n].copy() for n in p}, dict.fromkeys(p, 0.0)
    for _ in range(3):
        grads.flat[...] *= -1.7
        muon.step(grads.flat, 1e-2, one(0.5))
        for name in p:
            if not name.startswith("h.0.") or p[name].ndim == 1:
                continue
            g = grads[name] * 0.5
            m[name] = 0.95 * m[name] + 0.05 * g
            u = 0.05 * g + 0.95 * m[name]
            parts = np.split(u, 3, axis=1) if "c_attn" in name else [u]      # q, k and v
            wide = math.sqrt(max(1, parts[0].shape[1] / u.shape[0]))
            move = np.concatenate([wide * orthogonal(part) for part in parts], axis=1)
            w[name] = w[name] - 0.05 * (0.1 * w[name] + move)
    for name in p:
        np.testing.assert_allclose(p[name], w[name], rtol=1e-12, err_msg=name)


def test_muon_update_has_the_direction_of_pytorch(torch):
    """PyTorch's own computes in bfloat16."""
    g = np.random.default_rng(0).standard_normal((16, 48)).astype(np.float32)
    w = torch.nn.Parameter(torch.zeros(16, 48))
    w.grad = torch.tensor(g)
    torch.optim.Muon([w], lr=1.0, weight_decay=0.0, momentum=0.95).step()
    theirs = -w.detach().numpy()
    ours = orthogonal(g)
    cosine = (ours * theirs).sum() / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert cosine > 0.999


def test_nonfinite_step_leaves_matrices_and_momentum_finite():
    p, grads = state("float32")
    muon = Muon(p, 0.95, 0.1, 1.0)
    grads.flat[...] = np.inf
    before = p.flat.copy()
    with np.errstate(invalid="ignore"):
        muon.step(grads.flat, 1e-2, one(0))
    np.testing.assert_array_equal(p.flat, before)
    assert not muon.m.any()


OPTIMIZERS = {
    "adamw": lambda p: AdamW(p, 0.9, 0.99, 0.1),
    "muon": lambda p: OptimizerGroup([Muon(p, 0.95, 0.1, 2.0),
                                      AdamW(p, 0.9, 0.99, 0.1, start=p.n_matrices)]),
}


@pytest.mark.parametrize(("short", "explicit"), [
    (lambda p: AdamW(p), lambda p: AdamW(p, 0.9, 0.99, 0.1, 1e-8, 0)),
    (lambda p: Muon(p), lambda p: Muon(p, 0.95, 0.1, 1.0)),
], ids=["adamw", "muon"])
def test_defaults_are_those_of_the_documentation(short, explicit):
    results = []
    for make in (short, explicit):
        p, grads = state()
        optimizer = make(p)
        for _ in range(3):
            optimizer.step(grads.flat, 1e-2)
        results.append(p.flat.copy())
    np.testing.assert_array_equal(*results)


def test_group_steps_each_of_its_optimizers_with_rate_and_scale():
    results = []
    for together in (True, False):
        p, grads = state()
        group = OPTIMIZERS["muon"](p)
        for optimizer in [group] if together else group.optimizers:
            optimizer.step(grads.flat, 1e-2, one(0.25))
        results.append(p.flat.copy())
    np.testing.assert_array_equal(*results)
    p, grads = state()
    OPTIMIZERS["muon"](p).step(grads.flat, 1e-2)          # and the scale matters
    assert not np.array_equal(p.flat, results[0])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_of_all_ranks_cover_every_parameter_once(name, size):
    p, _ = state()
    optimizer, times = OPTIMIZERS[name](p), np.zeros(p.flat.size, int)
    for rank in range(size):
        optimizer.set_rank(rank, size)
        for part in optimizer.shard:
            times[part] += 1
    assert (times == 1).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_all_ranks_combine_to_the_whole_step(name):
    results = []
    for size in (1, 3):
        p, grads = state("float32")
        ranks = [OPTIMIZERS[name](p) for _ in range(size)]        # each has its own shard of state
        for rank, optimizer in enumerate(ranks):
            optimizer.set_rank(rank, size)
        for _ in (1, 2):
            for optimizer in ranks:
                optimizer.step(grads.flat, 1e-2)
        results.append(p.flat.copy())
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_of_the_state_are_what_a_step_of_that_rank_changes(name, size):
    for rank in range(size):
        p, grads = state()
        optimizer = OPTIMIZERS[name](p)
        optimizer.set_rank(rank, size)
        optimizer.step(grads.flat, 1e-2)
        for shape, array, slices in optimizer.whole_state.values():
            assert array.shape == shape and len(slices) == size
            inside = np.zeros(shape, bool)
            for part in slices[rank]:
                inside[part] = True
            np.testing.assert_array_equal(array != 0, inside)
        assert optimizer.whole_state.keys() == optimizer.state.keys()


class OneOf(Single):
    """A rank with memory of its own. An optimiser divides each of three ranges among the ranks."""

    shares_memory = False

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def ranges(self, params):
        n = params.n_matrices
        return [slice(params.n_decayed, params.n_trainable), slice(0, n),
                slice(n, params.n_decayed)]

    def scatter(self, whole, array, slices):
        at = 0
        for part in slices[self.rank]:
            array[at:at + part.stop - part.start] = whole[part]
            at += part.stop - part.start
        assert at == array.size


KINDS = {
    "adamw": lambda p, comm: AdamW(p, comm=comm),
    "muon": lambda p, comm: OptimizerGroup([Muon(p, comm=comm),
                                            AdamW(p, start=p.n_matrices, comm=comm)]),
}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", KINDS)
def test_ranks_with_memory_of_their_own_keep_the_state_of_their_shards(name, size):
    """Together they do the whole step, and a whole state is divided among them."""
    alone, grads = state("float64")
    whole = KINDS[name](alone, None)
    together, _ = state("float64")
    ranks = [KINDS[name](together, OneOf(rank, size)) for rank in range(size)]
    divided = KINDS[name](alone, None)
    divided.set_rank(0, size, OneOf(0, size).ranges(alone))
    assert all(optimizer.shards == divided.shards for optimizer in ranks)
    assert name == "muon" or len(divided.shard) == 3             # a part of each range
    lengths = [sum(array.size for array in optimizer.state.values()) for optimizer in ranks]
    assert sum(lengths) == sum(array.size for array in whole.state.values())
    assert max(lengths) < 1.5 * sum(lengths) / size
    for _ in range(3):
        whole.step(grads.flat, 1e-2)
        for optimizer in ranks:
            optimizer.step(grads.flat, 1e-2)
    np.testing.assert_array_equal(together.flat, alone.flat)
    for rank, optimizer in enumerate(ranks):
        assert optimizer.shard == optimizer.shards[rank]
        loaded = {key: array + 7 for key, array in whole.state.items()}
        for key, (shape, array, slices) in optimizer.whole_state.items():
            assert shape == whole.state[key].shape
            own = [whole.state[key][part] for part in slices[rank]]
            np.testing.assert_array_equal(array, np.concatenate([[], *own]))
        optimizer.load_state(loaded, 9)
        for key, (_, array, slices) in optimizer.whole_state.items():
            own = [loaded[key][part] for part in slices[rank]]
            np.testing.assert_array_equal(array, np.concatenate([[], *own]))


def test_group_has_the_shards_of_its_optimisers_from_the_start():
    p, _ = state()
    group = KINDS["muon"](p, None)
    assert sorted((s.start, s.stop) for s in group.shard) == sorted(
        (s.start, s.stop) for o in group.optimizers for s in o.shard)
    assert group.shards == [group.shard] and len(group.shard) > 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loaded_state_continues_identically(name):
    p, grads = state()
    first = OPTIMIZERS[name](p)
    first.step(grads.flat, 1e-2)
    other, _ = state()
    other.flat[...] = p.flat
    second = OPTIMIZERS[name](other)
    second.load_state({name: array.copy() for name, array in first.state.items()}, 1)
    for optimizer in (first, second):
        optimizer.step(grads.flat, 1e-2)
    np.testing.assert_array_equal(p.flat, other.flat)


def test_state_has_the_names_used_in_checkpoints():
    p, _ = state()
    assert OPTIMIZERS["adamw"](p).state.keys() == {"adamw.m", "adamw.v"}
    assert OPTIMIZERS["muon"](p).state.keys() == {"muon.m", "adamw.m", "adamw.v"}


def test_state_can_be_in_shared_memory():
    p, shared = state()[0], []

    class Sharing(Single):
        size = 2

        def share(self, array):
            shared.append(array.copy())
            return shared[-1]

    comm = Sharing()
    optimizer = OptimizerGroup([Muon(p, comm=comm), AdamW(p, start=p.n_matrices, comm=comm)])
    assert {id(array) for array in optimizer.state.values()} == set(map(id, shared))
    n = p.n_trainable - p.n_matrices
    assert [array.size for array in shared] == [p.n_matrices, n, n]         # of both ranks


@pytest.mark.parametrize(("decay", "hold", "expected"), [
    ("linear", 0.5, {0: 1 / 11, 9: 10 / 11, 10: 1.0, 49: 1.0, 50: 1.0, 75: 0.55, 100: 0.1}),
    ("linear", 0.0, {10: 1.0, 55: 0.55, 99: 0.11, 1000: 0.1}),
    ("cosine", 0.5, {49: 1.0, 60: 0.9140576474687264, 75: 0.55, 100: 0.1}),
    ("linear", 1.0, {10: 1.0, 99: 1.0, 100: 0.1}),
])
def test_rate_rises_holds_and_falls(decay, hold, expected):
    c = TrainingConfig(max_iters=100, warmup_iters=10, learning_rate=1.0, min_lr=0.1, decay=decay,
                       hold=hold)
    assert {step: learning_rate(step, c) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(3, 3), (3, 13), (13, 3)])
def test_orthogonal_maps_singular_values_by_five_iterations(shape):
    sizes = np.array([1e-3, 4e-4, 2e-5])
    s = sizes / (np.sqrt((sizes**2).sum()) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    g, expected = np.zeros(shape), np.zeros(shape)
    g[range(3), range(3)], expected[range(3), range(3)] = sizes, s
    np.testing.assert_allclose(orthogonal(g), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("n_layer", "size", "loads"), [
    (1, 2, [320, 448]), (1, 3, [256, 256, 256]), (2, 3, [512, 512, 512]),
    (3, 4, [512, 576, 576, 640]),
])
def test_muon_balances_the_load_of_ranks(n_layer, size, loads):
    muon, found = Muon(GPT(replace(CONFIG, n_layer=n_layer)).params), []
    for rank in range(size):
        muon.set_rank(rank, size)
        found.append(sum(s.stop - s.start for s in muon.shard))
    assert sorted(found) == loads


@pytest.mark.parametrize("start", [0, 100])
def test_adamw_divides_the_load_equally(start):
    p, _ = state()
    adamw = AdamW(p, start=start)
    assert all(mean.shape == (p.flat.size - start,) for mean in adamw.state.values())
    lengths = []
    for rank in range(3):
        adamw.set_rank(rank, 3)
        assert all(start <= s.start <= s.stop <= p.flat.size for s in adamw.shard)
        lengths.append(sum(s.stop - s.start for s in adamw.shard))
    assert max(lengths) - min(lengths) <= 1 and sum(lengths) == p.flat.size - start


def test_squared_norms_of_shards_sum_to_the_whole():
    p, grads = state()
    adamw, parts = AdamW(p), []
    for rank in range(3):
        adamw.set_rank(rank, 3)
        parts.append(squared_norm(grads.flat, adamw.shard))
    assert sum(parts) == pytest.approx(squared_norm(grads.flat), rel=1e-14)
    assert len({float(part) for part in parts}) == 3


@pytest.mark.parametrize(("shape", "bound"), [
    ((64, 64), 1e-4), ((128, 128), 1e-4),
    ((128, 512), 5e-3), ((512, 128), 5e-3), ((96, 384), 5e-3), ((64, 256), 5e-3), ((8, 64), 5e-3),
    ((1000, 4), 5e-3),
])
@pytest.mark.parametrize("smallest", [1e-3, 1e-6])
def test_rounding_of_an_ill_conditioned_matrix_is_within_the_documented_bound(shape, bound,
                                                                              smallest):
    n, normal = min(shape), np.random.default_rng(0).standard_normal
    left, right = (np.linalg.qr(normal((size, n)))[0] for size in shape)
    g = ((left * np.geomspace(1, smallest, n)) @ right.T).astype(np.float32)
    exact = orthogonal(g.astype(np.float64))
    assert np.linalg.norm(orthogonal(g) - exact) < bound * np.linalg.norm(exact)


@pytest.mark.parametrize("maker", [AdamW, Muon])
def test_device_that_queues_work_updates_as_a_cpu_does(maker):
    """Without looking at the scale. Scale 0 is for gradients that are not finite."""
    found = {}
    with double.installed() as gpu, np.errstate(invalid="ignore"):
        assert gpu.queues and not CPU.queues
        for device in (CPU, gpu):
            p = GPT(CONFIG, device=device, dtype="float64").params
            optimizer = maker(p)
            g = np.random.default_rng(0).standard_normal(p.flat.size)
            for gradient, scale in ((g, 0.5), (g * math.inf, 0.0), (-g, 2.0)):
                scale = device.to_device(np.float64(scale))
                gradient = device.to_device(gradient)
                with double.no_waiting():
                    optimizer.step(gradient, 1e-2, scale)
            found[device.name] = device.to_host(p.flat)
    assert np.isfinite(found["cpu"]).all()
    np.testing.assert_allclose(found["gpu"], found["cpu"], rtol=0, atol=1e-12)
