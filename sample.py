"""Generate text with a trained model: `python sample.py --prompt "ROMEO:"`."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While the modules are imported, Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from npgpt import GPT, UserError
from npgpt.backend import get_device
from npgpt.checkpoints.run import RunDirectory
from npgpt.cli.command import run_command
from npgpt.cli.options import Parser, option
from npgpt.models.generate import Sampling, stream
from npgpt.text.tokenizer import load_tokenizer


@dataclass(frozen=True)
class SampleConfig(Sampling):
    """The options of sample.py."""

    temperature: float = option(0.8, "higher is more random; 0: always the most likely token",
                                at_least=0)
    prompt: str | None = option(None, "the start of the text (default: a line break)")
    num_samples: int = option(1, "texts to generate", at_least=1)
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
    parser = Parser(description="Generate text with a model trained by train.py.",
                    usage="sample.py [--out-dir DIR] [--prompt TEXT] ...")
    parser.add_argument("--out-dir", metavar="DIR",
                        help="a run, whose best checkpoint is used, or a model directory "
                             "[the newest run in out/]")
    fields = dataclasses.fields(SampleConfig)
    parser.add_options("the text", fields, {})
    given = parser.parse(arguments, fields)
    directory = given.pop("out_dir", None)
    c = SampleConfig(**given)

    directory = model_directory(directory)
    tokenizer = load_tokenizer(directory)
    if c.prompt == "":
        raise UserError("`prompt` is empty; without it the text starts from a line break")
    idx = tokenizer.start if c.prompt is None else tokenizer.encode(c.prompt)
    device = get_device(c.device)
    model = GPT.from_pretrained(directory, device, c.dtype or device.default_dtype)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"the tokenizer and the model in {directory} have different vocabularies")
    print(f"{directory}, {model.params.flat.size:,} parameters", file=sys.stderr)

    for number in range(c.num_samples):
        if number:
            print("-" * 40)
        print(c.prompt or "", end="")
        settings = c if c.seed is None else dataclasses.replace(c, seed=c.seed + number)
        try:
            for token in stream(model, idx[None], settings):
                print(tokenizer.decode(token), end="", flush=True)
        finally:                                 # Ctrl-C ends the line, too
            print(flush=True)


def model_directory(path):
    """The best checkpoint of a run, or the directory itself if it is a model."""
    if path == "":
        raise UserError("`out_dir` is empty; it takes the path of a directory")
    if path and (Path(path) / "config.json").is_file():
        return Path(path)
    return RunDirectory.existing(path and Path(path)).checkpoint("best")


if __name__ == "__main__":
    raise SystemExit(main())
