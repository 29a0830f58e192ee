import sys
import types

import numpy as np
import pytest

from npgpt import GPT, GPTConfig, UserError, backend
from npgpt.backend import (
    Device,
    array_module,
    choose_gpu,
    get_device,
    register,
    to_host,
)
from tests import double


@pytest.fixture
def registry(monkeypatch):
    """Devices that a test registers are removed after it."""
    for name in ("_makers", "_devices", "_modules"):
        monkeypatch.setattr(backend, name, dict(getattr(backend, name)))


def fake_cupy(driver=12040, devices=1, runtime=12090, error=False, capability=9):
    """A module with the parts of CuPy that are needed to select a device."""
    class CUDARuntimeError(RuntimeError):
        pass

    def count():
        if error:
            raise CUDARuntimeError("cudaErrorInsufficientDriver")
        return devices

    current = [0]
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.0.0"
    cupy.ndarray = type("ndarray", (), {"__module__": "cupy"})
    cupy.asnumpy = lambda x: np.zeros(1)
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, getDeviceCount=count,
        driverGetVersion=lambda: driver, runtimeGetVersion=lambda: runtime,
        getDevice=lambda: current[0], setDevice=lambda n: current.__setitem__(0, n),
        deviceGetPCIBusId=lambda n: f"0000:0{n}:00.0",
        getDeviceProperties=lambda n: {"name": b"NVIDIA Test" + b" 2" * n, "major": capability},
        memGetInfo=lambda: (5, 10),
    ))
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(
        free_bytes=lambda: 2, total_bytes=lambda: 3)
    return cupy


def test_array_module_follows_the_array_type():
    assert array_module(np.ones(2)) is np
    assert array_module(np.float32(1)) is np           # the type of a sum over all axes
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got list"):
        array_module([1, 2])


def test_subclass_is_treated_as_its_base():
    assert array_module(np.ma.ones(2)) is np


def test_other_modules_can_be_registered(registry):
    class Array:
        pass

    module = types.ModuleType("other")
    register(Device("other", module, (Array,), to_host=lambda x: np.ones(3)))
    assert get_device("other").xp is module
    assert array_module(Array()) is module
    assert to_host(Array()).tolist() == [1, 1, 1]


def test_cpu_describes_itself_and_its_memory():
    cpu = get_device("cpu")
    assert cpu is get_device("cpu") and get_device(cpu) is cpu
    assert cpu.description.startswith("CPU, ")
    assert cpu.memory() > 10**8


def test_slices_cover_everything_once():
    cpu = get_device("cpu")
    for start, stop in ((0, 0), (0, 5), (3, 100_000)):
        parts = [np.arange(stop)[part] for part in cpu.slices(start, stop)]
        assert np.array_equal(np.concatenate([[], *parts]), np.arange(start, stop))
        assert all(len(part) <= cpu.chunk for part in parts)


def test_unknown_device_is_refused():
    with pytest.raises(UserError, match="device must be one of auto, cpu, gpu, got 'tpu'"):
        get_device("tpu")


@pytest.mark.parametrize(("cupy", "visible", "message"), [
    (None, None, r'CuPy is not installed; run: pip install "npgpt\[cuda12\]"'),
    (fake_cupy(driver=0), None, "CuPy finds no NVIDIA driver"),
    (fake_cupy(driver=11080, error=True), None, "driver supports CUDA 11 and CuPy needs CUDA 12"),
    (fake_cupy(error=True), None, "the NVIDIA driver shows no device; use device cpu"),
    (fake_cupy(devices=0), "", r"shows no device \(CUDA_VISIBLE_DEVICES is ''\)"),
])
def test_message_says_why_there_is_no_gpu(registry, monkeypatch, cupy, visible, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    if cupy is None:
        monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=message):
        get_device("gpu")
    assert get_device("auto").name == "cpu"


def test_failed_import_of_cupy_is_explained(registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)       # makes the import fail
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="CuPy is installed but cannot be imported"):
        get_device("gpu")


def test_auto_selects_the_gpu_if_there_is_one(registry, monkeypatch):
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    gpu = get_device("auto")
    assert gpu.name == "gpu" and gpu.xp is cupy
    assert gpu.description == "NVIDIA Test, CUDA 12.4, CuPy 14.0.0"
    assert gpu.memory() == 7 and gpu.peak_memory() == 3      # the pool's free memory counts too
    assert gpu.default_dtype == "tf32" and "bfloat16" in gpu.dtypes
    assert array_module(cupy.ndarray()) is cupy
    assert gpu.slices(0, 10**7) == [slice(0, 10**7)]       # one launch for each operation


@pytest.mark.parametrize(("index", "address"), [(None, 1), (0, 0), (1, 1), (2, 0), (5, 1)])
def test_process_uses_the_gpu_that_was_chosen(registry, monkeypatch, index, address):
    """There are two of them; without a choice it is the one that CUDA is set to."""
    cupy = fake_cupy(devices=2)
    cupy.cuda.runtime.setDevice(1)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backend, "_gpu_index", None)
    if index is not None:
        choose_gpu(index)
    gpu = get_device("gpu")
    assert gpu.address() == f"0000:0{address}:00.0"
    assert gpu.description.startswith("NVIDIA Test" + " 2" * address + ",")


@pytest.mark.parametrize(("capability", "default"), [(7, "float32"), (8, "tf32"), (12, "tf32")])
def test_tf32_is_the_default_from_ampere_on(registry, monkeypatch, capability, default):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(capability=capability))
    gpu = get_device("gpu")
    assert gpu.default_dtype == default and gpu.dtypes[:2] == ("float32", "float64")
    assert ("tf32" in gpu.dtypes) == (default == "tf32")


def test_failure_of_cublas_is_reported(registry, monkeypatch):
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    gpu = get_device("gpu")

    def fail():
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
    cupy.cuda.cublas, cupy.cuda.get_cublas_handle = types.SimpleNamespace(getMathMode=None), fail
    with pytest.raises(UserError, match=r"cuBLAS does not work: CUBLAS_STATUS_ALLOC_FAILED; .*12"):
        GPT(GPTConfig(vocab_size=2, block_size=2, n_layer=1, n_head=1, n_embd=2), device=gpu,
            dtype="tf32")


@pytest.mark.parametrize(("dtype", "mode"), [("float32", 0), ("tf32", 3), ("bfloat16", 3)])
@pytest.mark.parametrize("before", [0, 3])
def test_math_mode_of_cublas_is_set_on_entry_and_restored_on_exit(dtype, mode, before):
    with double.installed() as gpu:
        double.cupy.MathMode.mode = before
        with pytest.raises(KeyError), gpu.math_mode(dtype):
            assert double.cupy.MathMode.mode == mode
            raise KeyError
        assert double.cupy.MathMode.mode == before
        double.cupy.MathMode.mode = 0


def test_cupy_array_is_recognised_before_the_gpu_is_selected(registry, monkeypatch):
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert array_module(cupy.ndarray()) is cupy
