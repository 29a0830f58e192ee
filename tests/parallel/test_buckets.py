"""Which sums over the ranks start when, without ranks."""

import numpy as np
import pytest

from npgpt.layers import Key
from npgpt.models.parameters import Param, Parameters
from npgpt.optim import AdamW, Muon, OptimizerGroup
from npgpt.parallel import buckets
from tests.models.families import VARIANTS, config_of, tiny

SMALL = 300          # numbers in a bucket


def parts(model, grads):
    """A backward of the model."""
    idx = np.random.default_rng(0).integers(11, size=(2, 8))
    model.loss_and_grads(idx, idx, Key(1, 1), into=grads)


def optimizer_of(params, size, ranges):
    found = OptimizerGroup([Muon(params), AdamW(params, start=params.n_matrices)])
    found.set_rank(0, size, ranges)
    return found


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("size", [1, SMALL, 10**9])
def test_buckets_cover_every_gradient_once_with_whole_parameters_of_one_group(name, options, size):
    grads = tiny(name, **options).gradients()
    found = buckets.buckets(grads, size)
    covered = np.zeros(grads.flat.size, int)
    for bucket in found:
        covered[bucket.start:bucket.stop] += 1
        assert len({grads.architecture[name].group for name in bucket.names}) == 1
        assert bucket.stop - bucket.start == sum(grads[name].size for name in bucket.names)
        without_last = sum(grads[name].size for name in bucket.names[:-1])
        assert without_last < size
    assert (covered == 1).all()
    if size == 10**9:
        assert len(found) == 3                       # one for each group


def parameters(*widths, frozen=()):
    """-> Parameters of vectors of these widths, which the model uses in this order."""
    architecture = {f"a{n}.bias": Param((width,), "vector", trainable=n not in frozen)
                    for n, width in enumerate(widths)}
    return Parameters(architecture, np.zeros(sum(widths)))


@pytest.mark.parametrize(("widths", "size", "expected"), [
    ((2, 2, 2, 2), 4, [(4, 8), (0, 4)]), ((2, 2, 2, 2), 3, [(4, 8), (0, 4)]),
    ((2, 2, 2, 2), 5, [(6, 8), (0, 6)]), ((3, 9, 1, 1, 1), 3, [(12, 15), (3, 12), (0, 3)]),
    ((5, 4), 1, [(5, 9), (0, 5)]), ((1, 1), None, [(0, 2)]),
])
def test_bucket_is_full_from_a_size_on(widths, size, expected):
    found = buckets.buckets(parameters(*widths), size)
    assert [(bucket.start, bucket.stop) for bucket in found] == expected


def test_frozen_parameters_are_in_no_bucket():
    found = buckets.buckets(parameters(3, 4, 5, frozen=[1]), 100)
    assert [bucket.names for bucket in found] == [("a0.bias", "a2.bias")]


def test_runs_of_the_whole_buffer_begin_at_its_start():
    shards = [[slice(0, 2), slice(6, 7)], [slice(2, 5)], [slice(5, 6), slice(7, 9)]]
    assert buckets.runs(shards) == [
        [(0, slice(0, 2)), (1, slice(2, 5)), (2, slice(5, 6))],
        [(0, slice(6, 7)), (2, slice(7, 9))]]
    assert buckets.runs(shards, 5, 7) == [[(2, slice(5, 6))], [(0, slice(6, 7))]]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_runs_of_a_buckets_pieces_cover_it_in_order(name, options, ranks):
    params = tiny(name, **options).params
    for bucket in (found := buckets.buckets(params, SMALL)):
        shards = optimizer_of(params, ranks, [slice(b.start, b.stop) for b in found]).shards
        at = bucket.start
        for pieces in buckets.runs(shards, bucket.start, bucket.stop):
            assert [rank for rank, _ in pieces] == sorted({rank for rank, _ in pieces})
            for rank, part in pieces:
                assert part in shards[rank] and part.start == at
                at = part.stop
        assert at == bucket.stop


def started(name, passes, monkeypatch, **options):
    """-> the starts of the runs whose sums have been started, after each gradient that a backward
    adds, and at the end."""
    monkeypatch.setattr(buckets, "SIZE", SMALL)
    model, seen, now, summed, driven = tiny(name, **options), [], [], [], []
    grads = model.gradients()
    ranges = [slice(b.start, b.stop) for b in buckets.buckets(grads)]
    optimizer = AdamW(model.params)
    optimizer.set_rank(0, 2, ranges)

    def start(pieces):
        now.append(pieces[0][1].start)
        where = slice(now[-1], pieces[-1][1].stop)
        summed.append((where, reduction.flat[where].copy()))

    reduction = buckets.Reduction(grads, optimizer.shards, start, lambda: driven.append(1))
    add = grads.add
    monkeypatch.setattr(grads, "add", lambda *given: (add(*given), seen.append(list(now))))
    reduction.begin(passes)
    for _ in range(passes):
        parts(model, grads)
    reduction.finish()
    assert len(driven) == (len(grads) if passes else 0)
    for where, gradients in summed:                  # what was added to later is not in the sum
        np.testing.assert_array_equal(gradients, grads.flat[where])
    return seen, now, ranges


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_sums_start_during_the_backward_in_one_order_whatever_a_rank_computes(name, monkeypatch):
    seen, order, ranges = started(name, 1, monkeypatch, n_layer=4)
    assert sorted(order) == sorted(r.start for r in ranges)          # each of them, once
    assert seen[0] == [] and len(seen[len(seen) // 2]) > 1           # long before the end
    seen, three, _ = started(name, 3, monkeypatch, n_layer=4)
    assert three == order and seen[2 * len(seen) // 3 - 1] == []     # not before the last backward
    assert started(name, 0, monkeypatch, n_layer=4)[1] == order      # a rank without rows


def test_sums_of_the_last_block_start_first(monkeypatch):
    _, order, _ = started("gpt", 1, monkeypatch, n_layer=3)
    where = tiny("gpt", n_layer=3).params.slices
    last, first = (where[f"h.{n}.attn.c_attn.weight"] for n in (2, 0))
    assert order.index(last.start) < order.index(first.start)


def test_sums_of_gradients_that_nothing_was_added_to_are_of_zeros(monkeypatch):
    model = tiny("gpt")
    grads = model.gradients(np.full(model.params.n_trainable, 7.0, np.float32))
    grads.flat[...] = 7
    found = []
    reduction = buckets.Reduction(grads, [[slice(0, grads.flat.size)]],
                                  lambda pieces: found.append(reduction.flat[pieces[0][1]].copy()),
                                  lambda: None)
    reduction.begin(0)
    reduction.finish()
    assert found and not any(values.any() for values in found)


def test_config_without_ties_has_a_bucket_of_the_head_first(monkeypatch):
    params = tiny("gpt", tie_weights=False).params
    assert buckets.buckets(params, SMALL)[0].names == ("lm_head.weight",)
    assert config_of("gpt").architecture()["wte.weight"].uses == 2
