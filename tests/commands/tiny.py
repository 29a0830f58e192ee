"""A tiny run of train.py: its text, its options, and what it has written."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
SIZES = ["--data=fox.txt", "--family=gpt", "--n-layer=1", "--n-head=2", "--n-embd=16",
         "--block-size=16", "--batch-size=4", "--eval-iters=2"]
TINY = [*SIZES, "--log-interval=5", "--eval-interval=10"]
LLAMA = ["--family=llama", "--n-kv-head=1"]      # two heads of queries share one of keys
SAMPLED = 20        # tokens of the sample that an evaluation in this process shows
ENVIRONMENT = {
    **os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100",
    "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",      # no network
}


def command(*words, script="train.py"):
    """The words that start a script of npgpt as a process."""
    return [sys.executable, str(ROOT / script), *words]


def process(*words, script="train.py", **options):
    """Run a script as a process, in the working directory, without input."""
    return subprocess.run(command(*words, script=script), capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, **{"env": ENVIRONMENT} | options)


def metrics(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def weights(checkpoint):
    """name -> parameter."""
    return load_file(Path(checkpoint, "model.safetensors"))


def state(checkpoint):
    """name -> array of the optimiser."""
    return load_file(Path(checkpoint, "training.safetensors"))


def everything(folder):
    """Every path under a directory, with the content of the files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in Path(folder).rglob("*")}
