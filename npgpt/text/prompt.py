"""Prompts: from an option, a file or standard input, whole or line by line."""

import itertools
import sys
from contextlib import nullcontext, suppress

from npgpt.errors import UserError, with_flags
from npgpt.reading import LARGEST
from npgpt.text.files import read_parts

STANDARD_INPUT = "-"
MARKER = "> "                # where the user types, in a terminal


def read_prompt(prompt, path):
    """The values of the options `prompt` and `prompt_file` -> a text; None: there is no prompt. The
    last line break of a file or of standard input is left out. Raises UserError if the prompt is
    empty, cannot be read, or is not UTF-8."""
    name = "`prompt`"
    if path is not None:
        name = path or "`prompt_file`"
        prompt = _without_line_break("".join(read_parts(path, LARGEST))) if path else ""
    elif prompt == STANDARD_INPUT:
        name, content = "standard input", _standard_input().read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{name} has more than {LARGEST:,} bytes, too many for a prompt")
        prompt = _without_line_break(_decoded(content, name))
    if prompt == "":
        raise UserError(f"{name} is empty; without it the text starts from an end-of-text token or "
                        "a line break")
    return prompt


def for_each_line(act):
    """Call act(line) with every line of standard input until it ends; None for an empty line.

    A UserError is shown, and the next line follows. In a terminal there is a marker; Ctrl-C ends a
    call of act, and at the marker it raises KeyboardInterrupt. Elsewhere it always does.
    """
    file = _standard_input()
    if file.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401       # editing of the line
    for number in itertools.count(1):
        try:
            line = _next_line(file, number)
            if line is None:
                return
            with suppress(KeyboardInterrupt) if file.isatty() else nullcontext():
                act(line or None)
        except UserError as error:
            print(with_flags(error.message), file=sys.stderr)


def _next_line(file, number):
    """-> a line without its line break; None: the end of standard input."""
    name = f"line {number} of standard input"
    if not file.isatty():
        content = file.readline()
        return _without_line_break(_decoded(content, name)) if content else None
    try:
        return input(MARKER if sys.stdout.isatty() else "")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not {error.encoding}") from None
    except EOFError:
        print(file=sys.stderr)               # what follows begins a line of its own
        return None
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise


def _standard_input():
    """-> standard input, for reading bytes."""
    if sys.stdin is None:
        raise UserError("standard input is closed, so no prompt can be read from it")
    return sys.stdin.buffer


def _decoded(content, name):
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 (byte {error.start} is "
                        f"{content[error.start]:#04x}); convert it with: iconv -f latin1 -t utf-8"
                        ) from None


def _without_line_break(text):
    return text[:-1].removesuffix("\r") if text.endswith("\n") else text
