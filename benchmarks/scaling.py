"""How the time of a training step scales: `python -m benchmarks.scaling docs/scaling.png`.

Starting from nanoGPT's CPU recipe, one size is changed at a time: channels, context, batch,
workers. Each point is the median of the steps of a separate process. For comparison, the growth of
the number of multiplications is shown; a curve that grows faster needs an explanation.
"""

import argparse
import json
import subprocess
import sys

from benchmarks.works import WORKS, machine, time_npgpt
from npgpt import GPTConfig

SWEEPS = {
    "n_embd": [32, 64, 128, 256, 512],
    "block_size": [16, 32, 64, 128, 256, 512],
    "batch_size": [2, 4, 8, 12, 24, 48],
    "workers": [1, 2],
}
TITLES = {"n_embd": "channels C", "block_size": "context T", "batch_size": "batch B",
          "workers": "workers"}
SECONDS = 2.0      # of steps at each point


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("picture", nargs="?", help="write a plot to this .png file")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        return print(json.dumps(measure(**arguments.point)))

    print(machine() + "\n\n| changed | value | a step | ÷ the recipe's | multiplications ÷ its |")
    print("|" + " --- |" * 5)
    base = _seconds({})
    curves = {}
    for name, values in SWEEPS.items():
        for value in values:
            seconds, work = _seconds({name: value}), multiplications(**{name: value})
            curves.setdefault(name, []).append((value, seconds, work / multiplications()))
            print(f"| {TITLES[name]} | {value} | {1000 * seconds:.1f} ms | {seconds / base:.2f} | "
                  f"{work / multiplications():.2f} |", flush=True)
    if arguments.picture:
        draw(curves, base, arguments.picture)
    return 0


def measure(workers=None, batch_size=None, **changes):
    """-> median seconds of a step of the changed recipe."""
    _, rows, options = WORKS["a"]
    model, rows = GPTConfig(**options | changes), batch_size or rows
    first = sorted(time_npgpt(model, rows, 3, workers))[1]
    steps = sorted(time_npgpt(model, rows, max(3, int(SECONDS / first)), workers))
    return steps[len(steps) // 2]


def multiplications(workers=None, batch_size=None, **changes):
    """Of a step of the recipe with changes: forward and backward, products of matrices alone."""
    _, rows, options = WORKS["a"]
    m = GPTConfig(**options | changes)
    linear = m.n_layer * 12 * m.n_embd**2 + m.vocab_size * m.n_embd
    attention = m.n_layer * 2 * m.block_size * m.n_embd
    return 3 * (batch_size or rows) * m.block_size * (linear + attention)


def _seconds(changes):
    command = [sys.executable, "-m", "benchmarks.scaling", "--point",
               json.dumps(changes or {"workers": None})]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def draw(curves, base, picture):
    """A panel for each size: the time, and a time proportional to the multiplications."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(13, 3.4), constrained_layout=True)
    for axis, (name, points) in zip(axes, curves.items()):
        values, seconds, work = zip(*points)
        axis.plot(values, [1000 * s for s in seconds], "o-", label="a step")
        axis.plot(values, [1000 * base * w for w in work], "--", color="gray",
                  label="multiplications")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(values, [str(v) for v in values])
        axis.minorticks_off()
        axis.set_xlabel(TITLES[name])
    axes[0].set_ylabel("milliseconds")
    axes[0].legend(frameon=False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
