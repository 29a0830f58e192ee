"""What `train.py` prints and writes, and which options change the result."""

import os
import re
from itertools import pairwise

import numpy as np
import pytest

import train as train_script
from npgpt.backend import get_device
from npgpt.parallel import can_fork
from npgpt.training import estimate, setup
from tests.commands.tiny import LLAMA, SIZES, TINY, metrics, state, weights


def test_header_says_what_is_trained_on_what(train):
    output = train("--max-iters=1")
    assert re.search(r"^npgpt +config laptop on CPU.*, float32", output)
    assert re.search(r"\ndata +fox\.txt: 1,760 characters, 28 of them distinct\n", output)
    assert re.search(r"\nsha256 +[0-9a-f]{64}\n", output)
    assert re.search(r"\nmodel +4,016 parameters: layers 1, heads 2, channels 16, context 16\n",
                     output)
    assert re.search(r"\nmemory +about .* [KM]B\n", output)
    assert re.search(r"\ntime +at least \d+ s for 1 step of 64 tokens, \d+ ms each\n", output)
    assert re.search(r"\nwrites +out/laptop\n", output)
    assert "\x1b" not in output                       # no colours where there is no terminal
    columns = [re.match(r"\S+ +", line).end() for line in output.splitlines()[:7]]
    assert len(set(columns)) == 1


def test_end_says_where_the_model_is_and_how_to_use_it(train, home):
    output = train("--max-iters=20")
    assert re.search(r"\nvalidation loss \d\.\d{4} \(\d\.\d{4} bits per byte\) over the whole "
                     r"split, after \d+ s\n", output)
    assert re.search(r"\npeak memory: [\d.]+ [MG]B\n", output)
    assert output.endswith("\nthe model is in out/laptop/checkpoint-20; "
                           "to generate text: npgpt sample --model out/laptop\n")
    (home / "sample.py").touch()                     # as in a checkout
    assert train("--max-iters=1").endswith(
        "to generate text: python sample.py --model out/laptop-2\n")


def test_metrics_have_the_loss_of_steps_and_of_evaluations_and_times(train, home):
    output = train("--max-iters=20")
    evaluated = r"^step \d+/20  train \d\.\d{4}  val \d\.\d{4}  \d\.\d{4} bits/byte$"
    assert len(re.findall(evaluated, output, re.M)) == 3
    lines = metrics("out/laptop")
    assert [(line["step"], "loss" in line, "val_loss" in line) for line in lines] == [
        (0, False, True), (5, True, False), (10, True, False), (10, False, True),
        (15, True, False), (20, True, False), (20, False, True), (20, False, False)]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[1]
    assert lines[-2]["val_loss"] < lines[0]["val_loss"] < 3.5


def test_speed_is_that_of_the_steps_since_the_last_line(train, home, monkeypatch):
    """By a clock that advances by a second for each step and a thousand for anything else."""
    clock = {"now": 0.0}
    original = train_script.train_step

    def train_step(*arguments, **options):
        clock["now"] += 1
        return original(*arguments, **options)

    def slow(function):
        def call(*arguments, **options):
            clock["now"] += 1000
            return function(*arguments, **options)
        return call

    monkeypatch.setattr(train_script, "train_step", train_step)
    for name in ("evaluate", "save"):
        monkeypatch.setattr(train_script, name, slow(getattr(train_script, name)))
    monkeypatch.setattr("npgpt.training.monitor.time.perf_counter", lambda: clock["now"])
    train("--max-iters=20", "--workers=1")
    logged = [line for line in metrics("out/laptop") if "loss" in line]
    assert [line["tokens_per_second"] for line in logged] == [64, 64, 64, 64]


