"""`npgpt tokenizer`: train a byte-level BPE, encode texts into a token file, verify one."""

import dataclasses
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from npgpt.cli.bar import Bar
from npgpt.cli.command import run_command
from npgpt.cli.options import Options, Parser, option, suggestion
from npgpt.cli.target import read_target
from npgpt.durable import SUMS, atomic_directory, verify
from npgpt.errors import UserError, flag
from npgpt.text.bpe import BPETokenizer
from npgpt.text.files import ENDINGS, ENDLESS, documents, find, signature
from npgpt.text.token_file import FILES, encode_files, open_tokens
from npgpt.text.tokenizer import CHARS, named_tokenizer
from npgpt.text.tokenizer import FILES as TOKENIZER_FILES

TEXTS = (f"texts in UTF-8, also compressed with gzip; a directory stands for its files that end in "
         f"{', '.join(ENDINGS)}, a pattern in quotes for the files that match it")
SMALLEST = 257      # tokens of a vocabulary: all bytes, and the end of a text
PART = 2**16        # characters that the library's trainer takes at once


@dataclass(frozen=True)
class Training(Options):
    """The options of `train`."""

    out_dir: str | None = option(None, "the directory to write (required)", metavar="DIR")
    vocab_size: int = option(8192, "tokens in the vocabulary", at_least=SMALLEST,
                             at_most=10**6)
    overwrite: bool = option(False, "replace a tokenizer in `out_dir`")


@dataclass(frozen=True)
class Encoding(Options):
    """The options of `encode`."""

    out_dir: str | None = option(None, "the directory to write (required)", metavar="DIR")
    tokenizer: str | None = option(None, f"{CHARS} or the directory of a tokenizer (required)",
                                   metavar="DIR")
    overwrite: bool = option(False, "replace a token file in `out_dir`")


@dataclass(frozen=True)
class Verifying(Options):
    """The options of `verify`: none."""


def main(arguments=None):
    """Run the command -> exit status."""
    return run_command("npgpt tokenizer", lambda: _run(arguments))


def _run(arguments):
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["-h"]
    if name in ("-h", flag("help")):
        width = max(map(len, COMMANDS))
        print("usage: npgpt tokenizer COMMAND ...\n")
        for name, command in COMMANDS.items():
            print(f"  {name:{width}}  {command.summary}")
        return
    if name not in COMMANDS:
        hint = suggestion(name, COMMANDS) or ";"
        raise UserError(f"unknown command {name!r}{hint} the commands are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    fields = dataclasses.fields(command.options)
    parser = Parser(prog=f"npgpt tokenizer {name}", description=command.summary)
    if command.takes_texts:
        parser.add_argument("paths", metavar="TEXT", nargs="+", help=TEXTS)
    else:
        parser.add_argument("paths", metavar="DIR", nargs=1, help="a token file")
    if fields:
        parser.add_options("options", fields, {})
    given = parser.parse(rest, fields)
    paths = given.pop("paths")
    command.run(paths, command.options(**given))


def _train(names, c):
    target = read_target(c, TOKENIZER_FILES | {SUMS})
    paths = _paths(names)
    length = sum(-(-signature(path)[1] // PART) for path in paths)
    parts = (part[at:at + PART] for text in documents(paths) for part in text
             for at in range(0, len(part), PART))
    with _default_ctrl_c():
        tokenizer = BPETokenizer.train(parts, c.vocab_size, sys.stderr.isatty(), length)
    if tokenizer.vocab_size == SMALLEST < c.vocab_size:
        raise UserError("the texts are too short: no two characters could be a token")
    with atomic_directory(target, TOKENIZER_FILES | {SUMS}) as folder:
        tokenizer.save(folder)
    few = "" if tokenizer.vocab_size == c.vocab_size else (
        f"; the texts are too short for the {c.vocab_size:,} requested")
    print(f"a vocabulary of {tokenizer.vocab_size:,} tokens in {target}{few}")


def _encode(names, c):
    target = read_target(c, FILES)
    if not c.tokenizer:
        raise UserError(f"`tokenizer` is missing; it takes {CHARS} or the directory of a "
                        "tokenizer")
    tokenizer = named_tokenizer(c.tokenizer)
    with Bar() as bar:
        tokens = encode_files(_paths(names), tokenizer, target, bar)
    facts = tokens.facts
    texts = "1 text" if facts["documents"] == 1 else f"{facts['documents']:,} texts"
    print(f"{facts['tokens']:,} tokens ({tokens.ids.dtype}, vocabulary "
          f"{tokens.tokenizer.vocab_size:,}) from {facts['bytes']:,} bytes of {texts} in {target}")


def _verify(names, c):
    tokens = open_tokens(names[0])
    if not (tokens.path / SUMS).exists():
        raise UserError(f"{tokens.path / SUMS} is missing; without it damage cannot be detected")
    verify(tokens.path, ENDLESS)
    print(f"{tokens.path} is intact: {len(tokens.ids):,} tokens")
    for path in tokens.changed_sources():
        print(f"note: {path} has changed since it was encoded")


def _paths(names):
    """-> the paths of the texts that names stand for, each once, in the order of the names."""
    return list(dict.fromkeys(path for name in names for path in find(name)))


@contextmanager
def _default_ctrl_c():
    """Inside, Ctrl-C ends the process: the library's code does not return to Python before it is
    done. Nothing has been written then."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Command(NamedTuple):
    """A command: its function takes paths and options."""

    summary: str
    run: Callable
    options: type
    takes_texts: bool = True      # or else one token file


COMMANDS = {
    "train": Command("train a byte-level BPE on texts", _train, Training),
    "encode": Command("encode texts into a token file, which train.py reads without loading it",
                      _encode, Encoding),
    "verify": Command("check a token file against its hashes", _verify, Verifying, False),
}
