"""Conversations as text. A model that was trained on conversations comes with a template in the
language Jinja, which writes messages as the text that the model knows:

    [{"role": "user", "content": "Hello"}]
    ->  <|im_start|>user
        Hello<|im_end|>
        <|im_start|>assistant

A template is a program by somebody else. It runs in Jinja's sandbox, with the functions that
Hugging Face's transformers gives it.
"""

import json
from datetime import datetime
from importlib import metadata

from npgpt.errors import UserError
from npgpt.reading import LARGEST
from npgpt.text.tokenizer_json import named_token

EXTRA = "the package jinja2 3.1.6 or later; install it with: pip install 'npgpt[chat]'"
FIRST = 3, 1, 6           # in earlier versions a template can leave the sandbox
NAMES = "bos_token", "eos_token", "unk_token", "pad_token"      # that a template may use


class Chat:
    """A chat template.

        chat = Chat.of(tokenizer, "the model's directory")
        ids = tokenizer.encode(chat.text([{"role": "user", "content": "Hello"}]))

    ends: the ids of the tokens that end an answer, a tuple.
    """

    def __init__(self, template, tokens=None, ends=(), path="the chat template"):
        """template: in Jinja; tokens: "bos_token", "eos_token" ... -> text; ends: token ids; path:
        for messages. Raises UserError if it is invalid or if the package jinja2 is missing."""
        self.template, self.tokens, self.ends = template, dict(tokens or {}), tuple(ends)
        self._path = path
        self._compiled = self._run(_environment(path).from_string, template)

    @classmethod
    def of(cls, tokenizer, path):
        """-> the Chat of a tokenizer. path: where it is from. Raises UserError if it has none."""
        settings = tokenizer.settings
        template = settings.get("chat_template")
        if isinstance(template, list):             # several by name
            template = next((entry.get("template") for entry in template if isinstance(entry, dict)
                             and entry.get("name") == "default"), None)
        if not isinstance(template, str):
            raise UserError(f"{path} has no chat template: its model continues texts, but was not "
                            "trained on conversations; leave out `chat`")
        tokens = {name: token for name in NAMES if (token := named_token(settings, name))}
        ends = set(tokenizer.ends)
        end_of_turn = tokenizer.encode(named_token(settings, "eot_token") or "").tolist()
        ends |= set(end_of_turn) if len(end_of_turn) == 1 else set()
        return cls(template, tokens, sorted(ends), path)

    def text(self, messages, add_generation_prompt=True):
        """messages: [{"role": "user", "content": "Hello"}, ...] -> text. add_generation_prompt: it
        ends with what begins an answer. Raises UserError if the template refuses them."""
        text = self._run(self._compiled.render, messages=messages, tools=None, documents=None,
                         add_generation_prompt=add_generation_prompt, **self.tokens)
        if not 0 < len(text) <= LARGEST:
            raise UserError(f"{self._path}: the chat template wrote {len(text):,} characters; from "
                            f"1 to {LARGEST:,} are expected")
        return text

    def _run(self, function, *arguments, **options):
        """Call a function of Jinja. Whatever a template raises is a UserError."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self._path}: the chat template failed: {message}") from None


class Conversation:
    """The messages of a user, each with the answer of a model."""

    def __init__(self, tokenizer, chat, system=None):
        """chat: a Chat; system: what the model is told first, None: what the template says."""
        self._tokenizer, self._chat = tokenizer, chat
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self.restart()

    @property
    def ends(self):
        """The ids of the tokens that end an answer."""
        return self._chat.ends

    def restart(self):
        """Forget all messages."""
        self.messages = list(self._start)

    def ask(self, message, room):
        """A message of the user -> token ids (T,), after which the model's answer begins, and the
        number of earlier messages that are forgotten so that there are at most `room` ids. Only a
        message alone may have more. Raises UserError if the template refuses the message, which is
        then forgotten."""
        asked = [*self.messages, {"role": "user", "content": message}]
        first, n = len(self._start), 0
        while True:
            ids = self._tokenizer.encode(self._chat.text(asked), "the message")
            if len(ids) <= room or len(asked) == first + 1:
                break
            del asked[first:first + 2]               # the oldest one and its answer
            n += 2
        self.messages = asked
        return ids, n

    def answered(self, text):
        """What the model has answered."""
        self.messages.append({"role": "assistant", "content": text})


def _environment(path):
    """-> Jinja's environment, as transformers sets it up."""
    try:
        import jinja2
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        version = metadata.version("jinja2")
    except ImportError:                            # PackageNotFoundError is one
        raise UserError(f"the chat template of {path} needs {EXTRA}") from None
    if tuple(int(part) for part in version.split(".")[:3] if part.isdecimal()) < FIRST:
        raise UserError(f"the chat template of {path} needs {EXTRA}; {version} is installed")

    class Generation(Extension):
        """{% generation %} marks what the model wrote; the text is the same."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            next(parser.stream)
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson         # Jinja's own is for HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