@pytest.mark.parametrize("family", [[], [*LLAMA, "--head-dim=12"]], ids=["gpt", "llama"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_processes_that_only_update_change_only_rounding(train, optimizer, family, monkeypatch):
    """As for a large model: one of three computes."""
    words = ["--dropout=0.2", "--grad-accum=2", f"--optimizer={optimizer}", "--max-iters=6",
             *family]
    train(*words, "--workers=1", "--out-dir=one")
    monkeypatch.setattr(setup, "choose_ranks", lambda *run: (3, 1))
    output = train(*words, "--out-dir=three")
    assert ", 1 process that computes and 2 that only update\n" in output
    three, one = (weights(f"{name}/checkpoint-6") | state(f"{name}/checkpoint-6")
                  for name in ("three", "one"))
    assert three.keys() == one.keys()
    for name, array in one.items():
        np.testing.assert_allclose(three[name], array, rtol=0, atol=1e-6)
    of_three, of_one = (metrics(name)[-1]["whole_val_loss"] for name in ("three", "one"))
    assert of_three == pytest.approx(of_one, rel=1e-5)


def test_same_seed_gives_the_same_bits_and_another_seed_different_ones(train, home):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train("--max-iters=5", f"--seed={seed}", f"--out-dir={name}")
    a, b, c = ((home / name / "checkpoint-5/model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c


def test_evaluations_and_samples_do_not_change_training(train, home):
    """Nor does what is logged."""
    for name, interval in (("often", 1), ("never", 100)):
        train("--max-iters=6", "--dropout=0.2", f"--eval-interval={interval}",
              f"--log-interval={interval}", f"--out-dir={name}")
    often, never = ((home / name / "checkpoint-6" / file).read_bytes()
                    for name in ("often", "never")
                    for file in ("model.safetensors",))
    assert often == never


@pytest.mark.parametrize("family", [[], LLAMA], ids=["gpt", "llama"])
@pytest.mark.parametrize("workers", [1, 2])
def test_accumulated_run_equals_that_of_the_large_batch(train, workers, family):
    options = ["--max-iters=10", "--dropout=0.3", "--dtype=float64", f"--workers={workers}",
               *family]
    train(*options, "--batch-size=8", "--eval-iters=1", "--out-dir=one")
    train(*options, "--batch-size=2", "--grad-accum=4", "--eval-iters=4", "--out-dir=four")
    one, four = (weights(f"{n}/checkpoint-10") for n in ("one", "four"))
    for name in one:
        np.testing.assert_allclose(four[name], one[name], rtol=0, atol=1e-11)
    for line, other in zip(metrics("one"), metrics("four"), strict=True):
        for name in line.keys() - {"seconds", "tokens_per_second"}:
            assert line[name] == pytest.approx(other[name], rel=1e-11), name


def test_more_workers_than_cores_are_noted(train):
    cores = get_device("cpu").cores
    output = train("--max-iters=1", f"--workers={cores + 1}", f"--batch-size={cores + 1}")
    assert f"{cores + 1} processes share {cores} cores, and are slower than {cores}\n" in output
    assert "note " not in train("--max-iters=1", "--workers=1")
    assert "note " not in train("--max-iters=1", f"--workers={cores}", f"--batch-size={cores}")


def test_note_of_the_text_is_shown_beside_that_of_the_rates(run, monkeypatch):
    monkeypatch.setattr("npgpt.text.load._pydocs", lambda: "abc " * 500)
    result = run(train_script.main, *SIZES[1:], "--optimizer=adamw", "--max-iters=1")
    assert (result.status, result.err) == (0, "")
    note = result.out.splitlines()[0]
    assert note.startswith("note    learning rate 0.001, AdamW's default: 0.015 in the "
                           "configuration is for Muon; data/tinyshakespeare.txt is missing")


def test_best_checkpoint_is_the_one_with_the_lowest_validation_loss(run, train, home):
    """A learning rate that is far too high makes the model worse over time; also after a resume."""
    train("--optimizer=adamw", "--decay=cosine", "--hold=0", "--learning-rate=1",
          "--warmup-iters=20", "--eval-interval=3", "--max-iters=15", "--lr-decay-iters=40")
    assert run(train_script.main, "--resume", "--max-iters=21").status == 0
    losses = {m["step"]: m["val_loss"] for m in metrics("out/laptop") if "val_loss" in m}
    best = min((step for step in losses if step), key=losses.get)
    assert best < 15 and all(after > losses[best] for step, after in losses.items() if step > 15)
    assert (home / "out/laptop/best").read_text() == f"checkpoint-{best}\n"
    assert (home / "out/laptop/latest").read_text() == "checkpoint-21\n"
    assert sorted(path.name for path in (home / "out/laptop").glob("checkpoint-*")) == sorted(
        [f"checkpoint-{best}", "checkpoint-21"])


def test_overwritten_run_starts_again(train, home):
    train("--max-iters=15", "--out-dir=run")
    train("--max-iters=5", "--out-dir=run", "--overwrite")
    assert sorted(path.name for path in (home / "run").iterdir()) == [
        "best", "checkpoint-5", "latest", "metrics.jsonl"]
    assert [line["step"] for line in metrics("run")] == [0, 5, 5, 5]


@pytest.mark.parametrize(("words", "config"), [
    ([], "baby"), (["--device=gpu"], "baby"), (["--device=gpu", "--family=llama"], "baby"),
    (["--device=cpu"], "laptop"), (["--device=cpu", "--family=llama"], "modern"),
    (["--config=lecture"], "lecture"),
])
def test_configuration_follows_from_the_device_unless_it_is_given(device, train, words, config):
    """There is a GPU."""
    output = train("--max-iters=1", *words)
    assert f"config {config} on " in output and f"\nwrites  out/{config}\n" in output


@pytest.mark.skipif(not can_fork(), reason="processes cannot share memory here")
def test_worker_that_ends_early_is_named_with_the_checkpoint(run, monkeypatch):
    first, original, steps = os.getpid(), train_script.train_step, []

    def train_step(*arguments, **options):
        steps.append(1)
        if os.getpid() != first and len(steps) == 13:
            os._exit(7)
        return original(*arguments, **options)

    monkeypatch.setattr(train_script, "train_step", train_step)
    result = run(train_script.main, *TINY, "--max-iters=20", "--workers=2", "--out-dir=run")
    assert result.status == 3
    assert result.err == ("train.py: worker 1 of 2 ended early, with status 7; run/checkpoint-10 "
                          "is complete\n")


WILD = ["--learning-rate=100", "--min-lr=100", "--weight-decay=100", "--warmup-iters=0",
        "--grad-clip=0", "--max-iters=400"]


def test_divergence_ends_with_status_3_and_a_complete_checkpoint(run, home):
    result = run(train_script.main, *TINY, *WILD, "--eval-interval=5", "--out-dir=run")
    assert result.status == 3
    kept = re.fullmatch(r"train\.py: the (?:gradients|validation loss) .*not finite; "
                        r"run/(checkpoint-\d+) is complete\. Try a lower --learning-rate\n",
                        result.err)[1]
    assert (home / "run/latest").read_text() == kept + "\n"
    assert all(np.isfinite(array).all() for array in weights(f"run/{kept}").values())


def test_divergence_before_the_first_checkpoint_says_so(run):
    result = run(train_script.main, *TINY, *WILD, "--eval-interval=400", "--out-dir=none")
    assert result.status == 3
    step = re.fullmatch(r"train\.py: by step (\d+) the gradients of 1\d steps in a row were not "
                        r"finite; there is no checkpoint yet\. Try a lower --learning-rate\n",
                        result.err)[1]
    logged = [line for line in metrics("none") if "loss" in line]
    assert logged[-1]["step"] == int(step)
    assert [line["grad_norm"] is None for line in logged[-2:]] == [True, True]


def test_ten_nonfinite_steps_in_a_row_end_training_and_nine_do_not(run, monkeypatch):
    original, norms = train_script.train_step, []

    def train_step(*arguments, **options):
        loss, norm = original(*arguments, **options)
        return loss, norms.pop(0) if norms else norm

    monkeypatch.setattr(train_script, "train_step", train_step)
    inf, one = np.float64("inf"), np.float64(1)
    for name, (status, norms[:]) in enumerate([
        (0, [inf] * 9 + [one] + [inf] * 9), (3, [one] * 4 + [inf] * 10), (0, [one] * 5 + [inf] * 9),
    ]):
        words = ["--max-iters=20", "--log-interval=1", f"--out-dir={name}"]
        assert run(train_script.main, *TINY, *words, "--workers=1").status == status, name


def test_memory_that_runs_out_before_the_first_step_leaves_nothing(run, home, monkeypatch):
    def fail(*arguments):
        raise MemoryError("no more")

    monkeypatch.setattr(estimate, "step_seconds", fail)
    result = run(train_script.main, *TINY, "--workers=1")
    assert (result.status, result.out) == (3, "")
    assert result.err == ("train.py: out of memory (no more); lower --batch-size (and raise "
                          "--grad-accum), --block-size or --n-embd, or add --recompute\n")
    assert not (home / "out").exists()


def test_seconds_count_training_alone_and_go_on_after_a_resume(run, train):
    train("--max-iters=5", "--out-dir=run")
    assert run(train_script.main, "--resume", "--max-iters=10", "--out-dir=run").status == 0
    lines = metrics("run")
    assert all(before["seconds"] <= line["seconds"] for before, line in pairwise(lines))
    assert lines[-1]["seconds"] > lines[1]["seconds"] > 0
