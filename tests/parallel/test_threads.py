"""How many threads BLAS gets: in training by the sizes alone, in generation also by the load."""

import builtins
import io
from types import SimpleNamespace

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from npgpt import host
from npgpt.host import Load
from npgpt.parallel import choose_threads
from npgpt.parallel import threads as module
from npgpt.parallel.threads import Generating, free_threads

LARGE = 10**9


def blas_threads():
    """The most threads of a BLAS library in this process."""
    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


def test_training_threads_follow_from_the_sizes():
    assert choose_threads(1, 768, 128) == 1             # laptop, one process
    assert choose_threads(1, 256, 768) is None          # GPT-2
    assert choose_threads(1, 1024, 384) is None         # baby, a batch of 2
    assert choose_threads(1, 50, 1000) == 1
    assert choose_threads(1, 51, 1000) is None
    assert choose_threads(2, 256, 768) == 1             # the cores are taken by ranks


def test_generation_leaves_other_programs_their_cores():
    assert [free_threads(2, 2, others) for others in (0.0, 0.4, 0.6, 1.0, 2.0)] == [2, 2, 1, 1, 1]
    assert [free_threads(4, 8, others) for others in (0.0, 3.9, 5.1, 9.0)] == [4, 4, 3, 1]
    assert free_threads(3, 2, None) == 3                # unknown


class Clock:
    """The load of a machine of 2 cores, and a clock, as a test sets them."""

    cores = 2

    def __init__(self):
        self.now, self.busy, self.looks = 100.0, 0.0, 0

    def others(self):
        self.looks += 1
        return self.busy

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    with threadpool_limits(2):
        if blas_threads() != 2:
            pytest.skip("BLAS has one thread here")
        yield found


def test_generation_with_a_small_model_has_one_thread_whatever_the_load(clock):
    chosen = Generating(clock)
    chosen.begin(module.SMALL_MODEL - 1)
    assert blas_threads() == 1
    clock.now += 10
    chosen.look()
    assert (blas_threads(), clock.looks) == (1, 0)


def test_generation_with_a_large_model_follows_the_load_now_and_then(clock):
    chosen = Generating(clock)
    chosen.begin(module.SMALL_MODEL)
    assert blas_threads() == 2
    clock.busy = 1.0
    chosen.look()
    assert (blas_threads(), clock.looks) == (2, 1)      # not after every token
    clock.now += module.PERIOD
    chosen.look()
    assert blas_threads() == 1
    clock.busy, clock.now = 0.0, clock.now + module.PERIOD
    chosen.look()
    assert blas_threads() == 2


def test_generation_has_no_more_threads_than_before(clock):
    with threadpool_limits(1):
        Generating(clock).begin(LARGE)
        assert blas_threads() == 1


@pytest.fixture
def stat(monkeypatch):
    """-> function that sets the time, /proc/stat in hundredths of a second, and this process's
    seconds."""
    def at(now, line, own):
        def fake(path, *arguments, **options):
            if path != "/proc/stat":
                return builtins.open(path, *arguments, **options)
            if line is None:
                raise FileNotFoundError(path)
            return io.StringIO(f"cpu  {line}\ncpu0 {line}\n")

        monkeypatch.setattr(host, "open", fake, raising=False)
        monkeypatch.setattr(host, "time", SimpleNamespace(monotonic=lambda: now,
                                                          process_time=lambda: own))
        monkeypatch.setattr(host.os, "sysconf", lambda name: 100)
    return at


def test_load_is_what_all_but_this_process_take_between_two_looks(stat):
    #                user nice system idle iowait irq softirq steal guest guest_nice
    stat(10.0, "1000 10 100 5000 50 1 2 20 7 0", own=3.0)
    load = Load()
    stat(12.0, "1200 30 150 6000 90 3 4 46 9 0", own=4.0)         # 3 s busy, one of them this
    assert load.others() == pytest.approx(1.0)
    stat(14.0, "1200 30 150 7000 90 3 4 46 9 0", own=4.5)         # rounded to ticks: less than none
    assert load.others() == 0


def test_load_is_unknown_where_the_system_does_not_tell(stat):
    stat(10.0, None, 0.0)
    load = Load()
    assert load.others() is None
    stat(12.0, "1000 10 100 5000 50 1 2 20 7 0", own=0.0)
    assert load.others() is None                                  # nothing to compare with
    stat(13.0, "1050 10 100 5000 50 1 2 20 7 0", own=0.0)
    assert load.others() == pytest.approx(0.5)
