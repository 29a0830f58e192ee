"""Generate text with a trained model: `python sample.py --prompt "ROMEO:"`."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While the modules are imported, Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import dataclasses
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from npgpt import GPT, UserError
from npgpt.backend import get_device
from npgpt.checkpoints.run import model_directory
from npgpt.cli.command import run_command
from npgpt.cli.options import Parser, option
from npgpt.cli.shades import Printer
from npgpt.errors import with_flags
from npgpt.models.generate import steps
from npgpt.models.sampling import Sampling
from npgpt.text.files import read_parts
from npgpt.text.stream import Continuation
from npgpt.text.tokenizer import check_vocabulary, load_tokenizer

BETWEEN = "-" * 40       # a line between two texts
MARKER = "> "            # of --interactive
LONGEST = 2**26          # bytes of a file with a prompt


@dataclass(frozen=True)
class SampleConfig(Sampling):
    """The options of sample.py."""

    temperature: float = option(0.8, "higher is more random; 0: always the most likely token",
                                at_least=0)
    prompt: str | None = option(None, "the start of the text; -: read it from standard input "
                                "(default: an end-of-text token, or a line break)")
    prompt_file: str | None = option(None, "read the prompt from a file", metavar="FILE")
    num_samples: int = option(1, "texts to generate, in one batch", at_least=1, at_most=10**4)
    interactive: bool = option(False, "read prompts from standard input, a line each, until it "
                               "ends; Ctrl-C ends a text, and a second one the program")
    show_probs: bool = option(False, "colour each token by its probability, before `temperature` "
                              "and all other options")
    device: str = option("auto", "where to compute; auto: on the GPU if there is one",
                         choices=("auto", "cpu", "gpu"))
    dtype: str | None = option(
        None, "precision: float32 or float64; tf32 and bfloat16 need a GPU (default: tf32 on a "
        "GPU that has it, else float32)", choices=("float32", "float64", "tf32", "bfloat16"),
    )


def main(arguments=None):
    """Generate text with the options of the command line -> exit status."""
    return run_command("sample.py", lambda: sample(arguments))


def sample(arguments):
    c, path, stops = read_command_line(arguments)
    directory = model_directory(path)
    tokenizer = load_tokenizer(directory)
    prompt = None if c.interactive else read_prompt(c)
    ids = encode(tokenizer, prompt)
    device = get_device(c.device)
    model = GPT.from_pretrained(directory, device, c.dtype or device.default_dtype)
    check_vocabulary(tokenizer, model.config.vocab_size, directory)
    tell(f"{directory}, {model.params.flat.size:,} parameters")

    printer = Printer(c.show_probs)
    if printer.has_colours:
        Console(stderr=True, highlight=False).print(printer.legend())
    elif c.show_probs:
        tell("note: the output is not a terminal with colours, so there are none")
    if not c.interactive:
        write(model, tokenizer, c, prompt, ids, stops, printer)
        return
    with suppress(EOFError, ImportError):
        if sys.stdin.isatty():
            import readline  # noqa: F401       # editing of the line
        while True:
            prompt = input(MARKER if sys.stdin.isatty() else "")
            try:
                write(model, tokenizer, c, prompt or None, encode(tokenizer, prompt or None), stops,
                      printer)
            except KeyboardInterrupt:
                continue
            except UserError as error:
                tell(f"sample.py: {with_flags(error.message)}")


def write(model, tokenizer, c, prompt, ids, stops, printer):
    """Print texts that continue a prompt, None for none, with the token ids (T,). The first text
    appears as it is generated, the others after it."""
    if len(ids) > model.config.block_size:
        tell(f"note: the prompt has {len(ids):,} tokens; the model reads the last "
             f"{model.config.block_size:,} of them")
    texts = [Continuation(tokenizer, stops) for _ in range(c.num_samples)]
    parts = [[] for _ in texts]                      # text and probability; not of the first
    began = time.perf_counter()
    print(prompt or "", end="", flush=True)
    try:
        for step in steps(model, np.tile(ids, (c.num_samples, 1)), c, tokenizer.end):
            probabilities = step.probabilities if c.show_probs else np.ones(c.num_samples)
            for number, text in enumerate(texts):
                part = text.push(step.tokens[number]), probabilities[number]
                if number:
                    parts[number].append(part)
                else:
                    printer.show(*part)
            if all(text.has_ended for text in texts):
                break
        printer.show(texts[0].finish(), 1)
    finally:                                         # Ctrl-C ends the line, too
        print(flush=True)
    seconds = time.perf_counter() - began
    for number in range(1, c.num_samples):
        print(BETWEEN)
        print(prompt or "", end="")
        for part in (*parts[number], (texts[number].finish(), 1)):
            printer.show(*part)
        print(flush=True)
    total = sum(text.tokens for text in texts)
    tell(f"{total:,} token{'' if total == 1 else 's'}, {total / seconds:,.0f} tokens/s")


def read_command_line(arguments):
    """-> SampleConfig, the path of a run or a model or None, a list of stop texts."""
    parser = Parser(description="Generate text with a model trained by train.py, or with GPT-2.",
                    usage="sample.py [--model PATH] [--prompt TEXT] ...")
    parser.add_argument("--model", metavar="PATH",
                        help="a run, whose best checkpoint is used, or a model directory "
                             "[the newest run in out/]")
    parser.add_argument("--out-dir", metavar="DIR", help="the same as --model")
    parser.add_argument("--stop", metavar="TEXT", action="append",
                        help="end the text before this one; may be given several times")
    fields = dataclasses.fields(SampleConfig)
    parser.add_options("the text", fields, {})
    given = parser.parse(arguments, fields)
    if "model" in given and "out_dir" in given:
        raise UserError("`model` and `out_dir` are the same; give one of them")
    for name in ("model", "out_dir"):
        if given.get(name) == "":
            raise UserError(f"`{name}` is empty; it takes the path of a directory")
    path, stops = given.pop("model", given.pop("out_dir", None)), given.pop("stop", [])
    if "" in stops:
        raise UserError("`stop` is empty; it takes a text")
    c = SampleConfig(**given)
    if c.prompt is not None and c.prompt_file is not None:
        raise UserError("`prompt` and `prompt_file` are both given; choose one")
    if c.interactive and not (c.prompt is c.prompt_file is None):
        raise UserError("`interactive` reads prompts itself; leave out `prompt` and `prompt_file`")
    return c, path and Path(path), stops


def read_prompt(c):
    """-> the prompt, or None. The last line break of a file or of standard input is left out."""
    name = "`prompt`"
    if c.prompt_file is not None:
        name = c.prompt_file
        prompt = "".join(read_parts(c.prompt_file, LONGEST)).removesuffix("\n").removesuffix("\r")
    elif c.prompt == "-":
        name = "standard input"
        content = sys.stdin.buffer.read() if sys.stdin else b""
        try:
            prompt = content.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"the prompt on standard input is not UTF-8 (byte {error.start} is "
                            f"{content[error.start]:#04x})") from None
    else:
        prompt = c.prompt
    if prompt == "":
        raise UserError(f"{name} is empty; without it the text starts from an end-of-text token or "
                        "a line break")
    return prompt


def encode(tokenizer, prompt):
    """-> token ids (T,) of a prompt; None: the token that a text starts from."""
    return tokenizer.start if prompt is None else tokenizer.encode(prompt, "prompt")


def tell(line):
    """Print a line beside the text."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
