"""The final loss of a configuration beside another's: `python -m benchmarks.record CONFIG`.

train.py trains both on the whole text, once per seed, alternating. A loss is that of the final
weights, not of the best checkpoint, over the whole validation split, which is read for it once, at
the end. Seconds are those of train.py from the first step to the last, with its evaluations of one
batch and its ten checkpoints; a run that was stopped and goes on keeps its seconds. Ratios are
medians over the seeds.
"""

import shlex
import statistics
import sys
from pathlib import Path

from benchmarks import trials
from benchmarks.works import machine
from npgpt.cli.command import run_command
from npgpt.cli.options import Parser
from npgpt.errors import UserError
from npgpt.models.parameters import count
from npgpt.text.load import sha256
from npgpt.text.source import load_source
from npgpt.text.tokenizer import named_tokenizer

SEEDS = [1337, 1338, 1339]


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command("record", lambda: start(arguments))


def start(arguments):
    parser = Parser(prog="record", description=__doc__.partition("\n")[0])
    parser.add_argument("config", metavar="CONFIG", help="as --config of train.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="N",
                        help=f"[{' '.join(map(str, SEEDS))}]")
    parser.add_argument("--against", default="laptop", metavar="CONFIG",
                        help="the other configuration [%(default)s]")
    parser.add_argument("--steps", type=int, metavar="N", default=None,
                        help="of each run, for a test")
    parser.add_argument("--data", metavar="PATH", default=None, help="a text [shakespeare]")
    parser.add_argument("--out-dir", type=Path, metavar="DIR", default=None,
                        help="[out/record-CONFIG]")
    asked = parser.parse_args(arguments)
    seeds = list(dict.fromkeys(asked.seeds))
    sides = {}                                       # name -> Side
    for config in dict.fromkeys([asked.config, asked.against]):
        side = Side(config, asked.steps, seeds)
        if side.name in sides:
            raise UserError(f"{config} and {sides[side.name].config} have the same name; rename "
                            "one")
        sides[side.name] = side
    directory = asked.out_dir or Path("out") / f"record-{next(iter(sides))}"
    text = trials.load_whole_text(asked.data)
    parameters = {name: side.parameters(text.name) for name, side in sides.items()}
    trials.begin(directory, {"text": sha256(text.text),
                             **{f"configuration {name}": side.values
                                for name, side in sides.items()}})

    print(machine() + "\n", flush=True)
    results = {name: [] for name in sides}
    with trials.says_how_to_go_on(f"python -m benchmarks.record {shlex.join(arguments)}"):
        for seed in seeds:
            for name, side in sides.items():
                trial = side.trial(directory, text.name, seed)
                trials.run([trial], 1, lambda _, result, to=results[name]: to.append(result))
                print(f"{trial.name}: {described(results[name][-1])}", flush=True)
    report(results, parameters)


def described(result):
    """The last line of metrics, or None -> text."""
    return "diverged" if result is None else (
        f"{trials.shown(trials.loss_of(result))}, {result['seconds']:.1f} s, "
        f"{result['step']:,} steps")


class Side:
    """A configuration and its runs. Raises UserError if it is invalid."""

    def __init__(self, config, steps, seeds):
        self.config, self.options = config, trials.options_of_trial(config, steps)
        request = trials.request(config, self.options)
        self.name, self.values = request.config_name, request.values
        for seed in seeds:
            trials.request(config, self.options | {"seed": seed})

    def trial(self, directory, data, seed):
        """-> Trial."""
        name = f"{self.name},seed={seed}"
        return trials.Trial(name, directory / name, data, self.config,
                            self.options | {"seed": seed})

    def parameters(self, data):
        """The value of `data` -> the number of parameters of the model of that text."""
        tokenizer = self.values.get("tokenizer")
        source = load_source(data, tokenizer and named_tokenizer(tokenizer))
        request = trials.request(self.config, self.options)
        return count(request.model(source.tokenizer.vocab_size).architecture())


def report(results, parameters):
    """name of a side -> its results, one per seed; and its number of parameters. Prints the
    table."""
    other = list(results)[-1]
    print(f"\n| | parameters | steps | loss over the whole validation split | seconds | ÷ {other} "
          "|\n| --- | --- | --- | --- | --- | --- |")
    for name, found in results.items():
        losses = [trials.loss_of(result) for result in found]
        ran = [result for result in found if result]
        pairs = [(ours["seconds"], theirs["seconds"])
                 for ours, theirs in zip(found, results[other]) if ours and theirs]
        ratio = f"{statistics.median(a / b for a, b in pairs):.2f}" if pairs else "–"
        steps = f"{ran[0]['step']:,}" if ran else "–"
        print(f"| {name} | {parameters[name]:,} | {steps} | {spread(losses, 4)} | "
              f"{spread([result['seconds'] for result in ran], 1)} | {ratio} |")
    print(f"\nMean (lowest to highest) of {len(found)} seeds; the last column is the median ratio "
          "of the seconds with\nthe same seed. The loss is that of the final weights.")


def spread(values, digits):
    """Numbers -> "1.50 (1.49 to 1.52)", their mean, the lowest and the highest."""
    if not values:
        return "–"
    mean, low, high = (f"{value:.{digits}f}" for value in
                       (statistics.fmean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})".replace("inf", "diverged")


if __name__ == "__main__":
    raise SystemExit(main())
