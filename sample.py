"""Generate text with a trained model: `python sample.py --prompt "ROMEO:"`."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While the modules are imported, Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import dataclasses
import io
import time
from dataclasses import dataclass
from pathlib import Path

from npgpt import GPT, UserError
from npgpt.backend import get_device
from npgpt.checkpoints.run import model_directory
from npgpt.cli.command import run_command
from npgpt.cli.options import Parser, option
from npgpt.cli.shades import say_shades
from npgpt.models.generate import Sampling, predictions, probabilities
from npgpt.text.prompt import encode_prompt, for_each_line, read_prompt
from npgpt.text.stream import Continuation
from npgpt.text.tokenizer import check_vocabulary, load_tokenizer


@dataclass(frozen=True)
class SampleConfig(Sampling):
    """The options of sample.py."""

    temperature: float = option(0.8, "higher is more random; 0: always the most likely token",
                                at_least=0)
    prompt: str | None = option(
        None, "the start of the text; -: read it from standard input, without its last line break "
        "(default: none, a new text)")
    prompt_file: str | None = option(None, "a file with the prompt in UTF-8; a line break at its "
                                     "end is left out", metavar="FILE")
    interactive: bool = option(
        False, "read lines from standard input; each line is a prompt, empty lines are skipped. "
        "Ctrl-C ends a text, Ctrl-C or Ctrl-D at the marker ends the program")
    num_samples: int = option(1, "texts to generate at once; only the first is shown as it grows",
                              at_least=1)
    show_probs: bool = option(
        False, "in a terminal, colour each token by its probability: the model's, before "
        "`temperature` and the other options change it. Of a character of several tokens it is "
        "that of the last one")
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
    path, stops, c = read_command_line(arguments)
    directory = model_directory(path)
    tokenizer = load_tokenizer(directory)
    prompt = read_prompt(c.prompt, c.prompt_file)
    encode_prompt(tokenizer, prompt)        # what is wrong with it is said before the model is read
    device = get_device(c.device)
    model = GPT.from_pretrained(directory, device, c.dtype or device.default_dtype)
    check_vocabulary(tokenizer, model.config.vocab_size, directory)
    print(f"{directory}, {model.params.flat.size:,} parameters", file=sys.stderr)

    shades = say_shades() if c.show_probs else None
    if c.interactive:
        for_each_line(lambda line: write(model, tokenizer, line, stops, c, shades))
    else:
        write(model, tokenizer, prompt, stops, c, shades)


def write(model, tokenizer, prompt, stops, c, shades):
    """Print texts that continue a prompt: the first as it grows, the others when all are done."""
    idx = encode_prompt(tokenizer, prompt)
    if len(idx) > model.config.block_size:
        print(f"note: the prompt has {len(idx):,} tokens; the model reads only the last "
              f"{model.config.block_size:,}", file=sys.stderr)
    rows = range(c.num_samples)
    texts = [Continuation(tokenizer, stops) for _ in rows]
    outputs = [sys.stdout, *(io.StringIO() for _ in rows[1:])]

    def show(row, pairs):
        text = "".join(shades.paint(*pair) if shades else pair[0] for pair in pairs)
        print(text, end="", file=outputs[row], flush=True)

    began = time.perf_counter()
    try:
        print(prompt or "", end="", flush=True)
        for tokens, logits in predictions(model, [idx] * c.num_samples, c):
            probs = probabilities(logits)[rows, tokens] if shades else tokens
            for row in rows:
                show(row, texts[row].push(tokens[row], probs[row]))
            if all(text.has_ended for text in texts):
                break
        for row in rows:
            show(row, texts[row].finish())
    finally:                                # Ctrl-C ends the line, too
        print(flush=True)
    seconds = time.perf_counter() - began

    for output in outputs[1:]:
        print("-" * 40, (prompt or "") + output.getvalue(), sep="\n", flush=True)
    n_tokens = sum(text.n_tokens for text in texts)
    print(f"{n_tokens:,} tokens, {n_tokens / max(seconds, 1e-9):,.0f} tokens/s", file=sys.stderr)


def read_command_line(arguments):
    """-> the path of the model, None: the newest run; the stop texts; SampleConfig."""
    parser = Parser(description="Generate text with a model trained by train.py, or with a GPT-2.",
                    usage="sample.py [--model PATH] [--prompt TEXT] ...")
    parser.add_argument("--model", metavar="PATH",
                        help="a run, whose best checkpoint is used, or a model directory "
                             "[the newest run in out/]")
    parser.add_argument("--out-dir", metavar="PATH", help="the same as --model")
    parser.add_argument("--stop", metavar="TEXT", action="append",
                        help="end before this text; may be given several times")
    fields = dataclasses.fields(SampleConfig)
    parser.add_options("the text", fields, {})
    given = parser.parse(arguments, fields)
    paths = {name: given.pop(name) for name in ("model", "out_dir") if name in given}
    stops = given.pop("stop", [])
    c = SampleConfig(**given)

    if len(paths) > 1:
        raise UserError("`model` and `out_dir` mean the same; use one")
    for name, path in paths.items():
        if path == "":
            raise UserError(f"`{name}` is empty; it takes the path of a run or a model directory")
    if "" in stops:
        raise UserError("`stop` is empty; it takes the text before which the output ends")
    if c.interactive and (c.prompt is not None or c.prompt_file is not None):
        raise UserError("`interactive` reads the prompts line by line; leave out `prompt` and "
                        "`prompt_file`")
    return next((Path(path) for path in paths.values()), None), stops, c


if __name__ == "__main__":
    raise SystemExit(main())
