"""`npgpt merge`: merge adapters into their base model."""

import dataclasses
from dataclasses import dataclass

from npgpt.checkpoints.adapter import base_of, is_adapter
from npgpt.checkpoints.find import find_model
from npgpt.checkpoints.models import FILES, load_model, tokenizer_of, write_model
from npgpt.cli.command import ended_by_signals, run_command
from npgpt.cli.options import Options, Parser, option
from npgpt.cli.target import read_target
from npgpt.durable import atomic_directory
from npgpt.errors import UserError
from npgpt.models.language_model import LanguageModel
from npgpt.text.tokenizer import FILES as TOKENIZER_FILES
from npgpt.text.tokenizer import check_vocabulary


@dataclass(frozen=True)
class Merging(Options):
    """The options of merge."""

    model: str | None = option(None, "adapters: the directory of a run with lora_rank, whose best "
                               "checkpoint is used, or one that peft wrote (default: the newest "
                               "run in out/)", metavar="PATH")
    out_dir: str | None = option(None, "the model directory to write (required)", metavar="DIR")
    overwrite: bool = option(False, "replace a model in `out_dir`")


def main(arguments=None):
    """Run the command -> exit status."""
    return run_command("npgpt merge", lambda: _merge(arguments))


def _merge(arguments):
    parser = Parser(prog="npgpt merge", usage="npgpt merge [--model PATH] --out-dir DIR",
                    description="Merge the adapters of a LoRA into their base model, and write a "
                                "model without adapters.")
    fields = dataclasses.fields(Merging)
    parser.add_options("options", fields, {})
    c = Merging(**parser.parse(arguments, fields))
    files = FILES | TOKENIZER_FILES
    target = read_target(c, files)
    directory = find_model(c.model)
    if not is_adapter(directory):
        raise UserError(f"the model in {directory} has no adapters; `model` takes a "
                        "directory of adapters")
    base = base_of(directory)
    if target.resolve() == base.resolve():
        raise UserError(f"{target} is the base model of the adapters; choose another "
                        "`out_dir`")
    tokenizer = tokenizer_of(directory)
    model = load_model(directory, LanguageModel)
    check_vocabulary(tokenizer, model.config.vocab_size, directory)
    with ended_by_signals(), atomic_directory(target, files) as folder:
        write_model(model, folder, tokenizer)
        tokenizer.save(folder)
    print(f"{base} with the adapters in {directory}: "
          f"{model.params.flat.size:,} parameters in {target}")
