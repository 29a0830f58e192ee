"""Damaged files: every bit flipped, every length, and random changes, in every format that npgpt
reads. A file is refused with one line, or it holds other valid values; nothing hangs, takes all
memory, or ends in a traceback. With hashes every change is refused.

A format joins by a line in FORMATS: what makes an example, the files that are damaged, and what
reads them.
"""

import contextlib
import io
import os
import pickle
import random
import re
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import npgpt
import train as train_script
from npgpt import UserError
from npgpt.durable import SUMS, verify
from npgpt.text.bpe import BPETokenizer
from npgpt.text.token_file import encode_files, open_tokens
from npgpt.text.tokenizer import load_tokenizer
from npgpt.training.request import read_command_line
from npgpt.training.setup import build_run
from tests.commands.tiny import TEXT
from tests.gguf_files import (
    metadata_of,
    random_llama,
    tensors_of,
    tokenizer_metadata,
    write_gguf,
)

SIZES = ["--data=fox.txt", "--n-layer=1", "--n-head=1", "--n-embd=4", "--block-size=4",
         "--batch-size=2", "--eval-iters=1", "--workers=1", "--max-iters=1"]
SECONDS = 20                     # within which a file is read
MEMORY = 2 * 10**9               # bytes that a reader may take more than it has
LONGEST = 500                    # characters of a message


@dataclass(frozen=True)
class Format:
    """make(): write the example into the working directory. files: what is damaged, as patterns.
    read(): read it; raises UserError if it refuses. folder: with the hashes, if there are any."""

    name: str
    make: Callable
    files: tuple[str, ...]
    read: Callable
    folder: str = ""


def _train(*words):
    Path("fox.txt").write_text(TEXT)
    with contextlib.redirect_stdout(io.StringIO()):
        assert train_script.main([*SIZES, *words]) == 0


def _make_adapter():
    _train("--family=llama", "--out-dir=base")
    with contextlib.redirect_stdout(io.StringIO()):
        assert train_script.main(["--data=fox.txt", "--init-from=base", "--lora-rank=1",
                                  "--max-iters=1", "--eval-iters=1", "--workers=1",
                                  "--out-dir=run"]) == 0


def _make_tokens():
    Path("fox.txt").write_text(TEXT)
    encode_files([Path("fox.txt")], BPETokenizer.train([TEXT], 260), Path("tokens"))


def _make_gguf():
    words = tokenizer_metadata()
    llama = random_llama(vocab_size=len(words["tokenizer.ggml.tokens"]))
    write_gguf("model.gguf", metadata_of(llama.config) | words, tensors_of(llama))


def _resume():
    run = build_run(read_command_line(["--resume", "--max-iters=2", "--out-dir=run"],
                                      lambda *_: "laptop"))
    run.directory.close()


def _read_tokens():
    verify(Path("tokens"))
    tokens = open_tokens("tokens")
    tokens.tokenizer.decode(tokens.ids[:100])


def _read_gguf():
    npgpt.from_pretrained("model.gguf")
    load_tokenizer("model.gguf").encode("the quick")


RUN = ("run/latest", "run/best", "run/checkpoint-1/*")
FORMATS = [
    Format("the run of a GPT", lambda: _train("--family=gpt", "--out-dir=run"), RUN, _resume,
           "run/checkpoint-1"),
    Format("the run of a Llama", lambda: _train("--family=llama", "--out-dir=run"), RUN, _resume,
           "run/checkpoint-1"),
    Format("the run of adapters", _make_adapter, RUN, _resume, "run/checkpoint-1"),
    Format("a token file with a byte-level BPE", _make_tokens, ("tokens/*",), _read_tokens,
           "tokens"),
    Format("a GGUF file", _make_gguf, ("model.gguf",), _read_gguf),
]


