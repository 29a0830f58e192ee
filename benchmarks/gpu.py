"""All checks and benchmarks that need a GPU: `python -m benchmarks.gpu`. It should take less than
eight minutes; parts that take much longer are stopped.

    tests       the layers' own tests, the models' and those of tests/device, on CuPy's arrays
    parity      loss and gradients of a GPT and of a Llama with dropout on the CPU and on the GPU
    repeats     the same three training steps a hundred times, with a hash of the result
    steps       time and memory of a training step, compared with PyTorch if it is installed
    training    the baby configuration until the best loss that nanoGPT reports
    nccl        one rank of mpiexec, a group of one for NCCL: see benchmarks/nccl.py

The output ends with a Markdown table for docs/performance.md. The exit status is 1 if a result is
wrong. Each measurement is a separate process, and the two sides alternate. With --double everything
runs on the test double at tiny sizes: this tests the script, and its times mean nothing.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from npgpt.backend import get_device
from npgpt.cli.bundle import bundled
from npgpt.layers import Key
from npgpt.optim import AdamW
from npgpt.training.config import FAMILIES, FAMILY_FIELDS
from npgpt.training.request import read_toml
from npgpt.training.step import train_step

NANOGPT_LOSS = 1.4697        # nats per character: the best validation loss of its baby GPT
LLAMA = {"family": "llama", "n_kv_head": 2, "qk_norm": True}
TINY = {"block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32, "batch_size": 4}
SUITE = ["tests/layers", "tests/test_gradients.py", "tests/models", "tests/optim",
         "tests/device", "tests/kernels"]
WARM_UP, STEPS = 10, 30
LIMITS = {"tests": 180, "--measure": 120, "--train": 200, "nccl": 120}      # seconds
OURS = [("gpt", "float32", True), ("gpt", "tf32", False), ("gpt", "tf32", True),
        ("gpt", "bfloat16", True), ("llama", "tf32", True)]        # family, dtype, fused
THEIRS = [("tf32", False), ("bfloat16", False), ("bfloat16", True)]              # compiled


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--double", action="store_true", help="use the test double, tiny sizes")
    parser.add_argument("--only", choices=STAGES, action="append", help="a stage; may be repeated")
    parser.add_argument("--rounds", type=int, default=2, help="of the steps; the sides alternate")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.double:
        from tests import double
        double.install()
    if arguments.measure:
        return print(json.dumps(MEASURES[arguments.measure.pop("side")](**arguments.measure)))
    if arguments.train:
        import train
        return train.main(arguments.train)

    gpu, rows = get_device("gpu"), []
    for name in arguments.only or STAGES:
        began = time.perf_counter()
        print(f"=== {name}", flush=True)
        rows += STAGES[name](arguments.double, *([arguments.rounds] if name == "steps" else []))
        print(f"--- {name}: {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n{time.strftime('%Y-%m-%d')}, {gpu.description}, {_torch_version()}\n")
    print("| what | found | bar |\n| --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return int(any("**wrong**" in bar for _, _, bar in rows))


def tests(tiny):
    """The test suite, with fewer examples per test, and without the tests that move every element
    of an input by itself. In several processes if pytest-xdist is installed."""
    command = [sys.executable, "-m", "pytest", "--hypothesis-profile=gpu", "--tb=short",
               "-k", "not every_element", "-p", "no:cacheprovider",
               f"--device={'double' if tiny else 'gpu'}", *(SUITE[-2:] if tiny else SUITE)]
    if importlib.util.find_spec("xdist") and not tiny:
        command += ["-n", "10", "-p", "no:benchmark"]      # pytest-benchmark would warn beside it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        limit = threading.Timer(LIMITS["tests"], running.send_signal, [signal.SIGINT])
        limit.start()                                      # pytest then says what failed so far
        output = running.communicate()[0]
        limit.cancel()
    print(output[-8000:])
    return [("tests of layers, models and training on CuPy's arrays",
             output.strip().splitlines()[-1].strip("= "),
             "all pass" + (" **wrong**" if running.returncode else ""))]


def parity(tiny):
    """The largest difference of any gradient, relative to the largest gradient of its parameter."""
    rows, bars = [], {"float64": 1e-10, "float32": 1e-5}
    for family, dtype, fused in itertools.product(FAMILIES, bars, (False, True)):
        bar, found = bars[dtype], {}
        c = configuration(tiny, family, dropout=0.2, n_layer=2)
        for name in ("cpu", "gpu"):
            model, idx = make_model(c, name, dtype, fused and name == "gpu"), make_tokens(c, rows=4)
            loss, grads = model.loss_and_grads(idx, idx, Key(1, 1))
            found[name] = {"loss": loss} | dict(grads)
        to_host = get_device("gpu").to_host
        worst = np.max([                  # NaN if one of them is NaN
            np.abs(to_host(there) - found["cpu"][name]).max() / np.abs(found["cpu"][name]).max()
            for name, there in found["gpu"].items()
        ])
        name = (f"gradients of a {FAMILIES[family].__name__}, CPU against GPU, dropout on, "
                f"{dtype}{' fused' if fused else ''}")
        rows.append((name, f"{worst:.1e}",
                     f"{bar:.0e}" + ("" if worst <= bar else " **wrong**")))
    return rows


def repeats(tiny):
    """The number of different results of a hundred repetitions of three training steps."""
    rows = []
    for vocab_size in (65, 50257 if not tiny else 500):
        gpu = get_device("gpu")
        c = configuration(tiny, dropout=0.2, n_layer=1, vocab_size=vocab_size)
        gpt = make_model(c, "gpu", gpu.default_dtype, gpu.fuses)
        begun, hashes = gpt.params.flat.copy(), set()
        for _ in range(100):
            gpt.params.flat[...] = begun
            step = _steps_of_npgpt(c, gpt, rows=4)
            for number in range(3):
                step(number)
            hashes.add(hashlib.sha256(gpu.to_host(gpt.params.flat).tobytes()).digest())
        rows.append((f"different parameters after 3 steps, 100 times, vocabulary {vocab_size:,}",
                     str(len(hashes)), "1" + ("" if len(hashes) == 1 else " **wrong**")))
    return rows


def steps(tiny, rounds):
    """Milliseconds and memory of a training step of the baby configuration. The bars: 11 ms with
    TF32; with bfloat16 as fast as eager PyTorch, and at most 1.3 times the time of compiled."""
    ours = [{"side": "npgpt", "family": family, "dtype": dtype, "fused": fused}
            for family, dtype, fused in OURS]
    theirs = [{"side": "torch", "dtype": dtype, "compiled": compiled}
              for dtype, compiled in THEIRS]
    if tiny or importlib.util.find_spec("torch") is None:
        theirs = []
    found = {}
    for _ in range(1 if tiny else rounds):                   # the sides alternate
        for what in ours + theirs:
            result = _in_process(tiny, "--measure", json.dumps(what | {"tiny": tiny}))
            if result:                                       # else it took too long
                found.setdefault(json.dumps(what), []).append(json.loads(result.splitlines()[-1]))
    rows, medians = [], {}
    for what in (what for what in ours + theirs if json.dumps(what) in found):
        results = found[json.dumps(what)]
        name = " ".join([what["side"], *(["Llama"] if what.get("family") == "llama" else []),
                         what["dtype"], *(["fused"] if what.get("fused") else []),
                         *(["torch.compile"] if what.get("compiled") else [])])
        seconds = statistics.median(result["seconds"] for result in results)
        peak = max(result["bytes"] for result in results)
        medians[name] = seconds
        rows.append((f"training step, {name}", f"{1000 * seconds:.2f} ms, {peak / 1e9:.2f} GB",
                     "11 ms" if name.startswith("npgpt tf32") else ""))
    for name, bar in (("torch bfloat16", "1"), ("torch bfloat16 torch.compile", "1.3")):
        ours = "npgpt bfloat16 fused"
        if name in medians and ours in medians:
            rows.append((f"{ours} ÷ {name}", f"{medians[ours] / medians[name]:.2f}", bar))
    return rows


def measure_npgpt(family, dtype, fused, tiny):
    """-> seconds of a training step; peak memory in bytes."""
    c = configuration(tiny, family)
    gpu = get_device("gpu")
    step = _steps_of_npgpt(c, make_model(c, "gpu", dtype, fused), c["batch_size"])
    return {"seconds": seconds_of(step, gpu.synchronize, tiny), "bytes": gpu.peak_memory()}


def _steps_of_npgpt(c, gpt, rows):
    """-> function that takes the step with this number."""
    optimizer, grads = AdamW(gpt.params), gpt.gradients()
    idx = gpt.device.to_device(make_tokens(c, rows))

    def step(number):
        train_step(gpt, optimizer, [(idx, idx, Key(1, number))], grads, lr=1e-3, grad_clip=1.0)
    return step


def measure_torch(dtype, compiled, tiny):
    """The same in PyTorch: its fused AdamW, its attention, autocast for bfloat16."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    c = configuration(tiny)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype != "float32"
    model = TorchGPT(_architecture(c)).take(make_model(c, "cpu").params).cuda().train()
    loss_of = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99), fused=True)
    idx = torch.as_tensor(make_tokens(c, c["batch_size"])).cuda()

    def step(number):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(idx, idx)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"seconds": seconds_of(step, torch.cuda.synchronize, tiny),
            "bytes": torch.cuda.max_memory_reserved()}


