"""Settings for the whole suite.

The yardsticks, torch, transformers and peft, matplotlib and MPI are optional. Tests that need them
are skipped if they are missing, unless NPGPT_REQUIRE_YARDSTICKS is set, as in CI: then they fail.
The same applies to g++, which runs the CUDA kernels on the host, and to mpi4py with its mpiexec.
"""

import importlib
import os
import shutil

import pytest
from hypothesis import HealthCheck, Phase, settings

from npgpt import backend
from tests import double, on_device

quiet = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("hundred", max_examples=100, derandomize=True, **quiet)
settings.register_profile("full", max_examples=1000, derandomize=True, **quiet)
settings.register_profile("search", max_examples=1000, **quiet)      # different examples each time
settings.register_profile(      # for thousands of runs on broken code: see tests/mutants
    "mutants", max_examples=20, derandomize=True, phases=[Phase.explicit, Phase.generate], **quiet
)
settings.register_profile(      # each kind of operation is compiled first: see benchmarks/gpu.py
    "gpu", max_examples=5, derandomize=True, phases=[Phase.explicit, Phase.generate], **quiet
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "hundred"))



def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "double", "gpu"), default="cpu",
                     help="the device of every layer: see tests/on_device.py")


def pytest_configure(config):
    name = config.getoption("--device")
    if name == "double":
        config.add_cleanup(double.install())
    if name != "cpu":
        on_device.move_every_layer(backend.get_device("gpu"))


@pytest.fixture
def device(request):
    """The GPU's Device during a test: CuPy's with --device gpu, else the double's. NumPy arrays
    stay on the CPU, for comparison."""
    name = request.config.getoption("--device")
    on_device.leave_every_layer()
    if name == "gpu":
        yield backend.get_device("gpu")
    else:
        with double.installed() as gpu:
            yield gpu
    if name != "cpu":
        on_device.move_every_layer(backend.get_device("gpu"))


GRADIENTS = {}       # layer -> Report


@pytest.fixture(scope="session")
def gradient_table():
    return GRADIENTS


def pytest_terminal_summary(terminalreporter):
    """Print the table in docs/gradients.md."""
    if GRADIENTS:
        terminalreporter.write_line("")
    width = max(map(len, GRADIENTS), default=0)
    for name, report in GRADIENTS.items():
        largest = "   ".join(f"{method} {error:.1e}" for method, error in report.of_method.items())
        terminalreporter.write_line(
            f"{name:{width}} {report.examples:5} examples, largest errors: {largest}")


def pytest_collection_modifyitems(items):
    for item in items:
        if {"torch", "transformers", "peft"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("yardstick")


def _from_extra(name, extra):
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("NPGPT_REQUIRE_YARDSTICKS"):
            raise
        pytest.skip(f"{name} is not installed: pip install -e '.[{extra}]'")


@pytest.fixture(scope="session")
def torch():
    return _from_extra("torch", "reference")


@pytest.fixture(scope="session")
def transformers(torch):
    return _from_extra("transformers", "reference")


@pytest.fixture(scope="session")
def peft(transformers):
    return _from_extra("peft", "reference")


@pytest.fixture(scope="session")
def matplotlib():
    return _from_extra("matplotlib", "plot")


@pytest.fixture(scope="session")
def mpi():
    """mpi4py and mpiexec are there."""
    _from_extra("mpi4py", "mpi")


@pytest.fixture(scope="session")
def launcher(mpi):
    """-> the path of the mpiexec that belongs to mpi4py."""
    from tests.parallel.launcher import MPIEXEC
    return MPIEXEC


@pytest.fixture(scope="session")
def host_compiler():
    if shutil.which("g++") is None:
        required = os.environ.get("NPGPT_REQUIRE_YARDSTICKS")
        (pytest.fail if required else pytest.skip)("g++ is not installed")
