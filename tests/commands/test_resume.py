"""`train.py --resume`: to the last bit, and what it keeps. tests/commands/test_reference.py stops
a run after each of its steps."""

import json

import pytest

import train as train_script
from npgpt.durable import SUMS
from tests.commands.tiny import LLAMA, TEXT, TINY, metrics, state, weights


@pytest.fixture
def resume(run):
    return lambda *words: run(train_script.main, "--resume", *words)


@pytest.mark.parametrize("family", [[], [*LLAMA, "--qk-norm"]], ids=["gpt", "llama"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("workers", [1, 3])
def test_resumed_run_equals_the_uninterrupted_run_bit_for_bit(train, resume, optimizer, workers,
                                                              family):
    options = ["--dropout=0.2", "--grad-accum=2", "--lr-decay-iters=20", f"--workers={workers}",
               f"--optimizer={optimizer}", *family]
    train(*options, "--max-iters=20", "--out-dir=whole")
    train(*options, "--max-iters=7", "--out-dir=parts")
    assert resume("--max-iters=20", "--out-dir=parts").status == 0
    whole, parts = (weights(f"{name}/checkpoint-20") | state(f"{name}/checkpoint-20")
                    for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if whole[name].tobytes() != parts[name].tobytes()] == []
    losses = [[(m["step"], m["loss"]) for m in metrics(name) if "loss" in m]
              for name in ("whole", "parts")]
    assert losses[1] == losses[0]


def test_finished_run_can_be_extended_and_the_next_stands_beside_it(train, resume, home):
    train("--max-iters=10")
    finished = resume()
    assert (finished.status, finished.out) == (2, "")
    assert finished.err == ("train.py: the run in out/laptop has finished its 10 steps; to "
                            "continue, raise --max-iters\n")
    assert resume("--max-iters=15").status == 0
    assert (home / "out/laptop/latest").read_text() == "checkpoint-15\n"
    train("--max-iters=5")
    assert (home / "out/laptop-2/latest").read_text() == "checkpoint-5\n"
    assert (home / "out/laptop/latest").read_text() == "checkpoint-15\n"


def test_resumed_run_keeps_its_configuration(train, resume, home):
    """All but what may change, which is kept too if it is not given."""
    train("--config=lecture", "--max-iters=5", "--seed=7", "--dropout=0.1", "--workers=2",
          "--eval-iters=1", "--out-dir=run")
    values = [json.loads((home / "run/checkpoint-5/training.json").read_text())["values"]]
    for step in (10, 15):
        result = resume(f"--max-iters={step}", "--out-dir=run", "--log-interval=4")
        assert result.status == 0 and "config lecture on CPU" in result.out
        saved = json.loads((home / f"run/checkpoint-{step}/training.json").read_text())
        assert saved["config_name"] == "lecture" and saved["step"] == step
        values.append(saved["values"])
    assert values[0]["seed"] == 7 and values[0]["workers"] == 2 and values[0]["log_interval"] == 5
    assert values[2] == values[0] | {"max_iters": 15, "log_interval": 4}


def test_resumed_run_keeps_the_options_of_its_model(train, resume, home):
    options = ["--n-inner=24", "--dropout=0.1", "--embd-dropout=0", "--attn-dropout=0.3",
               "--norm-eps=0.01", "--workers=1", "--lr-decay-iters=20"]
    train(*options, "--max-iters=8", "--out-dir=whole")
    train(*options, "--max-iters=3", "--out-dir=parts")
    assert resume(*options, "--max-iters=8", "--out-dir=parts").status == 0
    whole, parts = (weights(f"{name}/checkpoint-8") for name in ("whole", "parts"))
    assert whole["h.0.mlp.c_fc.weight"].shape == (16, 24)
    assert [name for name in whole if whole[name].tobytes() != parts[name].tobytes()] == []
    config = json.loads((home / "parts/checkpoint-8/config.json").read_text())
    assert {name: config[name] for name in ("n_inner", "resid_pdrop", "embd_pdrop", "attn_pdrop",
                                            "layer_norm_epsilon")} == {
        "n_inner": 24, "resid_pdrop": 0.1, "embd_pdrop": 0.0, "attn_pdrop": 0.3,
        "layer_norm_epsilon": 0.01}
    refused = resume("--n-inner=32", "--max-iters=9", "--out-dir=parts")
    assert refused.status == 2 and "keeps its --n-inner of 24, got 32" in refused.err


def test_settings_that_may_change_are_changed_by_a_flag(train, resume):
    train("--max-iters=5", "--out-dir=run")
    result = resume("--out-dir=run", "--max-iters=11", "--eval-interval=3", "--log-interval=2",
                    "--eval-iters=1", "--workers=1", "--device=cpu")
    assert result.status == 0
    steps = [(line["step"], "loss" in line) for line in metrics("run") if line["step"] > 5]
    assert steps == [(6, True), (6, False), (8, True), (9, False), (10, True), (11, False),
                     (11, False)]


def test_text_may_have_another_name_but_not_another_content(train, resume, home):
    train("--max-iters=5", "--out-dir=run")
    (home / "fox.txt").rename(home / "moved.txt")
    result = resume("--out-dir=run", "--max-iters=9", "--data=moved.txt")
    assert result.status == 0
    (home / "moved.txt").write_text(TEXT[::-1])              # the same characters
    result = resume("--out-dir=run", "--max-iters=12")
    assert (result.status, result.out) == (2, "")
    assert result.err == ("train.py: the text moved.txt is not the one that run was trained on; "
                          "--data takes the path of that text\n")
    (home / "moved.txt").write_text("é" + TEXT)
    result = resume("--out-dir=run", "--max-iters=12")
    assert result.err.startswith("train.py: 'é', character 1 of the text moved.txt, is not among ")


def test_text_that_was_chosen_for_lack_of_a_network_is_kept(run, resume, monkeypatch, home):
    monkeypatch.setattr("npgpt.text.load._pydocs", lambda: TEXT)
    started = run(train_script.main, *TINY[1:], "--max-iters=5", "--out-dir=run")
    assert started.status == 0 and "; using pydocs, Python's own manual" in started.out
    (home / "data").mkdir()
    (home / "data/tinyshakespeare.txt").write_text("not asked for")
    result = resume("--out-dir=run", "--max-iters=9")
    assert (result.status, result.err) == (0, "")
    assert "data    pydocs: 1,760 characters" in result.out and "note " not in result.out


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    path.with_name(SUMS).unlink()


@pytest.mark.parametrize(("values", "message"), [
    ({"format": 2}, "run/checkpoint-5 was written by a newer version of npgpt; update npgpt"),
    *(({name: wrong}, f"run/checkpoint-5/training.json is damaged: {name} is {wrong!r}")
      for name, wrong in (("format", "1"), ("step", None), ("seconds", "1"), ("values", []),
                          ("sha256", 5), ("best_val_loss", "low"), ("config_name", None))),
    *(({"values": {"family": family}},
       f"run/checkpoint-5/training.json is damaged: family is {family!r}")
      for family in ("bert", "", None, 7, ["gpt"], {})),
    ({"values": {"family": "llama"}}, "run/checkpoint-5/training.json is damaged: values are "
                                      "missing"),
    ({"step": 0}, "run/checkpoint-5/training.json is damaged: values are missing"),
    ({"values": {"seed": 1}}, "run/checkpoint-5/training.json is damaged: values are missing"),
])
def test_damaged_state_is_refused(train, resume, home, values, message):
    train("--max-iters=5", "--out-dir=run")
    changed(home / "run/checkpoint-5/training.json", **values)
    result = resume("--out-dir=run", "--max-iters=9")
    assert (result.status, result.out, result.err) == (2, "", f"train.py: {message}\n")


def test_checkpoint_of_an_older_version_has_the_defaults_of_newer_options(train, resume, home):
    train("--max-iters=5", "--out-dir=run", "--optimizer=adamw", "--decay=cosine")
    path = home / "run/checkpoint-5/training.json"
    values = json.loads(path.read_text())["values"]
    newer = {"fused", "workers", "hold", "decay", "muon_lr", "muon_momentum", "family"}
    changed(path, values={name: values[name] for name in values.keys() - newer})
    assert resume("--out-dir=run", "--max-iters=9").status == 0
    saved = json.loads((home / "run/checkpoint-9/training.json").read_text())["values"]
    assert saved == values | {"max_iters": 9, "workers": None, "muon_lr": 0.03,
                              "muon_momentum": 0.95}


def test_step_that_an_older_version_has_evaluated_is_not_evaluated_again(train, resume, home):
    train("--max-iters=10", "--out-dir=run")
    path = home / "run/checkpoint-10/training.json"
    saved = json.loads(path.read_text())
    assert saved.pop("evaluated_step") == 10
    path.write_text(json.dumps(saved))
    path.with_name(SUMS).unlink()
    assert resume("--out-dir=run", "--max-iters=12").status == 0
    assert [line["step"] for line in metrics("run") if "val_loss" in line] == [0, 10, 12]


def test_best_loss_that_was_never_measured_is_resumed(train, resume, home):
    """As after Ctrl-C before the first evaluation: the next one is the best."""
    train("--max-iters=5", "--out-dir=run")
    changed(home / "run/checkpoint-5/training.json", best_val_loss=None)
    assert resume("--out-dir=run", "--max-iters=9").status == 0
    assert (home / "run/best").read_text() == "checkpoint-9\n"


def test_tokenizer_of_another_model_is_refused(train, resume, home):
    train("--max-iters=5", "--out-dir=run")
    (home / "fox.txt").write_text(TEXT + "XYZ")
    train("--max-iters=5", "--out-dir=other")
    for name in ("tokenizer.json", "training.json"):
        (home / "run/checkpoint-5" / name).write_bytes(
            (home / "other/checkpoint-5" / name).read_bytes())
    (home / "run/checkpoint-5" / SUMS).unlink()
    result = resume("--out-dir=run", "--max-iters=9")
    assert (result.status, result.out) == (2, "")
    assert result.err == ("train.py: the tokenizer and the model in run/checkpoint-5 do not fit "
                          "each other: 31 and 28 tokens\n")
