"""`npgpt ranks`: before training under a launcher, whether its ranks can train together."""

import dataclasses
import importlib.util
import os
import shutil
import textwrap
from dataclasses import dataclass

from npgpt import host
from npgpt.backend import get_device
from npgpt.cli.command import run_command
from npgpt.cli.fields import device_field
from npgpt.cli.options import Options, Parser, option
from npgpt.errors import UserError, with_flags
from npgpt.parallel import world, world_on
from npgpt.training.ranks import TIMES, exchange_seconds, notes, problems, this_rank

HEAD = ("rank", "host", "process", "device", "cores", "threads", "Python", "NumPy", "npgpt", "data")
LABEL = 12               # columns


@dataclass(frozen=True)
class RanksConfig(Options):
    """The options of ranks."""

    data: str | None = option(None, "the data, as for train.py; nothing is downloaded or encoded "
                              "(default: shakespeare)", metavar="PATH")
    device: str = device_field()
    mb: int = option(16, "megabytes of gradients to exchange; 0: none", at_least=0,
                     at_most=100_000)


def main(arguments=None):
    """Run the command -> exit status."""
    return run_command("npgpt ranks",
                       lambda: world().run("npgpt ranks", lambda: _ranks(arguments)))


def _ranks(arguments):
    parser = Parser(prog="npgpt ranks", usage="npgpt ranks ..., or mpiexec -n N npgpt ranks ...",
                    description="Show every rank that a launcher has started: its host, its "
                                "device, its cores and threads of BLAS, its versions and the data "
                                "it finds; whether they can "
                                "train together; and how fast they exchange gradients. The exit "
                                "status is 0 if training can start, else 2.")
    fields = dataclasses.fields(RanksConfig)
    parser.add_options("options", fields, {})
    c, comm = RanksConfig(**parser.parse(arguments, fields)), world()
    ranks = comm.exchange(this_rank(c.device, c.data, comm))
    width = shutil.get_terminal_size().columns
    print(*table(ranks, width), sep="\n")
    _say("MPI", _library(comm), width)
    shown = "; the digits above begin its SHA-256" if ranks[0].found.fingerprint else ""
    _say("data", f"{c.data or 'shakespeare'}{shown}", width)
    wrong = [*problems(ranks), *_strangers(comm)]
    if not wrong and comm.launched:
        try:
            comm = world_on(get_device(c.device))
        except UserError as error:
            wrong.append(error.message)
    if not wrong and comm.size > 1 and c.mb:
        numbers = c.mb * 10**6 // 4
        seconds = exchange_seconds(comm, get_device(c.device), numbers)
        _say("all-reduce", f"{c.mb} MB of gradients in {seconds * 1000:.3g} ms (reduce-scatter and "
             f"all-gather, the median of {TIMES} times): "
             f"{_speed(4 * numbers, comm.size, seconds)}", width)
    for line in notes(ranks):
        _say("note", line, width)
    for line in wrong:
        _say("problem", line, width)
    _say("result", "training cannot start" if wrong else "training can start", width)
    return 2 if wrong else 0


def _library(comm):
    if comm.launched:
        return f"{comm.library}, {comm.description}"
    install = "" if importlib.util.find_spec("mpi4py") else 'pip install "npgpt[mpi]" and '
    return (f"no launcher has started this process; to start several: {install}"
            f"mpiexec -n {max(2, host.cores())} npgpt ranks")


def _strangers(comm):
    """SLURM may start processes without telling them of each other."""
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if started > 1 and not comm.launched:
        yield (f"SLURM has started {started} processes, each of which would train alone; srun "
               "needs --mpi=pmi2")


def _speed(size, ranks, seconds):
    """Each rank sends its part of the sums that it does not own, and later what it owns."""
    return f"{2 * size * (ranks - 1) / ranks / seconds / 1e9:.2g} GB/s out of each rank and into it"


def table(ranks, width):
    """Ranks -> lines: a table or, where it is wider than the terminal, a paragraph for each."""
    rows = [HEAD] + [
        (str(number), r.host, str(r.process), r.device or "none", str(r.cores), str(r.blas),
         r.python, r.numpy, r.npgpt, r.found.fingerprint[:8] or "none")
        for number, r in enumerate(ranks)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{cell:{n}}" for cell, n in zip(row, widths)).rstrip() for row in rows]
    if max(map(len, lines)) <= width:
        return lines
    return [line for row in rows[1:] for line in textwrap.wrap(
        ", ".join(f"{name} {cell}" for name, cell in zip(HEAD, row)), width,
        subsequent_indent="  ", break_on_hyphens=False)]


def _say(label, text, width):
    for line in textwrap.wrap(f"{label:{LABEL}}{with_flags(text)}", max(width, 2 * LABEL),
                              subsequent_indent=" " * LABEL, break_on_hyphens=False,
                              break_long_words=False):
        print(line)
