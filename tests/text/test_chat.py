"""Chat templates. tests/yardsticks compares them with transformers."""

import json
import sys
from datetime import datetime
from importlib import metadata

import pytest

from npgpt import UserError
from npgpt.text.bpe import BPETokenizer
from npgpt.text.characters import CharTokenizer
from npgpt.text.chat import Chat, Conversation
from npgpt.text.tokenizer import load_tokenizer

CHATML = ("{% for message in messages %}\n"
          "    {% if loop.first and message.role != 'system' %}\n"
          "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}\n"
          "    {%- endif %}\n"
          "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\n"
          "{%- endfor %}\n"
          "{% if add_generation_prompt %}\n"
          "{{ '<|im_start|>assistant\n' }}\n"
          "{%- endif %}")
HELLO = [{"role": "user", "content": "Hello"}]
ANSWERED = [*HELLO, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "<b>?"}]


def test_conversation_becomes_text():
    chat = Chat(CHATML)
    assert chat.text(HELLO) == ("<|im_start|>system\nBe kind.<|im_end|>\n"
                                "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert chat.text(ANSWERED, add_generation_prompt=False).endswith(
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\n<b>?<|im_end|>\n")
    told = [{"role": "system", "content": "Be short."}, *HELLO]
    assert chat.text(told).startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize(("template", "expected"), [
    ("{{ bos_token }}|{{ eos_token }}|{{ unk_token }}", "<s>|</s>|"),
    ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "Hello"),
    ("{{ messages | tojson }}", json.dumps(ANSWERED)),
    ("{{ 'é<' | tojson(indent=2) }}", '"é<"'),
    ("{{ strftime_now('%Y') }}", f"{datetime.now():%Y}"),
    ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
     "{{ ns.n }}", "3"),
    ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
    ("{{ tools is none and documents is none }}", "True"),
    ("{{ {'b': 'é', 'a': [1]} | tojson(true, 1, (',', ';'), true) }}",
     '{\n "a";[\n  1\n ],\n "b";"\\u00e9"\n}'),
    ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
])
def test_template_has_what_transformers_gives_it(template, expected):
    chat = Chat(template, {"bos_token": "<s>", "eos_token": "</s>"})
    assert chat.text(ANSWERED) == expected


