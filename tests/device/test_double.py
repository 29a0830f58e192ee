"""The double is as strict as CuPy; its lists are compared with CuPy's if CuPy is installed."""

import importlib.util
import inspect
import os
import re
import sys
import warnings

import numpy as np
import pytest

from tests import double
from tests.double import HiddenWait, OutOfMemoryError, array, cupy, nccl, no_waiting, waits
from tests.double.stream import DEFAULT, Race, Stream

X = cupy.asarray(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("mix", [
    lambda: X + np.ones(3),
    lambda: np.ones(3) + X,
    lambda: X.__iadd__(np.ones(3)),
    lambda: X @ np.ones(3),
    lambda: X == np.ones(3),
    lambda: cupy.maximum(X, np.ones(3)),
    lambda: cupy.where(X > 1, X, np.ones(3)),
    lambda: cupy.concatenate([X, np.ones((1, 3))]),
    lambda: X.__setitem__(0, np.ones(3)),
    lambda: X[np.zeros(1, int)],
    lambda: X[[0, 1]],
    lambda: X * [1, 2, 3],
])
def test_arrays_of_host_and_device_do_not_mix(mix):
    with pytest.raises(TypeError):
        mix()


@pytest.mark.parametrize("function", [
    np.exp, np.sum, np.asarray, np.stack, np.copy, lambda x: np.add(x, 1), lambda x: np.ones(3) @ x,
])
def test_functions_of_numpy_do_not_take_arrays_of_the_device(function):
    with pytest.raises(TypeError):
        function(X)


def test_python_numbers_keep_the_dtype():
    x = X.astype("float32")
    assert (x * 2.5).dtype == (2 - x).dtype == cupy.where(x > 1, x, 0).dtype == np.float32
    assert (x * np.float64(2)).dtype == np.float64           # a scalar of NumPy has a type
    assert cupy.asnumpy(X * 2).tolist() == [[0, 2, 4], [6, 8, 10]]


@pytest.mark.parametrize("name", ["errstate", "vecdot", "insert", "block", "einsum_path"])
def test_functions_missing_in_cupy_are_missing_in_the_double(name):
    assert not hasattr(cupy, name)


@pytest.mark.parametrize("call", [
    lambda: cupy.exp(X, where=X > 1),
    lambda: X.sum(initial=1.0),
    lambda: X.max(where=X > 1, initial=0),
    lambda: cupy.add.at(X, 0, 1),            # atomic on a GPU: another order, another sum
    lambda: cupy.copyto(X, 0, foo=1),
    lambda: X.sum(0, None, None, True, 5.0),
    lambda: X.__setitem__(0, [1, 2, 3]),
])
def test_arguments_that_cupy_lacks_are_refused(call):
    with pytest.raises((TypeError, AttributeError)):
        call()


@pytest.mark.parametrize("reading", [
    lambda: float(X[0, 0]), lambda: int(X[0, 0]), lambda: bool(X[0, 0]), lambda: X[0, 0].item(),
    lambda: X.tolist(), lambda: X.get(), lambda: cupy.asnumpy(X), lambda: repr(X), lambda: str(X),
    lambda: f"{X[0, 0]}", lambda: X[X > 1], lambda: X.__setitem__(X < 0, 0.0),
    lambda: range(10)[cupy.asarray(1)], lambda: 1 if X[0, 0] == 0 else 2,
    lambda: cupy.cuda.get_current_stream().synchronize(),
    lambda: cupy.where(X > 1), lambda: cupy.arange(cupy.asarray(3)),
    lambda: cupy.full((2,), cupy.asarray(3.0)),
])
def test_synchronisation_is_counted_and_can_be_forbidden(reading):
    before = waits()
    reading()
    assert waits() == before + 1
    with no_waiting(), pytest.raises(HiddenWait):
        reading()


def test_computation_does_not_synchronise():
    with no_waiting():
        y = cupy.exp(X - X.max(-1, keepdims=True))
        y /= y.sum(-1, keepdims=True)
        cupy.copyto(y, 0, where=y < 0.1)
        y[cupy.asarray([0, 1]), cupy.asarray([2, -1])] -= 1      # -1 wraps, and so does 5
        assert y[cupy.asarray([5])].shape == (1, 3)
        assert len(y) == 2 and y.shape == (2, 3) and y.sum().shape == ()


def test_a_view_is_a_view():
    x = cupy.zeros((2, 3))
    x[0, 1][...] = 5
    row = x[1]
    row += 1
    x.T[2] = 7
    assert x.tolist() == [[0, 5, 7], [1, 1, 7]]


def test_memory_is_uninitialised_and_limited(monkeypatch):
    assert np.isnan(cupy.empty(3).get()).all()
    monkeypatch.setattr(array, "MEMORY", 1000)
    assert cupy.zeros(125).nbytes == 1000
    with pytest.raises(OutOfMemoryError, match="allocating 1,008 bytes"):
        cupy.zeros(126)


def test_bfloat16_supports_only_products_of_two_matrices():
    x = X.astype(array.BFLOAT16)
    assert (x @ x.T).dtype == array.BFLOAT16
    with pytest.raises(TypeError, match="stacks"):
        x[None] @ x.T[None]


def test_uninstalling_the_double_restores_everything():
    before = sys.modules.get("cupy")
    with double.installed() as gpu:
        assert gpu.xp is sys.modules["cupy"] is cupy
    assert sys.modules.get("cupy") is before


def test_work_on_another_stream_is_done_when_the_default_stream_waits_for_it():
    stream, event, done = Stream(non_blocking=True), cupy.cuda.Event(), []
    DEFAULT.wait_event(event)                      # it has not been recorded
    stream.wait_event(DEFAULT.record())
    stream.enqueue(lambda: done.append("first"))
    stream.record(event)
    stream.enqueue(lambda: done.append("second"))
    with no_waiting():
        assert done == []
        DEFAULT.wait_event(event)
        assert done == ["first"]
        DEFAULT.wait_event(stream.record())
    assert done == ["first", "second"]
    DEFAULT.enqueue(lambda: done.append("third"))
    assert done[-1] == "third"


@pytest.mark.parametrize("work", [
    lambda: X + 1, lambda: X.__setitem__(0, 5.0), lambda: cupy.exp(X, out=X.copy())])
def test_stream_must_wait_for_what_the_default_stream_was_given(work):
    stream = Stream(non_blocking=True)
    stream.wait_event(DEFAULT.record())
    stream.enqueue(lambda: None)
    work()
    with pytest.raises(Race):
        stream.enqueue(lambda: None)


@pytest.fixture(scope="module")
def real_cupy():
    if sys.modules.get("cupy") is cupy or importlib.util.find_spec("cupy") is None:
        if os.environ.get("NPGPT_REQUIRE_CUPY"):
            raise ImportError("CuPy is missing")
        pytest.skip('CuPy is not installed: pip install -e ".[cuda12]"')
    return importlib.import_module("cupy")


def test_functions_of_the_double_exist_in_cupy_with_the_same_arguments(real_cupy):
    for name, accepted in cupy.FUNCTIONS.items():
        function = getattr(real_cupy, name)
        if accepted == cupy.UFUNC:
            assert isinstance(function, real_cupy.ufunc), name
        elif name != "einsum":                       # says **kwargs
            assert set(accepted.split()) <= set(inspect.signature(function).parameters), name
    for name, accepted in array.METHODS.items():
        signature = getattr(real_cupy.ndarray, name).__doc__.partition("\n")[0]
        assert all(argument in signature for argument in accepted.split()), (name, signature)


def test_streams_events_and_the_choice_of_a_gpu_exist_in_cupy(real_cupy):
    for name in ("record", "wait_event", "synchronize"):
        theirs = getattr(real_cupy.cuda.Stream, name)
        assert [*inspect.signature(theirs).parameters] == [
            *inspect.signature(getattr(Stream, name)).parameters], name
    assert "disable_timing" in real_cupy.cuda.Event.__doc__
    for name in vars(cupy.cuda.runtime):
        assert hasattr(real_cupy.cuda.runtime, name), name


def test_calls_of_nccl_exist_in_cupy_with_the_same_arguments(real_cupy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = importlib.import_module("cupy.cuda.nccl")
    if not theirs.available:
        if os.environ.get("NPGPT_REQUIRE_CUPY"):
            raise ImportError("NCCL is missing")
        pytest.skip('NCCL is not installed: pip install -e ".[nccl12]"')
    for name, arguments in nccl.METHODS.items():
        signature = getattr(theirs.NcclCommunicator, name).__doc__.partition("\n")[0]
        found = re.findall(r"(\w+)(?=[,)])", signature.partition("(self")[2])
        assert found == arguments.split(), signature
        ours = inspect.signature(getattr(nccl.NcclCommunicator, name))
        assert list(ours.parameters)[1:] == arguments.split()
    for name in ("NCCL_SUM", "NCCL_PROD", "NCCL_FLOAT32", "NCCL_FLOAT64"):
        assert getattr(theirs, name) == getattr(nccl, name), name
    assert len(theirs.get_unique_id()) == 128 and theirs.get_version() > 21801
    for name in ("groupStart", "groupEnd", "NcclError"):
        assert hasattr(theirs, name), name


def test_names_missing_in_the_double_are_missing_in_cupy(real_cupy):
    for name in ("errstate", "vecdot", "insert", "block", "einsum_path"):
        assert not hasattr(real_cupy, name)
    for name in ("sum", "max"):
        assert "where" not in inspect.signature(getattr(real_cupy, name)).parameters
