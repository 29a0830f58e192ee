"""Translate dates as people write them into ISO dates, with the original Transformer:

    tuesday, the 3rd of march, 1998   ->   1998-03-03

    python examples/dates.py                        trains, and prints the accuracy
    python examples/dates.py --plot attention.png   also plots the cross-attention of one answer

One character is one token. The encoder reads the date, the decoder writes it. The parts of an
answer are at other positions in the source, and the decoder finds them by cross-attention. A tenth
of all days is held out: the model is never trained on them in any format.
"""

import os

if __name__ == "__main__":
    # Before NumPy is imported. The products are small: on a busy machine two threads would mostly
    # wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import dataclasses
import importlib
import sys
import time
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from npgpt.cli.command import run_command
from npgpt.cli.options import Options, Parser, option
from npgpt.errors import UserError
from npgpt.models.stacks import PAD
from npgpt.models.transformer import END, Transformer, TransformerConfig, teacher_forced
from npgpt.optim import AdamW, learning_rate
from npgpt.training.config import TrainingConfig
from npgpt.training.step import train_step

MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september",
          "october", "november", "december")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
FIRST, LAST = date(1950, 1, 1), date(2049, 12, 31)      # a century: two digits identify the year

# With dots the day is first (3.4.1998 is in April), with slashes the month (3/4/1998 is in March).
FORMATS = (
    "{month} {day}, {year}", "{month} {nth}, {year}", "{month} {day} {yy}", "{day} {month} {year}",
    "{nth} {month} {year}", "{nth} of {month} {yy}", "the {nth} of {month}, {year}",
    "{weekday}, {day} {month} {year}", "{weekday}, {month} {nth}, {year}",
    "{weekday} {day} {month} {yy}", "{weekday}, the {nth} of {month}, {year}",
    "{day}.{m}.{year}", "{dd}.{mm}.{yy}", "{m}/{day}/{year}", "{mm}/{dd}/{yy}",
    "{year} {month} {day}",
)
SOURCE = "0123456789abcdefghijklmnopqrstuvwxyz ,./"
TARGET = "0123456789-"
FIRST_CHARACTER = END + 1                               # the first token id of each alphabet
ANSWER = 11                                             # tokens in an answer, with END

BATCH_SIZE, RATE = 64, 5e-3
REPORT_INTERVAL, REPORT_DAYS = 100, 500                 # steps between reports, days in each


@dataclass(frozen=True)
class DatesConfig(Options):
    """The options of dates.py."""

    steps: int = option(1200, "training steps", at_least=1, at_most=10**6)
    seed: int = option(1337, "seed of the split, the weights and the batches", at_least=0,
                       at_most=2**63 - 1)
    plot: str | None = option(None, "plot the cross-attention to this file, e.g. attention.png")


def written(day, rng):
    """A day in a random format."""
    month, weekday = MONTHS[day.month - 1], DAYS[day.weekday()]
    if rng.random() < 0.5:
        month, weekday = month[:3], weekday[:3]
    last = 0 if day.day in (11, 12, 13) else day.day % 10
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    return FORMATS[rng.integers(len(FORMATS))].format(
        day=day.day, dd=f"{day.day:02}", nth=f"{day.day}{suffix}", m=day.month,
        mm=f"{day.month:02}", month=month, weekday=weekday, year=day.year,
        yy=f"{day.year % 100:02}",
    )


