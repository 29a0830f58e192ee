"""--dtype of train.py and sample.py."""

import pytest

import sample
import train
from npgpt import GPT


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """-> function that runs a command in a directory with a small text -> status, out, err."""
    (tmp_path / "fox.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    monkeypatch.chdir(tmp_path)

    def command(main, *words):
        return main(list(words)), *capsys.readouterr()
    return command


TINY = ("--data=fox.txt", "--device=cpu", "--family=gpt", "--n-layer=1", "--n-head=2",
        "--n-embd=16", "--block-size=16", "--batch-size=4", "--eval-iters=2", "--out-dir=r",
        "--workers=1")


def test_training_and_sampling_in_float64(run):
    status, out, err = run(train.main, *TINY, "--max-iters=3", "--dtype=float64")
    assert (status, err) == (0, "") and ", float64\n" in out
    model = GPT.from_pretrained("r/checkpoint-3", dtype="float64")
    assert (model.params["wte.weight"] != model.params["wte.weight"].astype("float32")).any()
    status, out, err = run(train.main, "--resume", "--out-dir=r", "--max-iters=5")
    assert (status, err) == (0, "") and ", float64\n" in out
    words = ("--out-dir=r", "--seed=1", "--max-new-tokens=20")
    double_precision, single = (run(sample.main, *words, f"--dtype={dtype}")
                                for dtype in ("float64", "float32"))
    assert double_precision[0] == 0 and double_precision[:2] == single[:2]


def test_sampling_in_a_precision_that_the_device_does_not_have_is_refused(run):
    assert run(train.main, *TINY, "--max-iters=1")[0] == 0
    status, out, err = run(sample.main, "--out-dir=r", "--device=cpu", "--dtype=tf32")
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("sample.py: --dtype must be one of float32, float64 on CPU")