@dataclass(frozen=True)
class Damage:
    """A file, what is done to it, and whether there are hashes."""

    file: str
    kind: str                 # "bit", "length" or "random"
    number: int               # of the bit; the length; or the seed
    hashed: bool

    def of(self, content):
        """The content of the file -> the damaged one."""
        if self.kind == "length":
            return content[:self.number]
        if self.kind == "bit":
            damaged = bytearray(content)
            damaged[self.number // 8] ^= 1 << self.number % 8
            return bytes(damaged)
        return changed(content, random.Random(self.number))


def changed(content, rng):
    """A few random changes: of bytes, of numbers in a text, and of the order of its parts."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 8, 40))
        part, rest = content[at:at + length], content[at + length:]
        numbers = list(re.finditer(rb"\d+", content[:5000]))
        kind = rng.randrange(6 if numbers else 5)
        if kind < 5:
            part = (rng.randbytes(length), b"", part + part, bytes(length), part[::-1])[kind]
            content = content[:at] + part + rest
        else:
            number = rng.choice(numbers)
            other = rng.choice((b"0", b"-1", b"1e400", b"99999999999999999999", b"null", b'"a"',
                                b"[]", b"{}", b"0.5", b"NaN"))
            content = content[:number.start()] + other + content[number.end():]
    return content


def all_damage(form):
    """-> every flipped bit and every length of every file of an example in the working directory,
    with hashes and without."""
    found = []
    hashes = (True, False) if form.folder and Path(form.folder, SUMS).exists() else (False,)
    for path in files_of(form):
        length = len(Path(path).read_bytes())
        for hashed in hashes:
            if hashed or not path.endswith(SUMS):
                found += [Damage(path, "length", n, hashed) for n in range(length)]
                found += [Damage(path, "bit", n, hashed) for n in range(8 * length)]
    return found


def random_damage(form, count, rng):
    """-> as many random changes of the example's files."""
    paths = [path for path in files_of(form) if not path.endswith(SUMS)]
    return [Damage(rng.choice(paths), "random", rng.randrange(2**32), False)
            for _ in range(count)]


def files_of(form):
    return sorted(str(path) for pattern in form.files for path in Path().glob(pattern))


def tried(form, damages):
    """Damage the files of an example in the working directory, each in turn -> the problems of
    each: "" if there are none. If a child process that reads them ends, another goes on."""
    found = []
    while len(found) < len(damages):
        found += _in_child(form, damages[len(found):])
    return found


def _in_child(form, damages):
    """-> the results up to the first damage that ends the child."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        status = 1
        try:
            _limit_memory()
            with open(writing, "wb") as file:
                for damage in damages:
                    pickle.dump(_problem(form, damage), file)
                    file.flush()
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    found = []
    with open(reading, "rb") as file, contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            found.append(pickle.load(file))
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status or len(found) < len(damages):
        found.append(f"the process ended with status {status}")
    return found[:len(damages)]


def _limit_memory():
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)              # ends the process


def _problem(form, damage):
    """What is wrong with how a damaged file is read -> text, empty if nothing is."""
    path = Path(damage.file)
    before = path.read_bytes()
    after = damage.of(before)
    if after == before:
        return ""
    sums = Path(form.folder, SUMS) if form.folder and not damage.hashed else None
    hidden = sums.read_bytes() if sums and sums.exists() and sums != path else None
    path.write_bytes(after)
    if hidden is not None:
        sums.unlink()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            form.read()
    except UserError as error:
        if len(str(error)) > LONGEST or "\n" in str(error):
            return f"not one short line: {error}"
        return ""
    except MemoryError:
        return ""                                     # becomes one line
    except BaseException:
        return f"{traceback.format_exc(limit=-3)}"
    finally:
        signal.alarm(0)
        path.write_bytes(before)
        if hidden is not None:
            sums.write_bytes(hidden)
    protected = damage.hashed and path.name != SUMS and str(path).startswith(form.folder)
    return "it was read, in spite of its hash" if protected else ""


def try_damage(table, rng, share, count):
    """Each flipped bit and length that is in the share, from 0 to 1, and random changes, `count`
    in all. Each example is in a directory of its own below the working directory."""
    here = os.getcwd()
    for number, form in enumerate(FORMATS):
        os.makedirs(f"damage-{number}")
        with contextlib.chdir(f"{here}/damage-{number}"):
            form.make()
            every = all_damage(form)
            damages = every if share == 1 else rng.sample(every, round(share * len(every)))
            damages += random_damage(form, count // len(FORMATS), rng)
            for damage, problem in zip(damages, tried(form, damages)):
                hashes = "with hashes" if damage.hashed else "without hashes"
                table.record(f"{form.name}: {KINDS[damage.kind]}, {hashes}",
                             [problem] if problem else [], damage)
        shutil.rmtree(f"{here}/damage-{number}")


KINDS = {"bit": "a flipped bit", "length": "a file that is cut short", "random": "random changes"}