def training(tiny):
    """Wall-clock time to the validation loss that nanoGPT reports. Training stops there."""
    bar = 4.1 if tiny else NANOGPT_LOSS
    with tempfile.TemporaryDirectory() as folder:
        words = [f"--{n.replace('_', '-')}={v}" for n, v in TINY.items()] if tiny else []
        words += ["--max-iters=30", "--eval-interval=10", "--data=pydocs"] if tiny else []
        words = ["--device=gpu", "--dtype=bfloat16", "--out-dir", folder, *words]
        limit = time.perf_counter() + LIMITS["--train"]
        with subprocess.Popen(_command(tiny, "--train", *words), stdout=subprocess.PIPE) as running:
            best, ended = float("nan"), False
            while not ended and time.perf_counter() < limit and not best <= bar:
                time.sleep(0.2)
                ended = running.poll() is not None         # then the metrics are complete
                evaluated = [line for line in _metrics(folder) if "val_loss" in line]
                best = min((line["val_loss"] for line in evaluated), default=float("nan"))
            running.kill()
        reached = next((line for line in evaluated if line["val_loss"] <= bar), None)
    when = (f"after {reached['seconds']:.0f} s, at step {reached['step']}" if reached else
            f"not in time, at best {best:.4f}")
    return [(f"baby, bfloat16: validation loss {bar} reached", when, "60 s")]


