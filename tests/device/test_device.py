"""Everything that training does on a GPU: on the double, and with `--device gpu` on a GPU itself.

The double computes with NumPy, so its results equal the CPU's to the last bit. A GPU rounds
differently and must agree within 1e-10 in float64 and 1e-5 in float32.
"""

import json
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings

import train
from npgpt.backend import Device, get_device
from npgpt.durable import SUMS
from npgpt.gradcheck import check_gradients
from npgpt.layers import Key
from npgpt.optim import AdamW
from npgpt.text.dataset import Dataset
from npgpt.text.source import TokenSource
from npgpt.training.step import train_step
from tests import double
from tests.cases import CASES, configs, llama_configs
from tests.commands.tiny import LLAMA
from tests.models.families import FAMILIES, tiny
from tests.on_device import back, moved

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
ROUNDINGS = {"float64": 1e-13, "float32": 1e-5}     # on the double, which adds rows in groups
TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
TINY = ["--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=16", "--batch-size=4",
        "--dropout=0.1", "--eval-iters=2", "--log-interval=100", "--eval-interval=100"]
BASE = {"vocab_size": 13, "block_size": 6, "n_embd": 8, "dropout": 0.3}


def agree(found, expected, device, tolerance):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = tuple(found.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        assert len(found) == len(expected)
        for f, e in zip(found, expected):
            agree(f, e, device, tolerance)
    elif expected is None:
        assert found is None
    else:
        assert isinstance(found, device.arrays), type(found)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        scale = max(1, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(device.to_host(found), expected, rtol=0, atol=tolerance * scale)


def tolerance(device, dtype="float64"):
    return (ROUNDINGS if device.xp is double.cupy else TOLERANCE)[dtype]


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_agree_with_the_cpu_without_synchronising(name, device):
    @given(CASES[name]())
    @settings(max_examples=30)
    def check(case):
        y, cache = case.forward(*case.inputs)
        dy = np.random.default_rng(1).standard_normal(np.shape(y))
        expected = case.backward(np.asarray(dy), cache)

        inputs, dy = moved(case.inputs, device), device.to_device(dy)
        case.options.update(moved(case.options, device))     # the mask
        with double.no_waiting():
            y_there, cache = case.forward(*inputs)
            found = case.backward(dy, cache)
        agree(y_there, np.asarray(y), device, tolerance(device))
        agree(found, expected, device, tolerance(device))

    check()


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_derivative_of_the_forward_on_the_device(name, device):
    @given(CASES[name]())
    @settings(max_examples=10)
    def check(case):
        case.options.update(moved(case.options, device))     # the mask

        def forward(*inputs):
            y, cache = case.forward(*moved(inputs, device))
            return device.to_host(y), cache

        def backward(dy, cache):
            return back(case.backward(moved(dy, device), cache), device)

        check_gradients(forward, backward, case.inputs, directions=1)

    check()


@pytest.mark.parametrize(("name", "options"), [
    ("gpt", {}), ("llama", {"qk_norm": True}), ("llama", {"lora_rank": 2}),
    ("gpt", {"freeze": "embeddings"})])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_training_steps_agree_with_the_cpu_without_synchronising(dtype, name, options, device):
    ended = []
    for place in (get_device("cpu"), device):
        data = Dataset(TokenSource.from_text("abcdefghijklm" * 20), 6, place)
        model = tiny(name, dtype, device=place, **BASE, **options)
        optimizer, grads = AdamW(model.params), model.gradients()
        with double.no_waiting() if place is device else nullcontext():
            for step in range(5):
                batch = *data.batch(3, step, 4), Key(3, step), 4 * 6
                loss, norm = train_step(model, optimizer, [batch], grads, lr=1e-2, grad_clip=1.0)
        ended.append((loss, norm, model.params.flat, optimizer.m, optimizer.v))
    on_cpu, there = ended
    # Sums are rounded differently. AdamW divides a gradient by its size: where it is nearly 0, the
    # rounding alone decides an update.
    agree(there, tuple(map(np.asarray, on_cpu)), device, {"float64": 1e-10, "float32": 1e-3}[dtype])


@pytest.mark.parametrize(("name", "options"), [
    ("gpt", {}), ("gpt", {"tie_weights": False, "head_bias": True}),
    ("gpt", {"attn_bias": False, "activation": "relu"}), ("gpt", {"n_inner": 10, "norm_eps": 0.1}),
    ("llama", {}), ("llama", {"n_kv_head": 1, "tie_weights": False, "attention_bias": True}),
    ("llama", {"qk_norm": True, "head_dim": 6, "rope_theta": 50.0, "norm_eps": 0.1}),
])
def test_loss_evaluation_and_text_agree_with_the_cpu(name, options, device):
    here, there = (tiny(name, device=d, **BASE, **options) for d in ("cpu", device))
    idx = np.random.default_rng(0).integers(13, size=(3, 6))
    agree(there.logits(idx), here.logits(idx), device, tolerance(device, "float32"))
    agree(there.loss(idx, idx), np.asarray(here.loss(idx, idx)), device,
          tolerance(device, "float32"))
    np.testing.assert_array_equal(there.generate(idx, 10, temperature=0.8, top_k=5, seed=4),
                                  here.generate(idx, 10, temperature=0.8, top_k=5, seed=4))


@pytest.mark.parametrize("name", FAMILIES)
def test_model_saved_on_the_device_is_loaded_on_the_cpu(name, device, tmp_path):
    there = tiny(name, device=device, **BASE)
    there.save_pretrained(tmp_path / "m")
    here = type(there).from_pretrained(tmp_path / "m")
    np.testing.assert_array_equal(here.params.flat, device.to_host(there.params.flat))
    assert (tmp_path / "m" / "model.safetensors").is_file()


@pytest.mark.parametrize(("name", "drawn"), [("gpt", configs), ("llama", llama_configs)])
@pytest.mark.parametrize("vocab_size", [5, 1000])
def test_repeated_step_is_the_same_to_the_last_bit(vocab_size, name, drawn, device):
    @given(drawn(vocab_size))
    @settings(max_examples=10)
    def check(config):
        model = FAMILIES[name].model(config, device=device)
        idx = np.random.default_rng(0).integers(vocab_size, size=(3, config.block_size))
        first, second = (device.to_host(model.loss_and_grads(idx, idx, Key(1, 1))[1].flat)
                         for _ in range(2))
        np.testing.assert_array_equal(first, second)

    check()


# --- the commands -------------------------------------------------------------------------------

@pytest.fixture
def home(tmp_path, monkeypatch, device):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox.txt").write_text(TEXT)
    return tmp_path


def run(capsys, *words):
    status = train.main(["--data=fox.txt", *TINY, *words])
    out, err = capsys.readouterr()
    return status, out, err


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line["val_loss"] for line in map(json.loads, lines) if "val_loss" in line]


every_family = pytest.mark.parametrize("family", [[], [*LLAMA, "--qk-norm"]], ids=["gpt", "llama"])


@every_family
def test_training_agrees_with_the_cpu(home, capsys, family):
    for name in ("cpu", "gpu"):
        status, _, err = run(capsys, "--device", name, "--config=laptop", "--dtype=float32",
                             "--max-iters=20", "--out-dir", name, *family)
        assert (status, err) == (0, "")
    np.testing.assert_allclose(losses(home / "gpu"), losses(home / "cpu"), rtol=1e-4)


@every_family
def test_run_is_resumed_on_the_cpu_and_back_on_the_device(home, capsys, family):
    assert run(capsys, "--device=gpu", "--max-iters=10", "--out-dir=r", *family)[0] == 0
    for name, steps in (("cpu", 20), ("gpu", 30)):
        status, out, err = run(capsys, "--resume", "--device", name, "--max-iters", str(steps),
                               "--out-dir=r")
        assert (status, err) == (0, ""), err
        assert (", float32" if name == "cpu" else ", tf32") in out
    assert losses(home / "r")[-1] < losses(home / "r")[0]


@every_family
def test_training_waits_for_the_device_once_in_ten_steps(home, capsys, device, family):
    if device.xp is not double.cupy:
        pytest.skip("CuPy does not count its waits; the double does")
    counted = []
    for steps in (10, 40):
        before = double.waits()
        words = [f"--max-iters={steps}", f"--out-dir={steps}", *family]
        assert run(capsys, "--device=gpu", *words)[0] == 0
        counted.append(double.waits() - before)
    assert counted[1] - counted[0] == 3 and counted[0] > 0


def test_output_shows_device_precision_and_memory(home, capsys, device: Device):
    _, out, _ = run(capsys, "--device=gpu", "--max-iters=1")
    assert f"on {device.description}, {device.default_dtype}\n" in out
    assert "peak memory: " in out


@every_family
@pytest.mark.parametrize("words", [
    ["--dtype=float32"], ["--dtype=float64"], ["--dtype=tf32"], ["--dtype=bfloat16"],
    ["--dtype=float32", "--fused"],
])
def test_every_precision_trains(home, capsys, words, family, device, request):
    if device.xp is double.cupy and "--fused" in words:
        request.getfixturevalue("host_compiler")
    status, _, err = run(capsys, "--device=gpu", "--config=laptop", "--max-iters=30",
                         "--out-dir=r", *words, *family)
    assert (status, err) == (0, "")
    assert losses(home / "r")[-1] < losses(home / "r")[0] - 0.5


@pytest.mark.parametrize(("given", "on", "then", "expected"), [
    (["--dtype=bfloat16"], "cpu", [], "float32"),          # not on the CPU: the default
    (["--dtype=float32"], "gpu", [], "float32"),           # an explicit choice is kept
    (["--dtype=float32"], "gpu", ["--dtype=tf32"], "tf32"),
    (["--dtype=bfloat16"], "cpu", ["--dtype=bfloat16"], None),
])
def test_precision_of_a_resumed_run(home, capsys, given, on, then, expected):
    assert run(capsys, "--device=gpu", "--max-iters=2", "--out-dir=r", *given)[0] == 0
    status = train.main(["--resume", "--out-dir=r", f"--device={on}", "--max-iters=3", *then])
    out, err = capsys.readouterr()
    if expected is None:
        assert status == 2 and "--dtype must be float32 or float64 on CPU" in err
    else:
        assert (status, err) == (0, "") and f", {expected}" in out.partition("\n")[0]


def test_old_checkpoint_without_precision_is_resumed(home, capsys):
    assert run(capsys, "--device=cpu", "--max-iters=2", "--out-dir=r")[0] == 0
    folder = home / "r" / "checkpoint-2"
    state = json.loads((folder / "training.json").read_text())
    for name in ("fused", "workers", "hold", "decay", "muon_lr", "muon_momentum"):
        del state["values"][name]
    (folder / "training.json").write_text(json.dumps(state))
    (folder / SUMS).unlink()
    status = train.main(["--resume", "--out-dir=r", "--max-iters=3", "--device=cpu"])
    assert (status, capsys.readouterr().err) == (0, "")


def test_what_a_device_cannot_compute_in_is_refused(home, capsys):
    for words in (["--dtype=tf32"], ["--dtype=bfloat16"], ["--fused"],
                  ["--workers=2", "--device=gpu"]):
        status, out, err = run(capsys, "--device=cpu", *words)
        assert (status, out) == (2, "") and words[0].partition("=")[0] in err
        assert err.count("\n") == 1 and not (home / "out").exists()


def test_out_of_memory_names_the_size_and_options_to_lower(home, capsys, monkeypatch, device):
    if device.xp is not double.cupy:
        pytest.skip("the test would have to fill the memory of the GPU")
    monkeypatch.setattr(double.array, "MEMORY", 100_000)
    status, _, err = run(capsys, "--device=gpu")
    assert status == 2 and "training needs about" in err and "--batch-size" in err
    monkeypatch.setattr("npgpt.training.estimate.check_memory", lambda needed, device: None)
    monkeypatch.setattr(double.array, "MEMORY", 15_000)
    status, _, err = run(capsys, "--device=gpu")
    assert status == 3 and "Out of memory allocating" in err and "--batch-size" in err
    assert err.count("\n") == 1
