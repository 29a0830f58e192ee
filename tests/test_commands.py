"""The commands as the user runs them: processes, with their output, exit status and files."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from npgpt import GPT, GPTConfig
from npgpt.backend import get_device
from npgpt.text.source import TokenSource
from tests.parallel.test_processes import gone
from tests.training import reference

ROOT = Path(__file__).parent.parent
TINY = ["--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=16", "--batch-size=4",
        "--eval-iters=2", "--log-interval=5", "--eval-interval=10"]
TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
ENVIRONMENT = {
    **os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100",
    "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",      # no network
}


@pytest.fixture
def home(tmp_path):
    """A working directory with a small text."""
    (tmp_path / "fox.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture(autouse=True)
def signals_arrive():
    """If a shell starts the tests in the background, they and their child processes ignore Ctrl-C;
    this undoes it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(home, *words, script="train.py"):
    return subprocess.run([sys.executable, str(ROOT / script), *words], cwd=home, env=ENVIRONMENT,
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)


def train(home, *words):
    result = run(home, "--data=fox.txt", *TINY, *words)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout


def tensors(checkpoint):
    """The parameters and the optimiser's state."""
    model, optimizer = "model.safetensors", "training.safetensors"
    return load_file(checkpoint / model) | load_file(checkpoint / optimizer)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def everything(home):
    """Every path under a directory, with the content of the files."""
    return {str(path.relative_to(home)): path.read_bytes() if path.is_file() else None
            for path in home.rglob("*")}


def test_training_prints_writes_and_can_be_sampled(home):
    output = train(home, "--max-iters=20")
    assert re.search(r"npgpt +config laptop on CPU", output)
    assert re.search(r"data +fox\.txt: 1,760 characters, 28 of them distinct", output)
    assert re.search(r"sha256 +[0-9a-f]{64}\n", output)
    assert re.search(r"model +[\d,]+ parameters: layers 1, heads 2, channels 16", output)
    assert re.search(r"memory +about .* [KM]B", output) and re.search(r"time +about", output)
    assert len(re.findall(r"^step \d+/20  train \d\.\d{4}  val \d\.\d{4}$", output, re.M)) == 3
    assert "\x1b" not in output                       # no colours where there is no terminal
    assert output.endswith("the model is in out/laptop/checkpoint-20; "
                           "to generate text: npgpt sample --out-dir out/laptop\n")

    lines = metrics(home / "out/laptop")
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [5, 10, 15, 20]
    assert all(line.keys() == {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second",
                               "seconds"} for line in logged)
    evaluated = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in evaluated] == [0, 10, 20]
    assert all(line["train_loss"] > 0 for line in evaluated)
    assert evaluated[-1]["val_loss"] < evaluated[0]["val_loss"] < 3.5
    assert lines[-1]["whole_val_loss"] == pytest.approx(evaluated[-1]["val_loss"], rel=0.05)

    options = ["--prompt", "the qu", "--max-new-tokens=30", "--seed=1", "--top-k=5"]
    sample = run(home, *options, "--num-samples=2", script="sample.py")
    assert sample.returncode == 0
    first, second = sample.stdout.removesuffix("\n").split("\n" + "-" * 40 + "\n")
    assert first.startswith("the qu") and second.startswith("the qu") and first != second
    assert len(first) == len(second) == 36
    again = run(home, *options, "--out-dir", "out/laptop", script="sample.py")
    assert again.stdout == first + "\n"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("workers", [1, 3])
