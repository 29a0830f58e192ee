"""Choose the rates of a configuration: `python -m benchmarks.sweep NAME`.

benchmarks/sweeps/NAME.toml says what to try, in the order in which it is tried:

    config = "laptop"                     # as --config of train.py

    [try]
    muon_lr = [0.01, 0.015, 0.02]
    "learning_rate, min_lr" = [[1e-2, 2e-4], [1.5e-2, 3e-4]]      # options that belong together
    dropout = [0.0, 0.1]

The validation split is never read. The first 90 % of the text, the training split, is a text of
its own, DIR/first.txt. Each trial trains on the first 90 % of that, and its loss is that of the
final weights over all the rest. The search is coordinate descent: one option after the other, the
others at the best values so far, at first those of the configuration. All trials have the seed and
the number of steps of the configuration, so the speed of the machine does not matter.
"""

import json
import shlex
import sys
import tomllib
from pathlib import Path

from benchmarks import trials
from npgpt.cli.command import run_command
from npgpt.cli.options import Parser, checked, suggestion
from npgpt.durable import write_text
from npgpt.errors import UserError
from npgpt.host import cores
from npgpt.reading import read_bytes
from npgpt.text.load import sha256
from npgpt.text.source import TRAIN_FRACTION
from npgpt.training.config import FIELDS

SWEEPS = Path(__file__).parent / "sweeps"
FIRST = "first.txt"
AS_IS = "as-is"


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command("sweep", lambda: start(arguments))


