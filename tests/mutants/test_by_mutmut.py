"""The share of mutmut's mutants that a run tries."""

import fnmatch
import random

import pytest

from tests.mutants.by_mutmut import endings, patterns

NUMBERS = range(1, 1001)


def chosen(words):
    """The numbers of the mutants that these words of mutmut's command line choose."""
    return {n for n in NUMBERS
            if any(fnmatch.fnmatch(f"train.x_train__mutmut_{n}", word) for word in words)}


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1, 0.3, 0.99])
def test_share_is_that_of_the_numbers_below_100_and_above(share):
    expected = max(1, round(100 * share))
    for seed in range(20):
        found = chosen(patterns(endings(share, random.Random(seed))))
        for start in range(1, 1000, 100):
            assert sum(start <= n < start + 100 for n in found) == expected


def test_every_mutant_has_its_turn():
    found = [chosen(patterns(endings(0.05, random.Random(seed)))) for seed in range(200)]
    assert set().union(*found) == set(NUMBERS)


@pytest.mark.parametrize(("words", "expected"), [
    (["07"], {n for n in NUMBERS if n % 100 == 7}), (["17"], {n for n in NUMBERS if n % 100 == 17}),
    (["00", "10"], {n for n in NUMBERS if n % 100 in (0, 10)}),
])
def test_mutants_are_those_with_the_endings(words, expected):
    assert chosen(patterns(words)) == expected


def test_all_mutants_are_tried_if_all_are_chosen_and_not_if_none_is():
    assert patterns(endings(1.0, random.Random(0))) == []
    with pytest.raises(ValueError, match="all mutants"):
        patterns([])
