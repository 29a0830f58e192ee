"""Memory and time of fine-tuning: `python -m benchmarks.fine_tune MODEL`.

MODEL is what --init-from of train.py takes. It is trained for a few steps in three ways: all of it,
all but the embeddings and the head, and adapters of rank 8. Each way is a separate process. The
memory is train.py's own peak, its estimate is that of the header, before the first step; a step's
time is the median over the steps after the first, from one line of metrics.jsonl to the next.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.works import machine
from npgpt.training.estimate import size

WAYS = {
    "the whole model": [],
    "`--freeze embeddings`": ["--freeze", "embeddings"],
    "`--lora-rank 8`": ["--lora-rank", "8"],
}
FOUND = {"trained": r"([\d,]+) of them trained", "all": r"([\d,]+) parameters",
         "estimate": r"memory\W+about ([\d.,]+ \w+)", "peak": r"peak memory: ([\d.,]+ \w+)"}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--block-size", default="256")
    parser.add_argument("--batch-size", default="4")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--recompute", action="store_true")
    c = parser.parse_args(arguments)
    options = ["--init-from", c.model, "--data", c.data, "--block-size", c.block_size,
               "--batch-size", c.batch_size, "--grad-accum", "1", "--max-iters", str(c.steps),
               "--eval-iters", "1", "--final-windows", "1", "--log-interval", "1",
               *["--recompute"] * c.recompute]
    print(f"{machine()}\n\n{c.model}, {c.batch_size} sequences of {c.block_size} tokens\n\n"
          "| trained | parameters | seconds for a step | peak memory | estimate | checkpoint |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for name, more in WAYS.items():
        print(f"| {name} | {' | '.join(measured([*options, *more]))} |", flush=True)


def measured(options):
    """Options of train.py -> the cells of a row."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "train.py", "--out-dir", str(run), *options]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        checkpoint = sum(file.stat().st_size for file in run.glob("checkpoint-*/*"))
    tokens = int(re.search(r"steps? of ([\d,]+) tokens", out)[1].replace(",", ""))
    seconds = [tokens / line["tokens_per_second"] for line in lines if "loss" in line][1:]
    found = {name: re.search(pattern, out) for name, pattern in FOUND.items()}
    return [(found["trained"] or found["all"])[1], f"{statistics.median(seconds):.2f}",
            found["peak"][1], found["estimate"][1], size(checkpoint)]


if __name__ == "__main__":
    main()
