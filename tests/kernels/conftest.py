import pytest

from npgpt import kernels
from npgpt.backend import get_device
from tests import double
from tests.on_device import back, moved

REGISTERS = {}       # (kernel, architecture) -> registers per thread


@pytest.fixture(scope="module")
def device(request):
    """The GPU with --device gpu, else the test double."""
    if request.config.getoption("--device") == "gpu":
        yield get_device("gpu")
    else:
        request.getfixturevalue("host_compiler")
        with double.installed() as gpu:
            yield gpu


@pytest.fixture(scope="module")
def fused(device):
    """-> name of a layer -> its fused pair, as functions of NumPy arrays, so that the tests of the
    layers can use them."""
    def hosted(record):
        def forward(x, *args, **options):
            there = moved(x, device)
            y, cache = record.forward(there, *moved(args, device), **moved(options, device))
            return x if y is there else back(y, device), cache

        def backward(dy, cache):
            there = moved(dy, device)
            found = record.backward(there, cache)
            return dy if found is there else back(found, device)

        return forward, backward

    return {name: hosted(record) for name, record in kernels.fused_layers(device).items()}


@pytest.fixture(scope="session")
def register_table():
    return REGISTERS


def pytest_terminal_summary(terminalreporter):
    """Registers per thread: one line per kernel, one column per architecture."""
    if not REGISTERS:
        return
    architectures = list(dict.fromkeys(architecture for _, architecture in REGISTERS))
    terminalreporter.write_line("")
    terminalreporter.write_line(f"{'registers per thread':32}" + "".join(
        f"{architecture:>8}" for architecture in architectures))
    for kernel in dict.fromkeys(kernel for kernel, _ in REGISTERS):
        terminalreporter.write_line(f"{kernel:32}" + "".join(
            f"{REGISTERS[kernel, architecture]:8}" for architecture in architectures))
