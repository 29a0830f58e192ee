"""A training step compared with PyTorch's: `python -m benchmarks.train_step [a b c d]`, or with
that of another checkout of npgpt: `--against CHECKOUT`.

The same model on the same batches with AdamW and clipping, in float32: npgpt as the trainer runs
it, PyTorch with scaled_dot_product_attention on all cores, eager and compiled. Each side is a
separate process, the sides alternate, and medians are compared; compiled PyTorch, which takes a
minute to start, runs once. The floor is the time of the step's matrix products alone, in as many
processes as compute gradients in the step.
"""

import argparse
import json

import numpy as np

from benchmarks.works import WORKS, Race, communicator, machine, time_npgpt, time_torch, timed
from npgpt import GPTConfig

STEPS = {"a": 60, "b": 120, "c": 4, "d": 12}
ROUNDS = 3
BARS = {"a": 0.75, "b": 0.55, "c": 0.65, "d": 0.85}     # npgpt's time divided by eager PyTorch's


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("works", nargs="*", metavar="WORK", help="a, b, c or d [all]")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--workers", type=int, help="ranks of npgpt [as the trainer chooses]")
    parser.add_argument("--against", metavar="CHECKOUT", help="compare with this checkout of npgpt")
    parser.add_argument("--rounds", type=int, help="runs of each side [3; with --against 20]")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.works:
        if name not in WORKS:
            parser.error(f"WORK must be one of {', '.join(WORKS)}, got {name!r}")
    if arguments.side:
        name = arguments.works[0]
        _, batch_size, options = WORKS[name]
        seconds = SIDES[arguments.side](GPTConfig(**options), batch_size, STEPS[name],
                                        arguments.workers)
        return print(json.dumps(seconds))

    print(machine() + "\n")
    if arguments.against:
        return compare(arguments.works or WORKS, arguments.against, arguments.rounds or 20)
    print("| work | npgpt | eager PyTorch | ratio | bar | compiled | floor | npgpt ÷ floor | "
          "memory, npgpt | PyTorch |\n|" + " --- |" * 10)
    for name in arguments.works or WORKS:
        words = [name, *(["--workers", arguments.workers] if arguments.workers else [])]
        sides = {side: [*words, "--side", side] for side in SIDES
                 if side != "compiled" or not arguments.no_compile}
        print(_row(name, Race("train_step", sides, arguments.rounds or ROUNDS, once=["compiled"])),
              flush=True)
    return 0


def compare(works, checkout, rounds):
    """Print the ratio of the time of a step here to that in another checkout."""
    print(f"| work | here | {checkout} | ratio | 95 % interval |\n|" + " --- |" * 5)
    for name in works:
        sides = {side: [name, "--side", "npgpt"] for side in ("here", "there")}
        race = Race("train_step", sides, rounds, checkouts={"there": checkout})
        ratio, low, high = race.ratio("here", "there")
        here, there = (_milliseconds(race.median(side)) for side in sides)
        print(f"| ({name}) {WORKS[name][0]} | {here} | {there} | **{ratio:.3f}** | {low:.3f} to "
              f"{high:.3f} |", flush=True)
    return 0


def _row(name, race):
    title, batch_size, options = WORKS[name]
    npgpt, eager, compiled, floor = map(race.median, ("npgpt", "eager", "compiled", "floor"))
    return "| " + " | ".join([
        f"({name}) {title}, B {batch_size}, T {GPTConfig(**options).block_size}",
        _milliseconds(npgpt), _milliseconds(eager), f"**{npgpt / eager:.2f}**",
        f"≤ {BARS[name]}", _milliseconds(compiled), _milliseconds(floor), f"{npgpt / floor:.2f}",
        *(f"{race.bytes[side] / 1e6:,.0f} MB" for side in ("npgpt", "eager")),
    ]) + " |"


def _milliseconds(seconds):
    return "—" if seconds is None else f"{1000 * seconds:,.1f} ms"


def time_floor(model, batch_size, steps, workers=None):
    """-> seconds of the matrix products of each step, divided among ranks as in npgpt."""
    comm = communicator(model, batch_size, workers)

    def work():
        start, stop = comm.rows(batch_size)
        rng = np.random.default_rng(0)
        products = [(rng.standard_normal(a, dtype=np.float32).swapaxes(*swap[0]),
                     rng.standard_normal(b, dtype=np.float32).swapaxes(*swap[1]), times)
                    for a, b, swap, times in _products(model, stop - start) if comm.computes]

        def step():
            for a, b, times in products:
                for _ in range(times):
                    a @ b
            comm.barrier()
        return timed(step, steps)
    return comm.launch(work)


def _products(model, rows):
    """-> (shape of a, shape of b, axes of each to swap, how many times) of each product."""
    T, C, V, L, H = (getattr(model, name) for name in (
        "block_size", "n_embd", "vocab_size", "n_layer", "n_head"))
    N, D = rows * T, C // H
    plain, transposed = (-1, -1), (-1, -2)
    for i, o, times in ((C, 3 * C, L), (C, C, L), (C, 4 * C, L), (4 * C, C, L), (C, V, 1)):
        yield (N, i), (i, o), (plain, plain), times                # y  = x @ w
        yield (N, o), (i, o), (plain, transposed), times               # dx = dy @ w.T
        yield (N, i), (N, o), (transposed, plain), times               # dw = x.T @ dy
    wide, square = (rows, H, T, D), (rows, H, T, T)
    yield wide, wide, (plain, transposed), 2 * L                       # q @ k.T, dy @ v.T
    yield square, wide, (plain, plain), 2 * L                      # att @ v, dscores @ k
    yield square, wide, (transposed, plain), 2 * L                     # att.T @ dy, dscores.T @ q


SIDES = {
    "npgpt": time_npgpt,
    "eager": lambda model, rows, steps, workers: time_torch(model, rows, steps),
    "compiled": lambda model, rows, steps, workers: time_torch(model, rows, steps, compiled=True),
    "floor": time_floor,
}


if __name__ == "__main__":
    raise SystemExit(main())
