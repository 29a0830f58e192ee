"""`python -m npgpt explain LAYER`: the command line."""

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
    """The options of explain."""

    layer: str | None = option(None, "what to explain")
    seed: int = option(1337, "seed of the random numbers", at_least=0, at_most=2**64 - 1)
    shape: str | None = option(None, f"sizes from 1 to {LARGEST}, as B=2,T=3,C=4")
    html: str | None = option(None, "write an HTML page to this file instead of printing text")


METAVARS = {"shape": "SIZES", "html": "FILE"}


def main(arguments=None):
    """Run the command -> exit status."""
    return run_command("npgpt explain", lambda: _explain(arguments))


def _explain(arguments):
    fields = dataclasses.fields(ExplainConfig)
    parser = Parser(usage="npgpt explain [LAYER] [--shape B=2,T=3] ...",
                    description="Run a layer line by line on small numbers, forward and backward, "
                                "show what each line makes, and check the gradients. Without "
                                "LAYER, list the layers.")
    parser.add_argument("layer", nargs="?", metavar="LAYER", help=", ".join(SUBJECTS))
    parser.add_options("the numbers", [f for f in fields if f.name != "layer"], {})
    for action in parser._actions:            # argparse has no public way to reach them
        action.metavar = METAVARS.get(action.dest, action.metavar)
    c = ExplainConfig(**parser.parse(arguments, fields))
    if c.layer is None:
        return _show(_list())
    if c.layer not in SUBJECTS:
        raise UserError(f"LAYER must be one of {', '.join(SUBJECTS)}, got {c.layer!r}"
                        f"{suggestion(c.layer, SUBJECTS)}")
    sizes = SUBJECTS[c.layer].sizes_from(c.shape)
    target = None if c.html is None else _writable(c.html)

    explanation = explain(c.layer, sizes, c.seed)
    if target is None:
        _show(lambda width: terminal.lines(explanation, width))
    else:
        write_text(target, page.html(explanation))
        print(f"wrote {target}", flush=True)
    if not explanation.right:
        where = "the end of the text" if target is None else target
        raise RunError(f"the backward of {c.layer} is not the derivative of its forward; "
                       f"{where} shows which gradients are wrong")


def _list():
    """-> function: width -> a line for each subject."""
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
    """Print lines(width) in one piece, so that a closed pipe raises BrokenPipeError here."""
    plain = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    console = Console(highlight=False, markup=False, emoji=False, **plain)
    with console.capture() as capture:
        for line in lines(console.width):
            console.print(line, soft_wrap=True)
    print(capture.get(), end="", flush=True)


def _writable(name):
    """The path of a page. Raises UserError if no page can be written there."""
    path = Path(name)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"`html` must end in .html, got {name!r}")
    if path.is_dir():
        raise UserError(f"`html` must be a file, and {path} is a directory; give another name")
    if not path.parent.is_dir():
        raise UserError(f"the directory of `html` does not exist: {path.parent}; "
                        f"create it with: mkdir -p {path.parent}")
    return path
