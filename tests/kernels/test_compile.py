"""The kernels compile for every GPU from Turing to Blackwell and spill no register.

NVIDIA's compiler needs no GPU and no driver:

    pip install "cuda-toolkit[nvrtc,cudart]==12.*" cupy-cuda12x
    NPGPT_REQUIRE_CUDA_COMPILER=1 pytest tests/kernels/test_compile.py

A table of the registers per thread is printed at the end. If the compiler is missing these tests
are skipped, unless NPGPT_REQUIRE_CUDA_COMPILER is set: then they fail.
"""

import os
import re

import pytest

from npgpt.kernels.launch import EXPRESSIONS, OPTIONS, source

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
REPORT = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers", re.DOTALL,
)


@pytest.fixture(scope="module")
def nvrtc():
    try:
        from cupy.cuda import nvrtc
        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        if os.environ.get("NPGPT_REQUIRE_CUDA_COMPILER"):
            raise
        pytest.skip(f"no CUDA compiler: {error}")
    return nvrtc


def compiled(nvrtc, architecture):
    """-> the compiler's messages, its PTX, kernel's name in C++ -> its name in the PTX."""
    program = nvrtc.createProgram(source(), "kernels.cu", (), ())
    try:
        for name in EXPRESSIONS.values():
            nvrtc.addNameExpression(program, name)
        options = (*OPTIONS, f"-arch={architecture}", "--ptxas-options=-v")
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        names = {name: nvrtc.getLoweredName(program, name) for name in EXPRESSIONS.values()}
        return nvrtc.getProgramLog(program), nvrtc.getPTX(program).decode(), names
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_a_warning_and_spill_nothing(nvrtc, architecture, register_table):
    log, _, names = compiled(nvrtc, architecture)
    assert "warning" not in log, log
    reports = log.split("Compiling entry function")[1:]
    assert len(reports) == len(names)
    for kernel, lowered in names.items():
        (report,) = (r for r in reports if f"'{lowered}'" in r)
        stack, stores, loads, registers = map(int, REPORT.search(report).groups())
        register_table[kernel, architecture] = registers
        assert (stack, stores, loads) == (0, 0, 0), report


def test_float_kernels_never_compute_in_double(nvrtc):
    """A literal without Real(...) makes most GPUs 64 times slower."""
    _, ptx, names = compiled(nvrtc, "sm_90")
    bodies = {body.split("(")[0].strip(): body for body in ptx.split(".entry")[1:]}
    for kernel, lowered in names.items():
        assert (".f64" in bodies[lowered]) == ("double" in kernel), kernel
