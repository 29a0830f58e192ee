"""`npgpt eval`: the loss of a model over a text."""

import dataclasses
import json
import math
from dataclasses import dataclass

from npgpt.backend import get_device
from npgpt.checkpoints.find import find_model
from npgpt.checkpoints.models import tokenizer_of
from npgpt.cli.bar import Bar
from npgpt.cli.command import run_command
from npgpt.cli.fields import data_cache_field, device_field, dtype_field
from npgpt.cli.options import Options, Parser, option
from npgpt.errors import UserError
from npgpt.models.language_model import LanguageModel
from npgpt.text.source import load_source
from npgpt.text.tokenizer import check_vocabulary
from npgpt.training.perplexity import whole_loss, window_length


@dataclass(frozen=True)
class EvalConfig(Options):
    """The options of eval."""

    model: str | None = option(None, "a run, whose best checkpoint is used, a directory of a "
                               "model or of adapters, a GGUF file, or OWNER/MODEL on Hugging Face "
                               "(default: the newest run in out/)", metavar="PATH")
    data: str | None = option(None, "the text, as for train.py; all of it is used", metavar="PATH")
    stride: int | None = option(None, "tokens from one window to the next; fewer give each token "
                                "more context (default: half of the context)", at_least=1)
    json: bool = option(False, "print one line of JSON")
    data_cache: str = data_cache_field()
    device: str = device_field()
    dtype: str | None = dtype_field()


def main(arguments=None):
    """Run the command -> exit status."""
    return run_command("npgpt eval", lambda: _eval(arguments))


def _eval(arguments):
    parser = Parser(prog="npgpt eval", usage="npgpt eval [--model PATH] --data PATH ...",
                    description="Measure the loss of a model over a whole text, in windows of the "
                                "context's length that overlap.")
    fields = dataclasses.fields(EvalConfig)
    parser.add_options("options", fields, {})
    c = EvalConfig(**parser.parse(arguments, fields))
    if not c.data:
        raise UserError("`data` is missing; it takes a text, a directory of texts or a token file")
    directory = find_model(c.model)
    tokenizer = tokenizer_of(directory)
    device = get_device(c.device)
    model = LanguageModel.from_pretrained(directory, device, c.dtype or device.default_dtype)
    check_vocabulary(tokenizer, model.config.vocab_size, directory)
    length = window_length(model)
    stride = c.stride or max(1, length // 2)
    if stride > length - 1:
        raise UserError(f"`stride` must be at most {length - 1}, because a window has {length} "
                        f"tokens and the first is not predicted, got {stride}")
    with Bar() as bar:
        source = load_source(c.data, tokenizer, c.data_cache, bar)
        if len(source.ids) < 2:
            raise UserError(f"the text {source.name} is too short: at least 2 tokens are needed")
        found = whole_loss(model, tokenizer, source.ids, stride,
                           lambda done, total: bar("evaluating", done, total))
    values = {
        "model": str(directory), "data": source.name, "loss": found.loss,
        "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens, "bytes": found.bytes, "context": length, "stride": stride,
    }
    if c.json:
        return print(json.dumps({name: None if value == math.inf else value
                                 for name, value in values.items()}))
    print(f"model       {directory}")
    print(f"data        {source.name}: {source.summary}")
    print(f"loss        {found.loss:.4f} nats per token, over {found.tokens:,} tokens in windows "
          f"of {length} with a stride of {stride}")
    print(f"perplexity  {found.perplexity:.4f}")
    print(f"bits/byte   {found.bits_per_byte:.4f}, over {found.bytes:,} bytes")