def start(arguments):
    parser = Parser(prog="sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("name", metavar="NAME", help="of a file in benchmarks/sweeps, or its path")
    parser.add_argument("--at-once", type=int, default=cores(), metavar="N",
                        help="trials at a time, each with one core [%(default)s]")
    parser.add_argument("--out-dir", type=Path, metavar="DIR", default=None,
                        help="[out/sweep-NAME]")
    parser.add_argument("--data", metavar="PATH", default=None, help="a text [shakespeare]")
    parser.add_argument("--steps", type=int, metavar="N", default=None,
                        help="of each trial, for a test")
    asked = parser.parse_args(arguments)
    if asked.at_once < 1:
        raise UserError(f"`at_once` must be at least 1, got {asked.at_once}")
    path = sweep_path(asked.name)
    config, tried = read_sweep(path)
    sweep = Sweep(config, tried, asked, asked.out_dir or Path("out") / f"sweep-{path.stem}", path)
    sweep.begin()
    with trials.says_how_to_go_on(f"python -m benchmarks.sweep {shlex.join(arguments)}"):
        sweep.search()
    sweep.report()


def sweep_path(name):
    """A name or a path -> the path of a sweep. Raises UserError if there is none."""
    for path in (SWEEPS / f"{name}.toml", Path(name)):
        if path.is_file():
            return path
    known = sorted(path.stem for path in SWEEPS.glob("*.toml"))
    raise UserError(f"there is no sweep {name!r}{suggestion(name, known) or ';'} NAME takes the "
                    f"path of a TOML file, or the name of one in {SWEEPS}")


def read_sweep(path):
    """-> the configuration, and what to try: names of options -> tuples of their values. Raises
    UserError."""
    try:
        found = tomllib.loads(read_bytes(path).decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    for name in found:
        if name not in ("config", "try"):
            raise UserError(f"{path}: unknown key {name!r}; it takes config and [try]")
    config, table = found.get("config"), found.get("try")
    if not isinstance(config, str):
        raise UserError(f"{path}: config must be the name or the path of a configuration, got "
                        f"{config!r}")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path}: [try] is missing or empty; it takes options with lists of values")
    try:
        return config, dict(_entry(key, values) for key, values in table.items())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None             # str: a key, not a flag


def _entry(key, values):
    """"a, b", [[1, 2], [3, 4]] -> ("a", "b"), [(1, 2), (3, 4)]; the values are checked."""
    names = tuple(name.strip() for name in key.split(","))
    for name in names:
        if name in trials.SET:
            raise UserError(f"`{name}` is the same in all trials; leave it out")
        if name not in FIELDS:
            raise UserError(f"unknown option {name!r}{suggestion(name, FIELDS)}")
    rows = values if len(names) > 1 or not isinstance(values, list) else [[v] for v in values]
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{key} must be a list of values, got {values!r}")
    for row in rows:
        if not isinstance(row, list) or len(row) != len(names):
            raise UserError(f"{key} takes lists of {len(names)} values, got {row!r}")
    return names, [tuple(checked(FIELDS[name], value) for name, value in zip(names, row))
                   for row in rows]


class Sweep:
    """A search in a directory. `losses` has those of all trials so far, by name."""

    def __init__(self, config, tried, asked, directory, path):
        self.config, self.tried, self.directory = config, tried, directory
        self.at_once = asked.at_once
        self.common = trials.options_of_trial(config, asked.steps, {"device": "cpu", "workers": 1})
        self.as_is = trials.request(config, self.common).values
        if self.as_is.get("tokenizer") not in (None, "chars"):
            raise UserError(f"{config} has a `tokenizer`, and a sweep cuts a text between "
                            "characters; leave it out")
        for names, rows in tried.items():
            for row in rows:
                try:
                    self.trial(dict(zip(names, row)))
                except UserError as error:
                    raise UserError(f"{path}: {error}") from None
        self.text = trials.load_whole_text(asked.data)
        self.losses, self.table, self.best = {}, [], {}

    def begin(self):
        """Make the directory, with the text of the trials, or find it. Raises UserError."""
        first = self.text.text[:int(TRAIN_FRACTION * len(self.text.text))]
        trials.begin(self.directory,
                     {"configuration": self.as_is, "text": sha256(self.text.text)})
        path = self.directory / FIRST
        if not path.exists() or path.read_bytes() != first.encode():
            write_text(path, first)

    def trial(self, chosen):
        """name -> value, in place of those of the configuration -> Trial. Its name has what differs
        from the configuration, so trials with the same values are the same. Raises UserError if
        values contradict each other."""
        options = self.common | chosen
        values = trials.request(self.config, options).values
        order = dict.fromkeys([*(name for names in self.tried for name in names), *FIELDS])
        changed = {name: values[name] for name in order
                   if name in values and values[name] != self.value(name)}
        name = ",".join(f"{name}={value}" for name, value in changed.items()) or AS_IS
        return trials.Trial(name, self.directory / name, str(self.directory / FIRST), self.config,
                            options)

    def value(self, name):
        """The configuration's value of an option."""
        return self.as_is.get(name, FIELDS[name].default)

    def search(self):
        """Train what is needed; fills the table with an option's names, values, loss and whether
        they were chosen, and `best` with the chosen values."""
        for names, rows in self.tried.items():
            now = tuple(self.best.get(name, self.value(name)) for name in names)
            rows = list(dict.fromkeys([*rows, now] if now in rows else [now, *rows]))
            candidates = {row: self.trial(self.best | self._given(names, row)) for row in rows}
            before = self.trial(self.best)
            new = {t.name: t for t in [before, *candidates.values()] if t.name not in self.losses}
            trials.run(new.values(), self.at_once, self._ended, trials.ONE_CORE)
            losses = {row: self.losses[trial.name] for row, trial in candidates.items()}
            chosen = min(rows, key=lambda row: (losses[row], row != now))
            self.table += [(names, row, losses[row], row == chosen) for row in rows]
            self.best = self.best | self._given(names, chosen)

    def _given(self, names, row):
        """-> name -> value, of those that a command line can give: None is a default."""
        return {name: value for name, value in zip(names, row) if value is not None}

    def _ended(self, trial, result):
        loss = self.losses[trial.name] = trials.loss_of(result)
        steps = f" after {result['step']:,} steps" if result else ""
        print(f"{trial.name}: {trials.shown(loss)}{steps}", flush=True)

    def report(self):
        """Print the table and the chosen values."""
        print("\n| option | value | held-out loss |\n| --- | --- | --- |")
        for names, row, loss, chosen in self.table:
            mark = "**" if chosen else ""
            print(f"| {', '.join(names)} | {mark}{', '.join(map(str, row))}{mark} | "
                  f"{mark}{trials.shown(loss)}{mark} |")
        best = self.losses[self.trial(self.best).name]
        print(f"\n{self.config} as it is: {trials.shown(self.losses[AS_IS])}; with the chosen "
              f"values: {trials.shown(best)}\n")
        for name, value in self.best.items():
            print(f"{name} = {_toml(value)}")
        print(f"\nTuned on the first {100 * TRAIN_FRACTION:g} % of {self.text.name} alone: each of "
              f"the {len(self.losses)} trials trained on the first {100 * TRAIN_FRACTION:g} % of "
              "that\nand was judged by the rest of that. No trial has read the validation split, "
              f"the last {100 - 100 * TRAIN_FRACTION:g} % of the text.")


def _toml(value):
    return json.dumps(value)           # the two agree on numbers, true and false, and text


if __name__ == "__main__":
    raise SystemExit(main())
