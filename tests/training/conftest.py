"""The ranks of a launcher, in this process."""

import pytest

from npgpt.training import beginning, setup
from tests.training.rank import Rank


@pytest.fixture
def world(monkeypatch):
    """-> function: from now on this process is that rank."""
    def become(*arguments, **options):
        rank = Rank(*arguments, **options)
        for module in (beginning, setup):
            monkeypatch.setattr(module, "world", lambda: rank)
        return rank
    return become