def nccl(tiny):
    """Training as a rank of mpiexec against training without. With several GPUs, call
    benchmarks/nccl.py."""
    name, bar = "a group of one, NCCL", 1e-10
    found = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mpiexec = shutil.which("mpiexec", path=found)
    if importlib.util.find_spec("mpi4py") is None or mpiexec is None:
        return [(name, "not run: MPI is not installed", "")]
    done = subprocess.run([mpiexec, "-n", "1", sys.executable, "-m", "benchmarks.nccl",
                           *(["--double"] if tiny else [])],
                          stdout=subprocess.PIPE, text=True, timeout=LIMITS["nccl"])
    if done.returncode:
        return [(name, f"failed with status {done.returncode}", "**wrong**")]
    result = json.loads(done.stdout.splitlines()[-1])
    if "NCCL" not in result["description"]:
        return [(name, "not run: NCCL is not installed", "")]
    rows = [(f"{name}: parameters after 3 steps against one process, {kind}, float64",
             f"{apart:.1e}", f"{bar:.0e}" + ("" if apart <= bar else " **wrong**"))
            for kind, apart in result["apart"].items()]
    times = " against ".join(f"{1000 * result[key]:.2f} ms" for key in ("seconds", "alone"))
    return [*rows, (f"{name}: training step against one process", times, "")]


STAGES = {stage.__name__: stage for stage in (tests, parity, repeats, steps, training, nccl)}
MEASURES = {"npgpt": measure_npgpt, "torch": measure_torch}


def configuration(tiny, family="gpt", **changes):
    """name -> value, of the baby configuration; for a Llama with grouped queries and QK-norm."""
    folder = bundled("configs")
    values = read_toml(folder / "laptop.toml") | read_toml(folder / "baby.toml")
    values |= LLAMA if family == "llama" else {}
    return {"family": family, "vocab_size": 65} | values | (TINY if tiny else {}) | changes


def _architecture(c):
    names = "vocab_size", *FAMILY_FIELDS[c["family"]]
    return FAMILIES[c["family"]].Config(**{name: c[name] for name in names if name in c})


def make_model(c, device, dtype="float32", fused=False):
    return FAMILIES[c["family"]](_architecture(c), device=device, dtype=dtype, fused=fused)


def make_tokens(c, rows):
    return np.random.default_rng(0).integers(c["vocab_size"], size=(rows, c["block_size"]))


def seconds_of(step, synchronize, tiny):
    """Seconds of one step, after some steps to warm up."""
    warm_up, count = (1, 2) if tiny else (WARM_UP, STEPS)
    for number in range(warm_up):
        step(number)
    synchronize()
    began = time.perf_counter()
    for number in range(count):
        step(number)
    synchronize()
    return (time.perf_counter() - began) / count


def _metrics(folder):
    """-> the lines of a run's metrics so far."""
    path = Path(folder) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _command(double, *words):
    """-> the command that runs this script with these arguments."""
    return [sys.executable, "-m", "benchmarks.gpu", *(["--double"] if double else []), *words]


def _in_process(double, *words):
    """Run this script in a separate process -> its output."""
    try:
        result = subprocess.run(_command(double, *words), stdout=subprocess.PIPE, text=True,
                                timeout=LIMITS[words[0]])
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode()
    if result.returncode:
        raise SystemExit(f"{' '.join(words)} failed with status {result.returncode}")
    return result.stdout


def _torch_version():
    try:
        return f"PyTorch {importlib.metadata.version('torch')}"
    except importlib.metadata.PackageNotFoundError:
        return "no PyTorch"


if __name__ == "__main__":
    raise SystemExit(main())