def test_resumed_run_equals_the_uninterrupted_run_bit_for_bit(home, optimizer, workers):
    options = ["--dropout=0.2", "--grad-accum=2", "--lr-decay-iters=20", f"--workers={workers}",
               f"--optimizer={optimizer}"]
    train(home, *options, "--max-iters=20", "--out-dir=whole")
    train(home, *options, "--max-iters=7", "--out-dir=parts")
    result = run(home, "--resume", "--max-iters=20", "--out-dir=parts")
    assert result.returncode == 0, result.stderr
    whole, parts = (tensors(home / name / "checkpoint-20") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if whole[name].tobytes() != parts[name].tobytes()] == []
    losses = [[(m["step"], m["loss"]) for m in metrics(home / name) if "loss" in m]
              for name in ("whole", "parts")]
    assert dict(losses[1]).items() <= dict(losses[0]).items()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_processes_that_only_update_change_only_rounding(home, optimizer):
    """As for a large model: one of three computes."""
    words = ["--data=fox.txt", *TINY, "--dropout=0.2", "--grad-accum=2", f"--optimizer={optimizer}"]
    large = ("import sys, train; from npgpt.training import setup; "
             "setup.choose_ranks = lambda *run: (3, 1); sys.exit(train.main())")
    command = [sys.executable, "-c", large, *words, "--max-iters=6", "--out-dir=three"]
    result = subprocess.run(command, cwd=home, env=ENVIRONMENT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert ", 1 process that computes and 2 that only update\n" in result.stdout
    train(home, *words, "--max-iters=6", "--workers=1", "--out-dir=one")
    three, one = (tensors(home / name / "checkpoint-6") for name in ("three", "one"))
    assert three.keys() == one.keys()
    for name, array in one.items():
        np.testing.assert_allclose(three[name], array, rtol=0, atol=1e-6)
    of_three, of_one = (metrics(home / name)[-1]["whole_val_loss"] for name in ("three", "one"))
    assert of_three == pytest.approx(of_one, rel=1e-5)


MUON = {"optimizer": "muon", "learning_rate": 0.015, "min_lr": 3e-4, "hold": 0.0, "decay": "linear",
        "muon_lr": 0.02, "muon_momentum": 0.9}
ADAMW = {"optimizer": "adamw", "learning_rate": 4e-3, "min_lr": 1e-4, "hold": 0.3,
         "decay": "cosine"}


@pytest.mark.parametrize("values", [MUON, ADAMW], ids=["muon", "adamw"])
@pytest.mark.parametrize(("workers", "grad_accum"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_training_agrees_with_the_reference_trainer(home, values, workers, grad_accum):
    given = values | {"seed": 9, "grad_clip": 0.5, "warmup_iters": 2, "grad_accum": grad_accum}
    train(home, "--max-iters=6", "--dropout=0.2", f"--workers={workers}",
          *(f"--{name.replace('_', '-')}={value}" for name, value in given.items()))
    source = TokenSource.from_text(TEXT)
    model = GPT(GPTConfig(vocab_size=28, block_size=16, n_layer=1, n_head=2, n_embd=16,
                          dropout=0.2), seed=9)
    ids = source.tokenizer.encode(TEXT)
    reference.train(model, ids, given | {"batch_size": 4, "lr_decay_iters": 6, "beta1": 0.9,
                                         "beta2": 0.99, "weight_decay": 0.1}, steps=6)
    written = load_file(home / "out/laptop/checkpoint-6/model.safetensors")
    for name, array in model.params.items():
        np.testing.assert_allclose(written[name], array, rtol=0, atol=2e-5)

    # The last evaluation: 8 windows spread over each split, then all of the validation split.
    splits = {"train_loss": (ids[:1584], 8), "val_loss": (ids[1584:], 8),
              "whole_val_loss": (ids[1584:], None)}
    recorded = {}
    for line in metrics(home / "out/laptop"):
        recorded |= line
    losses = {}
    for name, (split, windows) in splits.items():
        starts = range(0, len(split) - 16, 16)
        if windows:
            starts = [starts[round(i * (len(starts) - 1) / (windows - 1))] for i in range(windows)]
        rows = np.array([split[start:start + 17] for start in starts])
        losses[name] = float(model.loss(rows[:, :-1], rows[:, 1:]))
        assert recorded[name] == pytest.approx(losses[name], rel=1e-5)
    assert len({round(loss, 4) for loss in losses.values()}) == 3       # and they can be told apart


def test_same_seed_gives_the_same_bits_and_another_seed_different_ones(home):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(home, "--max-iters=5", f"--seed={seed}", f"--out-dir={name}")
    a, b, c = ((home / name / "checkpoint-5/model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


def test_accumulated_run_equals_that_of_the_large_batch(home):
    options = ["--max-iters=10", "--dropout=0.3", "--learning-rate=1e-3"]
    train(home, *options, "--batch-size=8", "--out-dir=one")
    train(home, *options, "--batch-size=2", "--grad-accum=4", "--out-dir=four")
    one, four = (load_file(home / n / "checkpoint-10/model.safetensors") for n in ("one", "four"))
    difference = max(np.abs(one[name] - four[name]).max() for name in one)
    assert difference < 2e-5


def test_workers_of_a_toml_file_are_checked_like_a_flag(home):
    (home / "my.toml").write_text("workers = 13\nbatch_size = 12\n")
    result = run(home, "--config=my.toml", "--data=fox.txt")
    assert result.returncode == 2 and "--workers must be at most --batch-size, 12" in result.stderr


def test_peak_memory_counts_what_processes_share_once(home):
    words = ("--max-iters=2", "--n-embd=384", "--n-layer=6", "--eval-iters=1", "--workers=2",
             "--batch-size=2")
    output = train(home, *words)
    about, peak = (float(re.search(rf"{what} +(?:about )?([\d.]+) MB", output)[1])
                   for what in ("memory", "peak memory:"))
    assert 0.7 * about < peak < 1.6 * about       # the programs themselves take 2 × 40 MB


def test_memory_that_runs_out_before_the_first_step_leaves_nothing(home):
    broken = ("import sys, train; from npgpt.training import estimate\n"
              "def fail(*_): raise MemoryError('no more')\n"
              "estimate.step_seconds = fail\nsys.exit(train.main())")
    result = subprocess.run([sys.executable, "-c", broken, "--data=fox.txt", "--workers=1"],
                            cwd=home, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 3 and "out of memory (no more)" in result.stderr
    assert result.stderr.count("\n") == 1 and not (home / "out").exists()


def test_more_workers_than_cores_are_noted(home):
    cores = get_device("cpu").cores
    output = train(home, "--max-iters=1", f"--workers={cores + 1}", f"--batch-size={cores + 1}")
    assert f"{cores + 1} processes share {cores} cores, and are slower than {cores}\n" in output
    assert "note " not in train(home, "--max-iters=1", "--workers=1")


def test_finished_run_can_be_extended_and_the_next_stands_beside_it(home):
    train(home, "--max-iters=10")
    finished = run(home, "--resume")
    assert finished.returncode == 2
    assert finished.stderr == ("train.py: the run in out/laptop has finished its 10 steps; to "
                               "continue, raise --max-iters\n")
    assert run(home, "--resume", "--max-iters=15").returncode == 0
    assert (home / "out/laptop/latest").read_text() == "checkpoint-15\n"
    train(home, "--max-iters=5")
    assert (home / "out/laptop-2/latest").read_text() == "checkpoint-5\n"
    assert (home / "out/laptop/latest").read_text() == "checkpoint-15\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_stops_and_the_run_can_be_resumed(home, number, status):
    words = ["--data=fox.txt", *TINY, "--max-iters=1000000", "--eval-interval=1000000",
             "--warmup-iters=2", "--out-dir=run"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=home, env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:
        recorded = home / "run/metrics.jsonl"
        while not (recorded.exists() and "grad_norm" in recorded.read_text()):
            assert process.poll() is None
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, "")
    step = int(re.search(r"stopped at step (\d+); to continue: npgpt train --resume --out-dir run",
                         output)[1])
    assert (home / "run/latest").read_text() == f"checkpoint-{step}\n"
    resumed = run(home, "--resume", "--out-dir=run", f"--max-iters={step + 3}")
    assert resumed.returncode == 0
    assert (home / "run/latest").read_text() == f"checkpoint-{step + 3}\n"


@contextmanager
def training_processes(home, workers=3):
    """An endless run, in its own process group -> process, its workers' pids."""
    words = ["--data=fox.txt", *TINY, "--max-iters=1000000", "--eval-interval=20",
             "--out-dir=run", f"--workers={workers}"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=home, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:
        while not (home / "run/latest").exists():
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        pids = list(map(int, children.split()))
        assert len(pids) == workers - 1
        yield process, pids
        assert gone(pids)


def test_ctrl_c_in_a_terminal_reaches_every_process_and_stops_the_run_once(home):
    with training_processes(home) as (process, _):
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert output.count("stopped at step") == 1


def test_killed_worker_ends_the_run_and_the_checkpoint_is_complete(home):
    with training_processes(home) as (process, pids):
        os.kill(pids[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert re.fullmatch(r"train.py: worker 2 of 3 was killed by signal 9; run/checkpoint-\d+ is "
                        r"complete\n", errors)
    step = int((home / "run/latest").read_text().split("-")[1])
    assert run(home, "--resume", "--out-dir=run", "--workers=1",
               f"--max-iters={step + 1}"
               ).returncode == 0


def test_workers_end_if_the_first_process_is_killed(home):
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with training_processes(home) as (process, _):
        process.kill()
        process.communicate(timeout=60)
    assert not os.path.isdir("/dev/shm") or set(os.listdir("/dev/shm")) <= shared


def test_progress_bar_is_shown_in_a_terminal(home):
    """`script` runs a command in a pseudo-terminal."""
    words = [sys.executable, str(ROOT / "train.py"), "--data=fox.txt", *TINY, "--max-iters=10"]
    result = subprocess.run(["script", "-qec", " ".join(words), "/dev/null"], cwd=home,
                            env=ENVIRONMENT | {"TERM": "xterm-256color"}, capture_output=True,
                            text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0
    assert re.search(r"10/10.*loss \d\.\d{4}  [\d,]+ tokens/s  \d+ s left", result.stdout)
    assert "\x1b[" in result.stdout


@pytest.mark.parametrize(("words", "message"), [
    ("--data=nowhere.txt", "there is no file 'nowhere.txt'; --data takes shakespeare, pydocs or"),
    ("--data=fxo.txt", "there is no file 'fxo.txt'; did you mean 'fox.txt'? --data takes"),
    ("--data=shakespear", "there is no file 'shakespear'; did you mean 'shakespeare'?"),
    ("--data=", "--data is empty; it takes shakespeare, pydocs or the path of a text file"),
    ("--data=http://a.b/c", "--data takes a file, got the address 'http://a.b/c'; download it"),
    ("--data=.", ". is a directory; --data takes a text file"),
    ("--data=empty.txt", "empty.txt is empty"),
    ("--data=latin1.txt", "latin1.txt is not UTF-8 (byte 3 is 0xe9); convert it with: iconv "
     "-f latin1 -t utf-8"),
    ("--data=fox.txt --block-size=5000", "the text is too short"),
    ("--data=shakespeare", "data/tinyshakespeare.txt is missing and cannot be downloaded"),
    ("--n-layer=0", "--n-layer must be at least 1, got 0"),
    ("--n-embd=10 --n-head=3", "--n-embd must be a multiple of --n-head, got 10 and 3"),
    ("--learning-rate=nan", "--learning-rate must be a finite number, got nan"),
    ("--n-layers=3", "unknown option --n-layers; did you mean --n-layer? --help lists all"),
    ("--lr=1e-3", "unknown option --lr; did you mean --learning-rate? --help lists all options"),
    ("--optimizer=adamw --muon-lr=1", "--muon-lr has no effect with --optimizer adamw; leave it"),
    ("--config=zero.toml", "zero.toml: n_layer must be at least 1, got 0"),
    ("--config=broken.toml", "broken.toml is not valid TOML"),
    ("--data=fox.txt --n-embd=100000 --n-layer=1000", "training needs about"),
    ("--resume", "there is no run in out/"),
    ("--resume --out-dir=nowhere", "there is no directory nowhere"),
    ("--data=fox.txt --out-dir=fox.txt", "fox.txt is a file"),
    ("--device=gpu", "no GPU: CuPy is not installed; run: pip install"),
    ("--data=fox.txt --device=cpu --workers=1000",
     "--workers must be at most --batch-size, 12, because each computes some of its sequences, got "
     "1000"),
])
def test_invalid_input_gives_one_line_and_status_2_and_writes_nothing(home, words, message):
    if "--device=gpu" in words and _has_cupy():
        pytest.skip("CuPy is installed here; its messages have tests of their own")
    (home / "empty.txt").touch()
    (home / "latin1.txt").write_bytes("café".encode("latin-1"))
    (home / "broken.toml").write_text("n_layer =")
    (home / "zero.toml").write_text("n_layer = 0")
    before = everything(home)
    result = run(home, *words.split())
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"train.py: {message}") and result.stderr.count("\n") == 1
    assert everything(home) == before


def _has_cupy():
    import importlib.util

    return importlib.util.find_spec("cupy") is not None


def test_invalid_requests_leave_an_existing_run_unchanged(home):
    train(home, "--max-iters=5", "--out-dir=run")
    (home / "other.txt").write_text(TEXT + "more\n")
    before = everything(home)
    for words, message in (
        (["--data=fox.txt", "--out-dir=run"], "run already contains a run"),
        (["--resume", "--out-dir=run", "--max-iters=9", "--n-embd=32"],
         "a resumed run keeps its --n-embd of 16"),
        (["--resume", "--out-dir=run", "--max-iters=9", "--data=other.txt"],
         "the text other.txt is not the one that run was trained on"),
        (["--resume", "--out-dir=run", "--max-iters=3"], "the run in run has finished its 5 steps"),
    ):
        result = run(home, *words)
        assert (result.returncode, result.stdout) == (2, ""), words
        assert result.stderr.startswith(f"train.py: {message}") and result.stderr.count("\n") == 1
    assert everything(home) == before
    (home / "fox.txt").rename(home / "moved.txt")
    result = run(home, "--resume", "--out-dir=run", "--max-iters=9", "--data=moved.txt")
    assert result.returncode == 0            # the same text under another name


@pytest.mark.parametrize(("words", "message"), [
    (["--prompt=naïve"], "'ï', character 3 of the text, is not among the 28"),
    (["--prompt="], "--prompt is empty"),
    (["--temperature=-1"], "--temperature must be at least 0, got -1"),
    (["--top-k=0"], "--top-k must be at least 1, got 0"),
    (["--top-p=1.5"], "--top-p must be at most 1, got 1.5"),
    (["--num-samples=0"], "--num-samples must be at least 1, got 0"),
    (["--out-dir=nowhere"], "there is no directory nowhere"),
    (["--promt=x"], "unknown option --promt; did you mean --prompt? --help lists all"),
])
def test_invalid_input_to_sample_gives_one_line_and_status_2(home, words, message):
    train(home, "--max-iters=5")
    result = run(home, *words, script="sample.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"sample.py: {message}") and result.stderr.count("\n") == 1


def test_closed_pipe_is_not_an_error(home):
    train(home, "--max-iters=5")
    result = subprocess.run(
        f"{sys.executable} {ROOT / 'sample.py'} --max-new-tokens=3000 | head -c 5", shell=True,
        cwd=home, env=ENVIRONMENT, capture_output=True, text=True,
    )
    assert "Traceback" not in result.stderr and "Error" not in result.stderr
    assert len(result.stdout) == 5
    result = subprocess.run(
        f"{sys.executable} {ROOT / 'train.py'} --data=fox.txt {' '.join(TINY)} --max-iters=50 "
        "| head -n 2", shell=True, cwd=home, env=ENVIRONMENT, capture_output=True, text=True,
    )
    assert (result.stderr, result.stdout.count("\n")) == ("", 2)


def test_divergence_ends_with_status_3_and_a_complete_checkpoint(home):
    wild = ["--data=fox.txt", *TINY, "--learning-rate=100", "--min-lr=100", "--weight-decay=100",
            "--warmup-iters=0", "--grad-clip=0", "--max-iters=400"]
    result = run(home, *wild, "--eval-interval=5", "--out-dir=run")
    assert result.returncode == 3
    assert "not finite" in result.stderr and result.stderr.count("\n") == 1
    kept = re.search(r"; run/(checkpoint-\d+) is complete\. Try a lower", result.stderr)
    assert (home / "run/latest").read_text() == kept[1] + "\n"
    weights = load_file(home / "run" / kept[1] / "model.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())

    result = run(home, *wild, "--eval-interval=400", "--out-dir=none")
    assert result.returncode == 3
    assert "there is no checkpoint yet" in result.stderr


def test_best_checkpoint_is_the_one_with_the_lowest_validation_loss(home):
    """A learning rate that is far too high makes the model worse over time; also after a resume."""
    train(home, "--optimizer=adamw", "--decay=cosine", "--hold=0", "--learning-rate=1",
          "--warmup-iters=20", "--eval-interval=3", "--max-iters=15", "--lr-decay-iters=40")
    assert run(home, "--resume", "--max-iters=21").returncode == 0
    losses = {m["step"]: m["val_loss"] for m in metrics(home / "out/laptop") if "val_loss" in m}
    best = min(step for step in losses if step and losses[step] == min(
        loss for at, loss in losses.items() if at))
    assert best < 15
    assert (home / "out/laptop/best").read_text() == f"checkpoint-{best}\n"
    assert (home / "out/laptop/latest").read_text() == "checkpoint-21\n"
    assert f"checkpoint-{best}, " in run(home, script="sample.py").stderr


def test_full_disk_gives_one_line_and_status_3_and_keeps_the_old_checkpoint(home):
    train(home, "--max-iters=5", "--out-dir=run")
    before = everything(home / "run/checkpoint-5")
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--resume", "--out-dir=run", "--max-iters=9"],
        cwd=home, env=ENVIRONMENT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)),
    )
    assert result.returncode == 3
    assert re.match(r"train\.py: .* cannot be written: .*\n$", result.stderr)
    assert everything(home / "run/checkpoint-5") == before
    assert (home / "run/latest").read_text() == "checkpoint-5\n"
    assert not [path for path in (home / "run").iterdir() if path.name.startswith(".")]


def test_module_runs_the_scripts(home):
    def module(*words):
        return subprocess.run([sys.executable, "-m", "npgpt", *words], cwd=home, env=ENVIRONMENT,
                              capture_output=True, text=True)

    assert module("train", "--data=fox.txt", *TINY, "--max-iters=5").returncode == 0
    assert module("sample", "--prompt=fox", "--max-new-tokens=5").stdout.startswith("fox")
    assert "train" in module().stdout
    wrong = module("trian")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert wrong.stderr.startswith("npgpt: unknown command 'trian'")
