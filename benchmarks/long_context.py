"""Memory and time against the context: `python -m benchmarks.long_context [PNG]`, and the peaks for
which there are bars: `python -m benchmarks.long_context --peaks`.

One `loss_and_grads` of a GPT with 2 blocks of 384 channels and 6 heads, 65 tokens in the
vocabulary, one sequence, no dropout: with plain attention, in tiles, and in tiles with recomputed
blocks. Each measurement is a process of its own, with one thread of BLAS; the sides alternate, and
the peak is the resident memory of the whole process. Plain attention stops where its scores would
need more than 2 GB. With a PNG the curves are drawn there. For the peaks there is one pass, in a
process that has done nothing before; GPT-2 has its context of 1,024.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SIDES = {"plain": {"attention": "plain"}, "tiled": {"attention": "tiled"},
         "recomputed": {"attention": "tiled", "recompute": True}}
LONGEST_PLAIN = 4096
ROUNDS = 3
PEAKS = (     # context (0: GPT-2), whether blocks are recomputed, bar in MB
    (8192, False, 1000), (8192, True, 600), (16384, False, 2000), (16384, True, 1200),
    (0, False, 2000), (0, True, None))
SECONDS = 1.0           # a process repeats its measurement for this long


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("png", nargs="?", help="where to draw the curves")
    parser.add_argument("--quick", action="store_true", help="short contexts, once")
    parser.add_argument("--peaks", action="store_true", help="peaks of single passes")
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--context", type=int, help=argparse.SUPPRESS)
    c = parser.parse_args()
    if c.context is not None and not c.side:
        return print(json.dumps(one_pass(c.context, c.recompute)))
    if c.peaks:
        return print_peaks()
    if c.side:
        return print(json.dumps(measure(c.context, **SIDES[c.side])))
    found = {}
    titles = [f"{side}, {what}" for side in SIDES for what in ("memory", "time", "tokens/s")]
    print("| context | " + " | ".join(titles) + " | plain ÷ tiled |")
    print("|" + " --- |" * (2 + 3 * len(SIDES)))
    for context in CONTEXTS[:2] if c.quick else CONTEXTS:
        found[context] = compare(context, 1 if c.quick else ROUNDS)
        print(row(context, found[context]), flush=True)
    if c.png:
        draw(found, c.png)
    return 0


def compare(context, rounds):
    """-> side -> (seconds, bytes), medians over the rounds."""
    runs = {side: [] for side in SIDES if side != "plain" or context <= LONGEST_PLAIN}
    for _ in range(rounds):
        for side, results in runs.items():
            results.append(in_a_process("--side", side, "--context", context))
    return {side: tuple(map(statistics.median, zip(*results))) for side, results in runs.items()}


def in_a_process(*words):
    """-> what this benchmark prints in a process of its own, with one thread of BLAS."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.long_context", *map(str, words)],
                          env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                          stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def print_peaks():
    """A table of the peak memory of single passes."""
    print("| model | peak memory | bar |\n| --- | --- | --- |")
    for context, recompute, bar in PEAKS:
        peak = in_a_process("--context", context, *["--recompute"] * recompute)
        title = f"context {context:,}" if context else "GPT-2 124M, context 1,024"
        print(f"| {title}{', recomputed' if recompute else ''} | {peak / 1e6:,.0f} MB | "
              f"{f'≤ {bar:,} MB' if bar else '—'} |", flush=True)
    return 0


def one_pass(context, recompute):
    """One loss_and_grads of a model as it comes by default -> the peak memory of this process."""
    import numpy as np

    from npgpt import GPT, GPTConfig
    from npgpt.host import peak_memory

    config = model_config(context) if context else GPTConfig()
    idx = np.random.default_rng(0).integers(config.vocab_size, size=(1, config.block_size))
    GPT(config, recompute=recompute).loss_and_grads(idx, idx)
    return peak_memory()


def model_config(context):
    """-> the small GPT that is measured."""
    from npgpt import GPTConfig
    return GPTConfig(vocab_size=65, block_size=context, n_layer=2, n_head=6, n_embd=384)


def measure(context, **options):
    """-> seconds of one pass, the median of several; the peak memory of this process in bytes."""
    import numpy as np

    from npgpt import GPT
    from npgpt.host import keep_freed_memory, peak_memory

    keep_freed_memory()
    model = GPT(model_config(context), **options)
    grads = model.gradients()
    idx = np.random.default_rng(0).integers(65, size=(1, context + 1))
    seconds, began = [], time.perf_counter()
    while len(seconds) < 2 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        grads.zero()
        model.loss_and_grads(idx[:, :-1], idx[:, 1:], into=grads)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), peak_memory()


def row(context, sides):
    """One line of the table."""
    cells = []
    for side in SIDES:
        if side in sides:
            seconds, peak = sides[side]
            cells += [f"{peak / 1e6:,.0f} MB", f"{seconds * 1000:,.0f} ms",
                      f"{context / seconds:,.0f}"]
        else:
            cells += ["—"] * 3
    ratio = f"{sides['plain'][0] / sides['tiled'][0]:.2f}" if "plain" in sides else "—"
    return f"| {context:,} | " + " | ".join(cells) + f" | {ratio} |"


def draw(found, path):
    """Memory, time and tokens per second against the context."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    curves = {     # title -> value, ticks
        "peak memory, MB": (lambda context, seconds, peak: peak / 1e6, (100, 200, 500, 1000, 2000)),
        "seconds": (lambda context, seconds, peak: seconds, (0.03, 0.1, 0.3, 1, 3, 10, 30)),
        "tokens per second": (lambda context, seconds, peak: context / seconds,
                              (500, 1000, 2000, 4000)),
    }
    for axis, (title, (value, ticks)) in zip(axes, curves.items()):
        for side in SIDES:
            points = [(T, value(T, *sides[side])) for T, sides in found.items() if side in sides]
            axis.plot(*zip(*points), "o-", label=side)
        axis.set(title=title, xlabel="context", xscale="log", yscale="log")
        axis.set_xticks(list(found), [f"{T:,}" for T in found], rotation=60)
        axis.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