@pytest.mark.parametrize(("template", "message"), [
    ("{{ raise_exception('Roles must\n alternate') }}", "Roles must alternate"),
    ("{{ messages[0]['content'] + 1 }}", "can only concatenate str (not \"int\") to str"),
    ("{{ nothing.at.all }}", "'nothing' is undefined"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
    ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
    ("{{ raise_exception('') }}", "TemplateError"),
])
def test_error_of_a_template_is_one_line(template, message):
    with pytest.raises(UserError) as error:
        Chat(template, path="m.gguf").text(HELLO)
    assert str(error.value).startswith("m.gguf: the chat template failed: ")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages", "{% include 'x' %}{% nonsense %}"])
def test_invalid_template_is_refused_at_once(template):
    with pytest.raises(UserError, match=r"^m: the chat template failed: "):
        Chat(template, path="m")


@pytest.fixture
def folder(tmp_path):
    """-> function: keys of tokenizer_config.json -> a directory with a tokenizer and these."""
    def make(**settings):
        BPETokenizer.train(["a b"], 300).save(tmp_path)
        path = tmp_path / "tokenizer.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        for i, token in enumerate(("<|im_start|>", "<|im_end|>", "<|eot|>"), 500):
            found["added_tokens"].append({**found["added_tokens"][0], "id": i, "content": token})
        path.write_text(json.dumps(found), encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return tmp_path
    return make


def test_chat_of_a_directory(folder):
    path = folder(chat_template="{{ bos_token }}{{ eos_token }}{{ messages[0].content }}",
                  bos_token={"content": "<|im_start|>", "special": True}, eos_token="<|im_end|>")
    tokenizer = load_tokenizer(path)
    chat = Chat.of(tokenizer, path)
    assert chat.text(HELLO) == "<|im_start|><|im_end|>Hello"
    assert chat.ends == (tokenizer.end,) and tokenizer.token_bytes(tokenizer.end) == b"<|im_end|>"


def test_end_of_a_turn_ends_an_answer_too(folder):
    path = folder(chat_template=CHATML, eos_token="<|im_end|>", eot_token="<|eot|>")
    tokenizer = load_tokenizer(path)
    assert [tokenizer.token_bytes(i) for i in Chat.of(tokenizer, path).ends] == [
        b"<|im_end|>", b"<|eot|>"]
    path = folder(chat_template=CHATML, eos_token="<|im_end|>", eot_token="no token")
    assert len(Chat.of(load_tokenizer(path), path).ends) == 1


def test_template_beside_the_tokenizer_has_precedence_and_is_saved(folder, tmp_path):
    path = folder(chat_template="old", eos_token="<|im_end|>")
    (path / "chat_template.jinja").write_text("né{{ eos_token }}\n", encoding="utf-8")
    tokenizer = load_tokenizer(path)
    assert Chat.of(tokenizer, path).text([]) == "né<|im_end|>"
    (tmp_path / "again").mkdir()
    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.settings == tokenizer.settings and again.end == tokenizer.end
    (path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8"):
        load_tokenizer(path)


def test_of_several_templates_the_default_is_taken(folder):
    path = folder(chat_template=[{"name": "tool_use", "template": "a"},
                                 {"name": "default", "template": "b"}])
    assert Chat.of(load_tokenizer(path), path).text(HELLO) == "b"


@pytest.mark.parametrize("settings", [{}, {"chat_template": 3}, {"chat_template": [1, {}]}])
def test_tokenizer_without_a_template_is_refused(settings, folder):
    for tokenizer in (load_tokenizer(folder(**settings)), CharTokenizer("ab")):
        with pytest.raises(UserError, match=r"^out has no chat template: "):
            Chat.of(tokenizer, "out")


def test_missing_and_old_jinja_are_named(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", lambda name: "3.1.5")
        with pytest.raises(UserError, match=r"3\.1\.6 or later; install it with: pip install "
                                            r"'npgpt\[chat\]'; 3\.1\.5 is installed"):
            Chat("", path="m.gguf")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"the chat template of m\.gguf needs the package jinja2 "
                                        r"3\.1\.6 or later; install it with: pip install"):
        Chat("", path="m.gguf")


@pytest.mark.parametrize(("template", "n"), [("", 0), ("{{ 'a' * 9 }}", 9)])
def test_template_that_writes_nothing_or_too_much_is_refused(template, n, monkeypatch):
    monkeypatch.setattr("npgpt.text.chat.LARGEST", 8)
    with pytest.raises(UserError) as error:
        Chat(template, path="m.gguf").text(HELLO)
    assert error.value.message == (f"m.gguf: the chat template wrote {n} characters; from 1 to 8 "
                                   "are expected")
    assert Chat("{{ 'a' * 8 }}").text(HELLO) == "a" * 8


@pytest.mark.parametrize("templates", [[{"name": [], "template": "a"}], [1], [{}], [{"name": "x"}]])
def test_templates_without_a_default_are_none(templates, tmp_path):
    tokenizer = BPETokenizer.train(["a"], 257)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    with pytest.raises(UserError, match="m has no chat template"):
        Chat.of(load_tokenizer(tmp_path), "m")


@pytest.fixture
def ended(tmp_path):
    """-> function: settings of a tokenizer of bytes -> its Chat."""
    def make(**settings):
        tokenizer = BPETokenizer.train(["a"], 257)
        tokenizer.save(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(
            {"chat_template": "{{ messages[0].content + '|' + (bos_token or '') }}"} | settings))
        return load_tokenizer(tmp_path), Chat.of(load_tokenizer(tmp_path), "m")
    return make


@pytest.mark.parametrize(("settings", "ends"), [
    ({}, ""), ({"eot_token": "x"}, "x"), ({"eot_token": {"content": "x"}}, "x"),
    ({"eot_token": "xy"}, ""), ({"eot_token": {}}, ""), ({"eot_token": {"special": 1}}, ""),
    ({"eot_token": "x", "eos_token": "y"}, "xy"),
])
def test_end_of_a_turn_ends_an_answer_if_it_is_a_token(settings, ends, ended):
    tokenizer, chat = ended(**settings)
    expected = {tokenizer.encode(end)[0] for end in ends} | {tokenizer.end}
    assert chat.ends == tuple(sorted(expected))


def test_failure_is_named_by_the_place_of_the_template(ended):
    _, chat = ended(bos_token={"content": "<s>"})
    assert chat.text(HELLO) == "Hello|<s>"
    with pytest.raises(UserError, match=r"^m: the chat template failed: "):
        chat.text([])
    for bos in ({}, {"special": True}):
        assert ended(bos_token=bos)[1].text(HELLO) == "Hello|"


def test_version_of_jinja_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "3.rc1")
    with pytest.raises(UserError, match=r"needs the package jinja2 .*; 3\.rc1 is installed"):
        Chat("")


class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, text, name):
        assert name == "the message"
        return list(text)


INITIALS = Chat("{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}"
                "{% endif %}{{ m.role[0] + m.content }}{% endfor %}", ends=(7,))


def test_conversation_knows_what_was_said():
    talk = Conversation(Letters(), INITIALS)
    assert talk.ends == (7,) and talk.messages == []
    assert talk.ask("hi", 99) == (list("uhi"), 0)
    talk.answered("yes")
    assert talk.messages == [{"role": "user", "content": "hi"},
                             {"role": "assistant", "content": "yes"}]
    assert talk.ask("so", 99) == (list("uhiayesuso"), 0)
    talk.restart()
    assert talk.messages == [] and talk.ask("hi", 99) == (list("uhi"), 0)


def test_what_it_is_told_first_is_never_forgotten():
    talk = Conversation(Letters(), INITIALS, "S")
    assert talk.messages == [{"role": "system", "content": "S"}]
    assert talk.ask("a", 4) == (list("sSua"), 0)
    talk.answered("b")
    talk.restart()
    assert talk.messages == [{"role": "system", "content": "S"}]


@pytest.mark.parametrize(("room", "text", "n"), [
    (99, "sSu1a1u2a2u3", 0), (12, "sSu1a1u2a2u3", 0), (11, "sSu2a2u3", 2), (8, "sSu2a2u3", 2),
    (7, "sSu3", 4), (4, "sSu3", 4), (3, "sSu3", 4), (0, "sSu3", 4),
])
def test_oldest_questions_and_answers_are_forgotten_first(room, text, n):
    talk = Conversation(Letters(), INITIALS, "S")
    for number in "12":
        talk.ask(number, 99)
        talk.answered(number)
    assert talk.ask("3", room) == (list(text), n)
    assert len(talk.messages) == len(text) / 2


def test_message_that_is_refused_is_forgotten():
    talk = Conversation(Letters(), INITIALS)
    talk.ask("a", 99)
    talk.answered("b")
    with pytest.raises(UserError, match="failed: no"):
        talk.ask("bad", 99)
    assert talk.ask("c", 99) == (list("uaabuc"), 0)
