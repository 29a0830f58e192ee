"""Generate text with a trained model: `python sample.py --prompt "ROMEO:"`."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While the modules are imported, Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import dataclasses
import time
from dataclasses import dataclass
from io import StringIO

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

from npgpt import UserError
from npgpt.backend import get_device
from npgpt.checkpoints.find import find_model
from npgpt.checkpoints.models import tokenizer_of
from npgpt.cli.command import run_command
from npgpt.cli.fields import device_field, dtype_field
from npgpt.cli.options import Parser, option
from npgpt.cli.shades import Shades
from npgpt.models.generate import KVCache, steps
from npgpt.models.language_model import LanguageModel
from npgpt.models.sampling import Sampling
from npgpt.parallel.threads import Generating
from npgpt.text.chat import Chat, Conversation
from npgpt.text.prompt import for_each_line, read_prompt
from npgpt.text.stream import Continuation
from npgpt.text.tokenizer import check_vocabulary

BETWEEN = "-" * 40       # a line between two texts


@dataclass(frozen=True)
class SampleConfig(Sampling):
    """The options of sample.py."""

    temperature: float = option(0.8, "higher is more random; 0: always the most likely token",
                                at_least=0)
    prompt: str | None = option(None, "the start of the text; -: read it from standard input, "
                                "without its last line break (default: an end-of-text token, or a "
                                "line break)")
    prompt_file: str | None = option(None, "read the prompt from a file, without its last line "
                                     "break", metavar="FILE")
    num_samples: int = option(1, "texts to generate, in one batch", at_least=1, at_most=10**4)
    interactive: bool = option(False, "read prompts from standard input, a line each, until it "
                               "ends; an empty line starts a new text. In a terminal Ctrl-C ends a "
                               "text, and Ctrl-C or Ctrl-D at the marker the program")
    chat: bool = option(False, "have a conversation with a model that was trained for it: each "
                        "line of standard input is a message, and an empty line starts anew; with "
                        "`prompt` one message")
    system: str | None = option(None, "with `chat`, what the model is told before the first "
                                "message (default: what its template says, if it does)")
    show_probs: bool = option(False, "colour each token by its probability, before `temperature` "
                              "and all other options; a character of several tokens has that of "
                              "the last one")
    device: str = device_field()
    dtype: str | None = dtype_field()


def main(arguments=None):
    """Generate text with the options of the command line -> exit status."""
    with threadpool_limits():          # the number of threads is chosen below, and restored here
        return run_command("sample.py", lambda: sample(arguments))


def sample(arguments):
    c, (name, named_by), stops = read_command_line(arguments)
    threads = Generating()
    directory = find_model(name, named_by)
    tokenizer = tokenizer_of(directory)
    chat = Chat.of(tokenizer, directory) if c.chat else None
    prompt = read_prompt(c.prompt, c.prompt_file)
    encode(tokenizer, prompt)                        # refused before the model is read
    conversation = chat and Conversation(tokenizer, chat, c.system)
    if chat and prompt is not None:
        conversation.ask(prompt, len(prompt))        # the template may refuse it, too
        conversation.restart()
    device = get_device(c.device)
    dtype = c.dtype or device.default_dtype                  # plain: tiles are for many queries
    model = LanguageModel.from_pretrained(directory, device, dtype, attention="plain")
    check_vocabulary(tokenizer, model.config.vocab_size, directory)
    threads.begin(model.params.flat.size)
    tell(f"{directory}, {model.params.flat.size:,} parameters")

    shades = Shades() if c.show_probs else None
    if shades and shades.are_shown:
        Console(stderr=True).print(shades.legend())
    elif shades:
        tell("note: the output is not a terminal with colours, so there are none")
    writer = Writer(model, tokenizer, c, stops, shades, threads.look)
    if chat:
        answer = Answerer(writer, conversation).answer
        if prompt is None:
            for_each_line(answer)
        else:
            answer(prompt)
    elif c.interactive:
        for_each_line(writer.continue_text)
    else:
        writer.continue_text(prompt)


class Writer:
    """Generates texts and prints them."""

    def __init__(self, model, tokenizer, c, stops, shades, look=lambda: None):
        """look: called after every token."""
        self.model, self.tokenizer, self.c = model, tokenizer, c
        self.stops, self.shades, self.look = stops, shades, look

    def continue_text(self, prompt):
        """Print texts that continue a prompt, None for none. The first one appears as it is
        generated, the others after it."""
        ids = encode(self.tokenizer, prompt)
        texts = [Continuation(self.tokenizer, self.stops) for _ in range(self.c.num_samples)]
        outputs = [sys.stdout, *(StringIO() for _ in texts[1:])]
        self.write(ids, texts, outputs, shown=prompt or "")
        for output in outputs[1:]:
            print(BETWEEN, (prompt or "") + output.getvalue(), sep="\n")

    def write(self, ids, texts, outputs, shown="", kv=None):
        """Write each Continuation of the tokens ids (T,) to its output. shown: the text before the
        first one. kv: as for `steps`."""
        context = self.model.config.block_size
        if len(ids) > context:
            tell(f"note: the prompt has {len(ids):,} tokens; the model reads the last {context:,} "
                 "of them")
        began = time.perf_counter()
        try:
            print(shown, end="", flush=True)
            for step in steps(self.model, np.tile(ids, (len(texts), 1)), self.c, kv=kv):
                probabilities = step.probabilities if self.shades else [None] * len(texts)
                for text, output, *drawn in zip(texts, outputs, step.tokens, probabilities):
                    self._show(text.push(*drawn), output)
                if all(text.has_ended for text in texts):
                    break
                self.look()
            for text, output in zip(texts, outputs):
                self._show(text.finish(), output)
        finally:                                         # Ctrl-C ends the line, too
            print(flush=True)
        seconds = time.perf_counter() - began
        total = sum(text.tokens for text in texts)
        tell(f"{total:,} token{'' if total == 1 else 's'}, {total / seconds:,.0f} tokens/s")

    def _show(self, parts, output):
        shown = (self.shades.paint(*part) if self.shades else part[0] for part in parts)
        print("".join(shown), end="", file=output, flush=True)


class Answerer:
    """Writes the answers of a conversation. What was said before has been read."""

    def __init__(self, writer, conversation):
        self.writer, self.conversation = writer, conversation
        c = writer.model.config
        self.kv = KVCache(c.n_layer, c.block_size)

    def answer(self, message):
        """Print the answer to a message; None starts a new conversation."""
        if message is None:
            self.conversation.restart()
            return tell("note: a new conversation")
        w, context = self.writer, self.writer.model.config.block_size
        room = max(context - w.c.max_new_tokens, context // 2)
        ids, forgotten = self.conversation.ask(message, room)
        if forgotten:
            tell(f"note: the context has {context:,} tokens; the {forgotten} oldest messages are "
                 "forgotten")
        text = Continuation(w.tokenizer, w.stops, self.conversation.ends)
        try:
            w.write(ids, [text], [sys.stdout], kv=self.kv)
        finally:                                         # Ctrl-C: what is shown has been said
            self.conversation.answered(text.shown)


def read_command_line(arguments):
    """-> SampleConfig, the name of a run or of a model with its option, a list of stop texts."""
    parser = Parser(description="Generate text with a model trained by train.py, with GPT-2 or "
                                 "with a Llama.",
                    usage="sample.py [--model PATH] [--prompt TEXT] ...")
    parser.add_argument("--model", metavar="PATH",
                        help="a run, whose best checkpoint is used, a directory of a model or of "
                             "adapters, a GGUF file, or OWNER/MODEL on Hugging Face [the newest "
                             "run in out/]")
    parser.add_argument("--out-dir", metavar="DIR", help="the same as --model")
    parser.add_argument("--stop", metavar="TEXT", action="append",
                        help="end the text before this one; may be given several times")
    fields = dataclasses.fields(SampleConfig)
    parser.add_options("the text", fields, {})
    given = parser.parse(arguments, fields)
    if "model" in given and "out_dir" in given:
        raise UserError("`model` and `out_dir` are the same; give one of them")
    named_by = "out_dir" if "out_dir" in given else "model"
    name, stops = given.pop(named_by, None), given.pop("stop", [])
    if "" in stops:
        raise UserError("`stop` is empty; it takes a text")
    c = SampleConfig(**given)
    if c.prompt is not None and c.prompt_file is not None:
        raise UserError("`prompt` and `prompt_file` are both given; choose one")
    if c.chat and (c.interactive or c.num_samples > 1):
        wrong = "interactive" if c.interactive else "num_samples"
        raise UserError(f"`chat` is a conversation; leave out `{wrong}`")
    if c.system is not None and not c.chat:
        raise UserError("`system` is for a conversation; add `chat`, or leave it out")
    if c.interactive and not (c.prompt is c.prompt_file is None):
        raise UserError("`interactive` reads prompts itself; leave out `prompt` and `prompt_file`")
    return c, (name, named_by), stops


def encode(tokenizer, prompt):
    """-> token ids (T,) of a prompt; None: the tokens that a text starts from."""
    if prompt is None:
        return tokenizer.start
    return np.concatenate([tokenizer.prefix, tokenizer.encode(prompt, "the prompt")])


def tell(line):
    """Print a line beside the text."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