def split(seed):
    """-> the days to train on, and the held-out days."""
    days = np.random.default_rng([seed, 0]).permutation((LAST - FIRST).days + 1).tolist()
    days = [FIRST + timedelta(n) for n in days]
    return days[len(days) // 10:], days[:len(days) // 10]


def encoded(texts, alphabet, end=()):
    """Texts -> token ids (B, T), padded with PAD to the longest. end: tokens after each text."""
    rows = [[alphabet.index(c) + FIRST_CHARACTER for c in text] + [*end] for text in texts]
    longest = max(map(len, rows))
    return np.array([row + [PAD] * (longest - len(row)) for row in rows])


def decoded(idx, alphabet):
    """Token ids (B, T) -> texts; PAD, START and END are skipped."""
    return ["".join(alphabet[i - FIRST_CHARACTER] for i in row if i >= FIRST_CHARACTER)
            for row in idx]


def batch(days, seed, step):
    """Random days in random formats -> source (B, S), answers (B, ANSWER)."""
    rng = np.random.default_rng([seed, 1, step])
    days = [days[n] for n in rng.integers(len(days), size=BATCH_SIZE)]
    return (encoded([written(day, rng) for day in days], SOURCE),
            encoded(map(date.isoformat, days), TARGET, end=[END]))


def train(model, days, c, report):
    """Train the model; calls report(step, loss) every REPORT_INTERVAL steps."""
    t = TrainingConfig(max_iters=c.steps, learning_rate=RATE, min_lr=RATE / 100)
    optimizer, grads = AdamW(model.params, weight_decay=0.01), model.gradients()
    for step in range(c.steps):
        source, answers = batch(days, c.seed, step)
        batches = [(source, *teacher_forced(answers))]
        loss, _ = train_step(model, optimizer, batches, grads, lr=learning_rate(step, t),
                             grad_clip=t.grad_clip)
        if (step + 1) % REPORT_INTERVAL == 0 or step + 1 == c.steps:
            report(step + 1, float(loss))


def translate(model, texts):
    """Dates as text -> the model's answers."""
    parts = (texts[i:i + REPORT_DAYS] for i in range(0, len(texts), REPORT_DAYS))
    return [answer for part in parts
            for answer in decoded(model.translate(encoded(part, SOURCE), ANSWER), TARGET)]


def share_right(model, texts, days):
    """The fraction of answers that are right in every character."""
    return np.mean([answer == day.isoformat()
                    for answer, day in zip(translate(model, texts), days)])


def draw_cross_attention(model, text, path):
    """Plot the cross-attention of each decoder block, averaged over its heads. A row belongs to the
    character that is generated next."""
    answer = model.translate(encoded([text], SOURCE), ANSWER)
    idx, _ = teacher_forced(answer)
    maps = model.cross_attention(encoded([text], SOURCE), idx)
    rows = [*decoded(answer, TARGET)[0], "end"][:answer.shape[1]]
    figure = matplotlib_figure()(figsize=(1 + 0.28 * len(text), 3.6 * len(maps)),
                                 layout="constrained")
    for block, (axes, att) in enumerate(zip(np.ravel(figure.subplots(len(maps))), maps)):
        axes.imshow(att[0].mean(0), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(text)), [c.replace(" ", "␣") for c in text])
        axes.set_yticks(range(len(rows)), rows)
        axes.set(title=f"decoder block {block + 1}", ylabel="written")
    axes.set_xlabel("read")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:        # a format that matplotlib does not support
        raise UserError(f"{path} cannot be written: {error}") from None


def matplotlib_figure():
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise UserError('matplotlib is not installed; run: pip install "npgpt[plot]"') from None


def run(arguments):
    parser = Parser(prog="dates.py", description=__doc__.partition("\n")[0],
                    usage="dates.py [--steps N] [--seed N] [--plot FILE]")
    fields = dataclasses.fields(DatesConfig)
    parser.add_options("options", fields, {})
    c = DatesConfig(**parser.parse(arguments, fields))
    if c.plot is not None:
        matplotlib_figure()            # raises before the training if matplotlib is missing

    days, held_out = split(c.seed)
    rng = np.random.default_rng([c.seed, 2])
    texts = [written(day, rng) for day in held_out]
    model = Transformer(TransformerConfig(
        source_vocab_size=FIRST_CHARACTER + len(SOURCE),
        target_vocab_size=FIRST_CHARACTER + len(TARGET),
        n_layer=2, n_head=4, n_embd=64, dropout=0.0,
    ), seed=c.seed)
    print(f"{model.params.flat.size:,} parameters; {len(days):,} days to train on, "
          f"{len(held_out):,} held out", flush=True)

    began = time.perf_counter()

    def report(step, loss):
        some = texts[:REPORT_DAYS]
        right = share_right(model, some, held_out)
        print(f"step {step:5}   loss {loss:.4f}   {right:6.1%} of {len(some)} held-out dates right"
              f"   {time.perf_counter() - began:4.0f} s", flush=True)

    train(model, days, c, report)
    print()
    for text, answer, day in zip(texts[:12], translate(model, texts[:12]), held_out):
        remark = "" if answer == day.isoformat() else f"   wrong: {day.isoformat()}"
        print(f"{text:>36} -> {answer}{remark}")
    print(f"\n{share_right(model, texts, held_out):.2%} of all {len(held_out):,} held-out dates "
          f"right, in every character; {time.perf_counter() - began:.0f} s")
    if c.plot is not None:
        longest = max(texts[:12], key=len)
        draw_cross_attention(model, longest, c.plot)
        print(f"the cross-attention of {longest!r}: {c.plot}")


def main(arguments=None):
    """Train and translate with the options of the command line -> exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command("dates.py", lambda: run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
