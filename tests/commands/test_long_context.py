"""`train.py --attention` and `--recompute`: what they change, and that a run keeps them."""

import json

import numpy as np
import pytest

import train as train_script
from npgpt.durable import SUMS
from npgpt.layers import attention_forward, tiled_attention_forward
from npgpt.training import estimate, setup
from tests.commands.tiny import LLAMA, TEXT, metrics, weights

OPTIONS = ["--dropout=0.2", "--workers=1", "--lr-decay-iters=8"]


@pytest.fixture
def resume(run):
    return lambda *words: run(train_script.main, "--resume", *words)


@pytest.fixture
def used(monkeypatch):
    """-> the function that computes attention, and whether blocks are recomputed, of each run."""
    found, assemble = [], setup.assemble

    def watched(*arguments):
        run = assemble(*arguments)
        found.append((run.model.layers.attention_forward, run.model.recompute))
        return run

    monkeypatch.setattr(setup, "assemble", watched)
    return found


def values(checkpoint):
    return json.loads((checkpoint / "training.json").read_text())["values"]


@pytest.mark.parametrize("family", [[], LLAMA], ids=["gpt", "llama"])
def test_recomputed_blocks_change_no_bit(train, family, used):
    for name, words in (("kept", []), ("again", ["--recompute"])):
        train(*OPTIONS, *family, "--attention=tiled", *words, "--max-iters=8", f"--out-dir={name}")
    assert used == [(tiled_attention_forward, False), (tiled_attention_forward, True)]
    first, second = (weights(f"{name}/checkpoint-8") for name in ("kept", "again"))
    assert [name for name in first if first[name].tobytes() != second[name].tobytes()] == []


def test_tiles_change_a_run_by_rounding_only(train):
    for how in ("plain", "tiled"):
        train(*OPTIONS, "--dtype=float64", f"--attention={how}", "--max-iters=8",
              f"--out-dir={how}")
    plain, tiled = ([line["loss"] for line in metrics(how) if "loss" in line]
                    for how in ("plain", "tiled"))
    np.testing.assert_allclose(plain, tiled, rtol=1e-12)


def test_resumed_run_keeps_its_attention_and_equals_the_uninterrupted_one(train, resume, used,
                                                                          home):
    words = [*OPTIONS, "--attention=tiled", "--recompute"]
    train(*words, "--max-iters=8", "--out-dir=whole")
    train(*words, "--max-iters=3", "--out-dir=parts")
    assert resume("--max-iters=8", "--out-dir=parts").status == 0
    assert used == [(tiled_attention_forward, True)] * 3
    whole, parts = (weights(f"{name}/checkpoint-8") for name in ("whole", "parts"))
    assert [name for name in whole if whole[name].tobytes() != parts[name].tobytes()] == []
    assert resume("--max-iters=9", "--out-dir=parts", "--attention=plain",
                  "--no-recompute").status == 0
    assert used[-1] == (attention_forward, False)
    saved = values(home / "parts/checkpoint-9")
    assert (saved["attention"], saved["recompute"]) == ("plain", False)


def test_attention_of_a_long_context_is_tiled_and_that_of_an_old_run_stays_plain(train, resume,
                                                                                 used, home):
    (home / "fox.txt").write_text(TEXT * 4)
    train(*OPTIONS, "--block-size=512", "--batch-size=1", "--eval-iters=1", "--final-windows=1",
          "--max-iters=1", "--out-dir=run")
    checkpoint = home / "run/checkpoint-1"
    state = json.loads((checkpoint / "training.json").read_text())
    assert state["values"].pop("attention") == "auto" and not state["values"].pop("recompute")
    (checkpoint / "training.json").write_text(json.dumps(state))
    (checkpoint / SUMS).unlink()                     # else the change is found
    assert resume("--max-iters=2", "--out-dir=run").status == 0
    assert used == [(tiled_attention_forward, False), (attention_forward, False)]
    assert values(home / "run/checkpoint-2")["attention"] == "plain"


def test_unknown_attention_is_refused_before_anything_is_written(run, home):
    refused = run(train_script.main, "--attention=flash", "--out-dir=run")
    assert refused.status == 2 and not (home / "run").exists()
    assert refused.err == "train.py: --attention must be auto, plain or tiled, got 'flash'\n"


def test_less_memory_is_promised_with_recomputation(train, monkeypatch):
    """What this process has by now would hide the difference."""
    monkeypatch.setattr(estimate, "memory_of_run", lambda arrays, device, forked=0: arrays)

    def promised(*words):
        out = train(*words, "--n-layer=6", "--block-size=128", "--max-iters=1", "--eval-iters=1",
                    "--final-windows=1", "--workers=1", f"--out-dir={len(words)}")
        line = next(line for line in out.splitlines() if "memory" in line)
        return float(line.split("about ")[1].split()[0])

    assert promised("--recompute") < 0.6 * promised()
