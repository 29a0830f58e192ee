"""Plot the losses of a run: `python -m npgpt.report out/modern loss.png`.

Needs the extra `plot` (matplotlib).
"""

import importlib
import json
from pathlib import Path

from npgpt.checkpoints.run import METRICS
from npgpt.cli.command import run_command
from npgpt.cli.options import Parser
from npgpt.errors import UserError
from npgpt.reading import read_bytes

PICTURES = ".png", ".svg", ".pdf"


def read_metrics(folder):
    """The lines of a run's metrics.jsonl -> list of dicts. Raises UserError if there are none."""
    path = Path(folder) / METRICS
    content = read_bytes(path, None)
    try:
        lines = [json.loads(line) for line in content.decode().splitlines()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not all(isinstance(line, dict) and isinstance(line.get("step"), int) for line in lines):
        raise UserError(f"{path} is damaged: not every line is an object with a step")
    if not any("loss" in line for line in lines):
        raise UserError(f"{path} contains no training step")
    return lines


def draw_losses(metrics, path):
    """Plot losses in nats per token against steps to `path` (.png, .svg, .pdf)."""
    try:
        figure_class = importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise UserError('matplotlib is not installed; run: pip install "npgpt[plot]"') from None
    figure = figure_class(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    curves = (
        ("loss", "training batches", {"color": "0.75", "linewidth": 1}),
        ("train_loss", "training split", {"color": "tab:blue", "marker": "o", "markersize": 4}),
        ("val_loss", "validation split", {"color": "tab:orange", "marker": "o", "markersize": 4}),
    )
    for name, label, style in curves:
        points = [(line["step"], line[name]) for line in metrics if name in line]
        axes.plot(*zip(*points), label=label, **style)
    for line in metrics:
        loss = line.get("whole_val_loss", line.get("final_val_loss"))
        if loss is not None:
            windows = f"{line['windows']:,} windows of the" if "windows" in line else "the whole"
            axes.annotate(f"{loss:.3f} over {windows}\nvalidation split", (line["step"], loss),
                          xytext=(-8, 34), textcoords="offset points", ha="right",
                          arrowprops={"arrowstyle": "-", "color": "0.4"})
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:        # a format that matplotlib does not support
        raise UserError(f"{path} cannot be written: {error}") from None


def main(arguments=None):
    """Run the command -> exit status."""
    return run_command("npgpt report", lambda: _report(arguments))


def _report(arguments):
    parser = Parser(description="Draw the losses of a run.", usage="npgpt report RUN PICTURE")
    parser.add_argument("run", metavar="RUN", help="directory of a run, such as out/modern")
    parser.add_argument("picture", metavar="PICTURE",
                        help=f"the file to write: {', '.join(PICTURES)}")
    given = parser.parse(arguments, [])
    if Path(given["picture"]).suffix.lower() not in PICTURES:
        raise UserError(f"PICTURE must end in {', '.join(PICTURES)}, got {given['picture']!r}")
    draw_losses(read_metrics(given["run"]), given["picture"])
