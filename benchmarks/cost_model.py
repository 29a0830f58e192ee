"""What a data-parallel step costs: latency, bandwidth, bytes. Pure functions.

The gradients are summed by a reduce-scatter and the parameters gathered by an all-gather. MPICH
does both in N - 1 rounds (pairwise exchange; a ring), in each of which a rank sends an N-th of the
buffer to another one, in as many messages as there are buckets. For N ranks, n bytes and B buckets,
each of the two takes

    (N - 1) (alpha + B o) + (N - 1) / N * n / bandwidth

alpha: the latency of a round, which the buckets share because all are in flight at once. o: the
overhead of a message, the work of sending and receiving it. A step takes

    compute + max(0, reduce-scatter - hidden) + all-gather

hidden: how much of the backward the sums can be hidden behind; 0 without overlap.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-12             # further terms must explain more than this


@dataclass(frozen=True)
class Network:
    """Links that are all alike."""

    name: str
    alpha: float             # seconds
    overhead: float          # seconds
    bandwidth: float         # bytes per second, of a rank, in each direction


@dataclass(frozen=True)
class Job:
    """What a step has to compute and to send. By default every rank has the same work whatever
    their number (weak scaling)."""

    bytes: int               # of the gradients
    buckets: int
    compute: float           # seconds of a step of one rank
    overlap: bool = False    # whether sums go on during the backward, two thirds of the computing


@dataclass(frozen=True)
class Point:
    """One measured collective, on links of a nominal latency and bandwidth."""

    ranks: int
    latency: float           # seconds
    bandwidth: float         # bytes per second
    bytes: int
    buckets: int
    seconds: float


@dataclass(frozen=True)
class Fit:
    """How what is measured relates to what is nominal."""

    base: float              # seconds of a round on links without latency
    trips: float             # how many times the latency a round takes
    overhead: float          # seconds of a message
    share: float             # of the nominal bandwidth

    def network(self, name, latency, bandwidth):
        """-> the Network of links of a nominal latency and bandwidth."""
        return Network(name, self.base + self.trips * latency, self.overhead,
                       self.share * bandwidth)


def collective_time(network, ranks, size, buckets=1):
    """-> seconds of a reduce-scatter, or an all-gather, of `size` bytes in `buckets`."""
    rounds = ranks - 1
    return (rounds * (network.alpha + buckets * network.overhead)
            + rounds / ranks * size / network.bandwidth)


def step_time(network, ranks, job):
    """-> seconds of a step."""
    one = collective_time(network, ranks, job.bytes, job.buckets)
    hidden = job.compute * 2 / 3 if job.overlap else 0.0
    return job.compute + max(0.0, one - hidden) + one


def efficiency(network, ranks, job):
    """-> the share of a step in which a rank computes."""
    return job.compute / step_time(network, ranks, job)


def last_efficient(network, job, at_least=0.5, most=1024):
    """-> the largest power of two of ranks, up to `most`, to which the efficiency stays above
    `at_least`."""
    found = 1
    while found < most and efficiency(network, 2 * found, job) >= at_least:
        found *= 2
    return found


def fastest(network, job, most=1024):
    """-> the number of ranks, a power of two, with which a batch of fixed size is done soonest, and
    the seconds. job: with the compute of all of the batch, which the ranks divide."""
    times = {}
    for ranks in (2**power for power in range(int(math.log2(most)) + 1)):
        part = Job(job.bytes, job.buckets, job.compute / ranks, job.overlap)
        times[ranks] = step_time(network, ranks, part)
    best = min(times, key=times.get)
    return best, times[best]


def fit(points):
    """Points -> Fit, with the smallest sum of squares of the relative errors, no term below 0. A
    term that the points do not tell apart is 0."""
    rows = np.array([[p.ranks - 1, (p.ranks - 1) * p.latency, (p.ranks - 1) * p.buckets,
                      (p.ranks - 1) / p.ranks * p.bytes / p.bandwidth] for p in points])
    rows /= np.array([[p.seconds] for p in points])
    best, least = None, math.inf
    for chosen in itertools.chain.from_iterable(
            itertools.combinations(range(4), terms) for terms in (1, 2, 3, 4)):
        part = rows[:, chosen]
        values = np.linalg.lstsq(part, np.ones(len(points)), rcond=None)[0]
        error = ((part @ values - 1)**2).sum()
        if (values >= 0).all() and error < least - ROUNDING:
            best, least = dict(zip(chosen, values.tolist())), error
    base, trips, overhead, slowness = (best.get(term, 0.0) for term in range(4))
    return Fit(base, trips, overhead, 1 / slowness if slowness else math.inf)
