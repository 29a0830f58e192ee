"""Which checkpoint is the best one, a run that takes the place of another, and a run without any
checkpoint. test_faults.py kills processes at these moments."""

import json
import math
import os
import re
import sys
from pathlib import Path

import pytest

import sample as sample_script
import train as train_script
from npgpt.checkpoints.run import RunDirectory
from npgpt.durable import SUMS
from tests.commands.tiny import everything
from tests.reliability.faults import KILL, every_fault, in_child
from tests.reliability.tiny_runs import NEW, OLD, beginnings, copy, left, resume, start, train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and fork")


@pytest.fixture
def whole(home):
    """Uninterrupted runs; "old", "same" and "part" are beginnings of them."""
    return beginnings()


def sampled(run, folder="run"):
    """The checkpoint from which sample.py writes."""
    result = run(sample_script.main, f"--out-dir={folder}", "--max-new-tokens=1")
    assert result.status == 0, result.err
    return re.match(r"\w+/(checkpoint-[\d-]+), ", result.err)[1]


def killed(words, call, number=1):
    """Kill a run just before the number-th call of its kind on the file system."""
    kind, name = call.split()
    fault = in_child(lambda: train_script.main(words), "run", KILL, number, [kind])
    assert fault.status == -9 and re.fullmatch(f"{kind} {name}", fault.call), fault


def recorded(checkpoint, **values):
    """Change what a checkpoint says of itself."""
    path = checkpoint / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    (checkpoint / SUMS).unlink(missing_ok=True)


@pytest.fixture
def two(home):
    """A directory whose checkpoints are named `best` and `latest` -> RunDirectory."""
    assert train(start(steps=2)) == (0, "")
    run = RunDirectory.existing(home / "run")
    names = [run.checkpoint(which).name for which in ("best", "latest")]
    assert names == ["checkpoint-1", "checkpoint-2"]
    return run


@pytest.mark.parametrize(("losses", "best"), [
    ((3.0, 2.0), "checkpoint-2"), ((2.0, 2.0), "checkpoint-1"), ((None, 2.0), "checkpoint-2"),
    ((None, None), "checkpoint-1"), ((2, 3), "checkpoint-1"),
])
def test_best_is_the_lower_recorded_loss_whatever_best_names(run, two, losses, best):
    """It is behind after a process was killed between `latest` and `best`."""
    for number, loss in enumerate(losses, 1):
        recorded(two.path / f"checkpoint-{number}", best_val_loss=loss)
    assert two.checkpoint("best").name == sampled(run) == best
    assert two.checkpoint("latest").name == "checkpoint-2"
    lowest = min((loss for loss in losses if loss), default=math.inf)
    assert two.load_state()[0]["best_val_loss"] == lowest
    two.close()


def test_run_killed_before_it_names_its_best_model_keeps_it(whole, run):
    """Its steps 3 and 4 are the best so far, and 5 is worse."""
    copy("part")
    killed(resume(4), r"replace \.best\.new", number=5)   # metrics, then latest and best of step 3
    assert Path("run/latest").read_text() == "checkpoint-4\n"
    assert Path("run/best").read_text() == "checkpoint-3\n"
    assert sampled(run) == "checkpoint-4"
    assert run(train_script.main, *resume(5)).status == 0
    assert Path("run/best").read_text() == "checkpoint-4\n"
    assert left("run") == whole[NEW].left


@pytest.mark.parametrize("value", ["low", [], "missing"])
def test_checkpoint_without_a_valid_loss_is_refused(run, two, value):
    path = two.path / "checkpoint-2"
    recorded(path, best_val_loss=value)
    if value == "missing":
        state = json.loads((path / "training.json").read_text())
        del state["best_val_loss"]
        (path / "training.json").write_text(json.dumps(state))
    for main, words in ((train_script.main, resume()), (sample_script.main, ["--out-dir=run"])):
        result = run(main, *words)
        assert (result.status, result.out) == (2, "")
        assert re.fullmatch(r"\w+\.py: run/checkpoint-2/training\.json is damaged: best_val_loss "
                            rf"is {re.escape(repr(value))}\n", result.err)


