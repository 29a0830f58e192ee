import pytest

REGISTERS = {}       # (kernel, architecture) -> registers per thread


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
