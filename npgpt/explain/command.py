"""`python -m npgpt explain LAYER`: a layer's own lines on small numbers, and proof that they are
right."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from npgpt.cli.command import run_command
from npgpt.cli.options import Options, Parser, option, suggestion
from npgpt.durable import write_text
from npgpt.errors import RunError, UserError
from npgpt.explain import page, terminal
from npgpt.explain.explanation import explain
from npgpt.explain.subjects import LARGEST, SUBJECTS


@dataclass(frozen=True)
class ExplainConfig(Options):
    """What explain can be asked for."""

    layer: str | None = option(None, "what to explain")
    seed: int = option(1337, "of the random numbers", at_least=0, at_most=2**64 - 1)
    shape: str | None = option(None, f"sizes from 1 to {LARGEST}, as B=2,T=3,C=4")
    html: str | None = option(None, "a page to write, .html, instead of the text")


def main(arguments):
    """Explain as the command line says -> exit status."""
    return run_command("npgpt explain", lambda: _explain(arguments))


def _explain(arguments):
    fields = dataclasses.fields(ExplainConfig)
    parser = Parser(prog="npgpt explain", usage="npgpt explain [LAYER] [--shape B=2,T=3] ...",
                    description="Run a layer's own lines on small numbers, forward and backward, "
                                "show what each makes, and check the gradients. Without LAYER: "
                                "list them.")
    parser.add_argument("layer", nargs="?", metavar="LAYER", help=", ".join(SUBJECTS))
    parser.add_options("the numbers", [f for f in fields if f.name != "layer"], {})
    c = ExplainConfig(**parser.parse(arguments, fields))
    if c.layer is None:
        return _show(_list())
    if c.layer not in SUBJECTS:
        raise UserError(f"unknown layer {c.layer!r}{suggestion(c.layer, SUBJECTS)}; there are: "
                        f"{', '.join(SUBJECTS)}")
    sizes = SUBJECTS[c.layer].sizes_from(c.shape)
    target = None if c.html is None else _writable(c.html)

    explanation = explain(c.layer, sizes, c.seed)
    if target is None:
        _show(lambda width: terminal.lines(explanation, width))
    else:
        write_text(target, page.html(explanation))
        print(f"{target} is written", flush=True)
    if not explanation.right:
        raise RunError(f"the gradients of {c.layer} are not those of its forward")


def _list():
    """-> function of a width that gives a line for each subject."""
    name_width = max(map(len, SUBJECTS))

    def lines(width):
        yield Text("python -m npgpt explain LAYER", "bold")
        yield Text()
        for name, subject in SUBJECTS.items():
            line = Text(f"  {name:{name_width}}  ", "bold")
            line.append(subject.summary)
            line.truncate(width, overflow="ellipsis")
            yield line

    return lines


def _show(lines):
    """Print what lines(width) yields, at once, so that a reader who leaves is noticed by us."""
    plain = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    console = Console(highlight=False, markup=False, emoji=False, **plain)
    with console.capture() as capture:
        for line in lines(console.width):
            console.print(line, soft_wrap=True)
    print(capture.get(), end="", flush=True)


def _writable(name):
    """The path of a page. Raises UserError if none can stand there."""
    path = Path(name)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html needs a file that ends in .html, not {name!r}")
    if path.is_dir():
        raise UserError(f"{path} is a directory")
    if not path.parent.is_dir():
        raise UserError(f"there is no directory {path.parent} to write {path.name} in")
    return path