@pytest.mark.parametrize("source", ["old", "same"])
def test_old_run_is_whole_until_latest_names_the_new_one(whole, run, source):
    """Killed at each rename of the overwriting run. The first checkpoint has the name of the one in
    "same"."""
    before = everything(source)
    turns = []
    for fault in every_fault(lambda: copy(source), lambda: train_script.main(
            [*start(), "--overwrite"]), "run", [KILL], ("rename", "replace")):
        found = everything("run")
        taken_over = found["latest"] != before["latest"] or (
            b'"seed": %d,' % NEW in found[found["latest"].decode().strip() + "/training.json"])
        turns.append(taken_over)
        if not taken_over:
            assert before.items() <= found.items(), fault
        name = sampled(run)
        seed = json.loads(found[f"{name}/training.json"])["values"]["seed"]
        assert seed == (NEW if taken_over else OLD), fault
    assert turns == sorted(turns) and len(set(turns)) == 2


def test_next_start_finishes_taking_over_and_removes_what_never_did(whole, run):
    overwrite = [*start(), "--overwrite"]
    for call, number, words, seed in (
        (r"replace \.metrics-\w+\.jsonl", 3, resume(5), NEW),
        (r"replace \.metrics-\w+\.jsonl", 3, [*start(OLD, 5), "--overwrite"], OLD),
        (r"replace \.latest\.new", 1, resume(5), OLD),
        (r"replace \.latest\.new", 1, [*start(NEW, 5), "--overwrite"], NEW),
    ):
        copy("old")
        killed(overwrite, call, number)
        directory = RunDirectory.existing(Path("run"))
        state, _, _ = directory.load_state()         # whose metrics are those of the same run
        last = json.loads(directory.metrics.read_text().splitlines()[-1])
        assert last["step"] == state["step"] == (1 if number == 3 else 3)
        directory.close()
        assert run(train_script.main, *words).status == 0
        assert left("run") == whole[seed].left


# --- before the first checkpoint ---

@pytest.fixture
def unsaved(home):
    run = RunDirectory.new(home / "run", "laptop", False)
    run.begin(0)
    run.log(step=0, val_loss=4.2)
    run.close()
    return run


def test_run_without_a_checkpoint_is_neither_resumed_nor_replaced_silently(unsaved, run):
    before = everything("run")
    plain, resumed, sampled = (
        run(train_script.main, *start()), run(train_script.main, *resume()),
        run(sample_script.main, "--out-dir=run"))
    assert [result.status for result in (plain, resumed, sampled)] == [2, 2, 2]
    what = "run contains the metrics of a run that has saved no checkpoint; "
    assert plain.err == (f"train.py: {what}--overwrite replaces it, another --out-dir keeps both\n")
    assert resumed.err == (f"train.py: {what}train again, with --overwrite to replace it or with "
                           "another --out-dir\n")
    assert sampled.err == "sample.py" + resumed.err.removeprefix("train.py")
    assert everything("run") == before
    again = RunDirectory.new(unsaved.path, "laptop", True)
    again.begin(0)
    again.log(step=0, val_loss=4.1)              # and before it saves a checkpoint, it is killed
    again.close()
    assert before.items() <= everything("run").items()
    assert run(train_script.main, *start(), "--overwrite").status == 0


def test_newest_run_without_a_checkpoint_is_named(home, run):
    for name in ("a", "b"):
        run_ = RunDirectory.new(home / "out" / name, "laptop", False)
        run_.begin(0)
        run_.close()
    os.utime("out/a/metrics.jsonl", (2e9, 2e9))
    result = run(train_script.main, "--resume")
    assert result.status == 2
    assert result.err.startswith("train.py: out/a contains the metrics of a run that has saved no ")


def test_complete_checkpoint_that_nothing_names_yet_is_resumed(whole, run):
    """The run was killed just before it named its first one."""
    killed(start(), r"replace \.latest\.new")
    assert sampled(run) == "checkpoint-1" and not Path("run/latest").exists()
    assert run(train_script.main, *start()).err.startswith(
        "train.py: run already contains a run; --resume continues it, ")
    assert run(train_script.main, *resume(5)).status == 0
    assert left("run") == whole[NEW].left
