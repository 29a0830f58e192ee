"""Invalid requests: one line on stderr, exit status 2, nothing written."""

import importlib.util

import pytest

import sample as sample_script
import train as train_script
from tests.commands.tiny import TEXT, everything


def assert_refused(result, message):
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(message) and result.err.count("\n") == 1
    assert result.err.endswith("\n") and "`" not in result.err


@pytest.mark.parametrize(("words", "message"), [
    ("--data=nowhere.txt", "there is no file 'nowhere.txt'; --data takes shakespeare, pydocs, or"),
    ("--data=fxo.txt", "there is no file 'fxo.txt'; did you mean 'fox.txt'? --data takes"),
    ("--data=shakespear", "there is no file 'shakespear'; did you mean 'shakespeare'?"),
    ("--data=", "--data is empty; it takes shakespeare, pydocs, or the path of a text, a "
     "directory of texts or a token file"),
    ("--data=http://a.b/c", "--data takes a file, got the address 'http://a.b/c'; download it"),
    ("--data=.", "latin1.txt is not UTF-8 (byte 3 is 0xe9)"),
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
    ("--config=many.toml --data=fox.txt",
     "--workers must be at most --batch-size, 12, because each computes some of its sequences, got "
     "13"),
    ("--config=laptop --data=fox.txt --n-embd=100000 --n-layer=1000", "training needs about"),
    ("--resume", "there is no run in out/"),
    ("--resume --out-dir=nowhere", "there is no directory nowhere; --out-dir takes that of a run"),
    ("--data=fox.txt --out-dir=fox.txt", "fox.txt is a file"),
    ("--device=gpu", "no GPU: CuPy is not installed; run: pip install"),
    ("--data=fox.txt --device=cpu --config=laptop --workers=1000",
     "--workers must be at most --batch-size, 12, because each computes some of its sequences, got "
     "1000"),
])
def test_invalid_request_to_train_gives_one_line_and_status_2_and_writes_nothing(
        home, run, words, message):
    if "--device=gpu" in words and importlib.util.find_spec("cupy"):
        pytest.skip("CuPy is installed here; its messages have tests of their own")
    (home / "empty.txt").touch()
    (home / "latin1.txt").write_bytes("café".encode("latin-1"))
    (home / "broken.toml").write_text("n_layer =")
    (home / "zero.toml").write_text("n_layer = 0")
    (home / "many.toml").write_text("workers = 13\nbatch_size = 12\n")
    before = everything(home)
    assert_refused(run(train_script.main, *words.split()), f"train.py: {message}")
    assert everything(home) == before


def test_invalid_requests_leave_an_existing_run_unchanged(home, run, train):
    train("--max-iters=5", "--out-dir=run")
    (home / "other.txt").write_text(TEXT + "more\n")
    before = everything(home)
    for words, message in (
        ("--data=fox.txt --out-dir=run", "run already contains a run"),
        ("--resume --out-dir=run --max-iters=9 --n-embd=32",
         "a resumed run keeps its --n-embd of 16"),
        ("--resume --out-dir=run --max-iters=9 --data=other.txt",
         "the text other.txt is not the one that run was trained on"),
        ("--resume --out-dir=run --max-iters=3", "the run in run has finished its 5 steps"),
    ):
        assert_refused(run(train_script.main, *words.split()), f"train.py: {message}")
    assert everything(home) == before


def test_invalid_request_to_sample_gives_one_line_and_status_2(run, train, home):
    train("--max-iters=5")
    (home / "empty.txt").write_text("\n")
    (home / "latin1.txt").write_bytes(b"caf\xe9")
    before = everything(home)
    for words, message in (
        ("--prompt=naïve", "'ï', character 3 of the prompt, is not among the 28"),
        ("--prompt=", "--prompt is empty; without it the text starts from an end-of-text token or"),
        ("--prompt-file=", "--prompt-file is empty; without it"),
        ("--prompt-file=empty.txt", "empty.txt is empty; without it"),
        ("--prompt-file=nowhere", "nowhere is missing"),
        ("--prompt-file=latin1.txt", "latin1.txt is not UTF-8 (byte 3 is 0xe9)"),
        ("--prompt=a --prompt-file=b", "--prompt and --prompt-file are both given; choose one"),
        ("--prompt=a --interactive", "--interactive reads prompts itself; leave out --prompt and"),
        ("--stop=", "--stop is empty; it takes a text"),
        ("--min-p=0", "--min-p must be above 0, got 0"),
        ("--repetition-penalty=0", "--repetition-penalty must be at least 0.01, got 0"),
        ("--model=a --out-dir=b", "--model and --out-dir are the same; give one of them"),
        ("--model=nowhere", "there is no directory nowhere"),
        ("--model=", "--model is empty"),
        ("--out-dir=", "--out-dir is empty; it takes the path of a directory"),
        ("--temperature=-1", "--temperature must be at least 0, got -1"),
        ("--top-k=0", "--top-k must be at least 1, got 0"),
        ("--top-p=1.5", "--top-p must be at most 1, got 1.5"),
        ("--num-samples=0", "--num-samples must be at least 1, got 0"),
        ("--out-dir=nowhere", "there is no directory nowhere"),
        ("--promt=x", "unknown option --promt; did you mean --prompt? --help lists all"),
    ):
        assert_refused(run(sample_script.main, *words.split(" ")), f"sample.py: {message}")
    assert everything(home) == before
