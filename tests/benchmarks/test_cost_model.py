"""The cost model of data parallelism: its fit, its predictions, and where they lead."""

import itertools
from dataclasses import replace

import pytest

from benchmarks.cost_model import (
    Fit,
    Job,
    Network,
    Point,
    collective_time,
    efficiency,
    fastest,
    fit,
    last_efficient,
    step_time,
)

NETWORK = Network("10 GbE", 30e-6, 1e-6, 1.25e9)
JOB = Job(500_000_000, 40, 0.3)


def points(true, ranks=(2, 4)):
    """What would be measured if the model were exact."""
    for n in ranks:
        for latency, bandwidth in ((0.0, 25e6), (5e-3, 12.5e6)):
            for size, buckets in ((2**20, 1), (2**22, 1), (2**22, 16)):
                network = true.network("", latency, bandwidth)
                yield Point(n, latency, bandwidth, size, buckets,
                            collective_time(network, n, size, buckets))


def test_fit_finds_latency_overhead_and_bandwidth_of_exact_times():
    true = Fit(base=2e-3, trips=3.0, overhead=5e-5, share=0.9)
    found = fit(list(points(true)))
    for name, value in vars(true).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name


def test_fit_has_no_negative_term():
    exact = list(points(Fit(base=0.0, trips=2.0, overhead=0.0, share=0.9)))
    faster = [replace(p, seconds=p.seconds * (0.97 if p.buckets > 1 else 1.0)) for p in exact]
    assert min(vars(fit(faster)).values()) >= 0


def test_fit_without_latencies_leaves_their_term_at_zero():
    true = Fit(base=2e-3, trips=0.0, overhead=5e-5, share=0.9)
    found = fit([p for p in points(true) if not p.latency])
    assert found.trips == 0
    assert found.base == pytest.approx(2e-3)


def test_fit_with_one_number_of_buckets_gives_one_of_latency_and_overhead():
    true = Fit(base=2e-3, trips=0.0, overhead=1e-3, share=0.9)
    found = fit([p for p in points(true) if p.buckets == 1])
    assert min(found.base, found.overhead) == 0
    assert found.base + found.overhead == pytest.approx(3e-3)


def test_times_that_grow_faster_than_the_bytes_have_no_latency():
    found = fit([Point(2, 0.0, 1e6, size, 1, seconds) for size, seconds in
                 ((10**6, 0.5), (2 * 10**6, 1.1))])
    assert (found.base, found.trips, found.overhead) == (0, 0, 0)
    assert 0.9 < found.share < 1


def test_fit_predicts_a_number_of_ranks_and_a_network_that_it_has_not_seen():
    true = Fit(base=1e-3, trips=3.0, overhead=5e-5, share=0.9)
    found = fit(list(points(true)))
    expected, predicted = (collective_time(f.network("", 1e-3, 5e6), 16, 10**7, 8)
                           for f in (true, found))
    assert predicted == pytest.approx(expected, rel=1e-6)


def test_two_ranks_exchange_half_of_the_buffer_in_one_round():
    assert collective_time(Network("", 0.25, 0.0, 100.0), 2, 1000) == 0.25 + 5.0


def test_buckets_share_the_latency_but_not_the_overhead():
    one, many = (collective_time(Network("", 1.0, 0.125, 1e9), 5, 0, b) for b in (1, 8))
    assert many - one == 4 * 7 * 0.125


def test_a_step_of_one_rank_only_computes():
    assert step_time(NETWORK, 1, JOB) == JOB.compute
    assert efficiency(NETWORK, 1, JOB) == 1


def test_a_step_sums_gradients_and_gathers_parameters():
    one = collective_time(NETWORK, 8, JOB.bytes, JOB.buckets)
    assert step_time(NETWORK, 8, JOB) == pytest.approx(JOB.compute + 2 * one)


def test_efficiency_falls_with_ranks():
    found = [efficiency(NETWORK, 2**power, JOB) for power in range(11)]
    assert all(later < earlier for earlier, later in itertools.pairwise(found))


def test_overlap_hides_no_more_than_the_sums_and_two_thirds_of_the_computing():
    overlapping = replace(JOB, overlap=True)
    saved = step_time(NETWORK, 8, JOB) - step_time(NETWORK, 8, overlapping)
    assert saved == pytest.approx(JOB.compute * 2 / 3)
    long = replace(overlapping, compute=100.0)
    one = collective_time(NETWORK, 8, JOB.bytes, JOB.buckets)
    assert step_time(NETWORK, 8, long) == pytest.approx(100 + one)


def test_last_efficient_is_the_last_power_of_two_above_the_bar():
    job = replace(JOB, compute=0.85)
    most = last_efficient(NETWORK, job)
    assert 1 < most < 1024
    assert efficiency(NETWORK, most, job) >= 0.5 > efficiency(NETWORK, 2 * most, job)
    assert last_efficient(NETWORK, replace(JOB, compute=1e-6)) == 1
    assert last_efficient(NETWORK, replace(JOB, compute=1e6)) == 1024


def test_fastest_is_the_number_of_ranks_after_which_latency_costs_more_than_is_saved():
    job = Job(0, 0, 1.0)
    ranks, seconds = fastest(Network("", 1 / 2048, 0.0, 1e9), job)     # 1 / N + 2 (N - 1) / 2048
    assert (ranks, seconds) == (32, pytest.approx(1 / 32 + 31 / 1024))
