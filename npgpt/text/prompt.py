"""Prompts: from an option, a file or standard input, whole or line by line; and their token ids."""

import sys
from contextlib import suppress
from pathlib import Path

from npgpt.errors import UserError
from npgpt.reading import LARGEST, read_bytes

STANDARD_INPUT = "-"
MARKER = "> "                # where the user types, in a terminal


def read_prompt(prompt, path):
    """The values of the options `prompt` and `prompt_file` -> a text; None: there is no prompt.
    Raises UserError if it is empty, cannot be read, or is not UTF-8."""
    if prompt is not None and path is not None:
        raise UserError("`prompt` and `prompt_file` are two ways to give the prompt; use one")
    if prompt == "":
        raise UserError("`prompt` is empty; leave it out to start a new text")
    if prompt != STANDARD_INPUT and path is None:
        return prompt
    if path is None:
        name, content = "standard input", _standard_input().read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{name} has more than {LARGEST:,} bytes, too many for a prompt")
    elif path == "":
        raise UserError("`prompt_file` is empty; it takes the path of a file")
    else:
        name, content = path, read_bytes(Path(path))
    text = _without_line_break(_decoded(content, name))
    if not text:
        raise UserError(f"the prompt from {name} is empty; leave it out to start a new text")
    return text


def encode_prompt(tokenizer, prompt):
    """A text -> (n,) int64; None: the token that a new text starts from. Raises UserError for what
    the tokenizer does not know."""
    if prompt is None:
        return tokenizer.start
    try:
        return tokenizer.encode(prompt)
    except UserError as error:
        raise UserError(error.message.replace("the text", "the prompt", 1)) from None


def for_each_line(act):
    """Call act(line) with every line of standard input that is not empty, until its end.

    In a terminal a marker shows where to type. There an error or Ctrl-C ends only this call; Ctrl-C
    at the marker raises KeyboardInterrupt. Elsewhere the first error or Ctrl-C ends the loop, too.
    """
    file = _standard_input()
    if not file.isatty():
        for number, line in enumerate(file, 1):
            line = _without_line_break(_decoded(line, f"line {number} of standard input"))
            if line:
                act(line)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  the line can be edited, and there is a history
    while True:
        try:
            line = input(MARKER if sys.stdout.isatty() else "")
        except UnicodeDecodeError:
            print("this line is not UTF-8", file=sys.stderr)
            continue
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise
        if line:
            with suppress(KeyboardInterrupt):
                _say_errors(act, line)


def _say_errors(act, line):
    try:
        act(line)
    except UserError as error:
        print(error, file=sys.stderr)


def _standard_input():
    """-> standard input, for reading bytes."""
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("standard input is closed")
    return sys.stdin.buffer


def _decoded(content, name):
    """Bytes -> text, without a byte-order mark. Raises UserError if they are not UTF-8."""
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 (byte {error.start} is "
                        f"{content[error.start]:#04x}); convert it with: iconv -f latin1 -t utf-8"
                        ) from None


def _without_line_break(text):
    """Without one line break at the end, which an editor or `echo` adds."""
    return text[:-1].removesuffix("\r") if text.endswith("\n") else text
