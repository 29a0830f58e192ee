"""Settings for the whole suite.

The yardsticks, torch and transformers, are an extra. Tests that need them are skipped where they
are missing, unless NPGPT_REQUIRE_YARDSTICKS is set, as it is in CI: then they fail.
"""

import importlib
import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_collection_modifyitems(items):
    for item in items:
        if {"torch", "transformers"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("yardstick")


def _yardstick(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("NPGPT_REQUIRE_YARDSTICKS"):
            raise
        pytest.skip(f"{name} is not installed: pip install -e '.[reference]'")


@pytest.fixture(scope="session")
def torch():
    return _yardstick("torch")


@pytest.fixture(scope="session")
def transformers(torch):
    return _yardstick("transformers")
