"""sample.py --chat: a conversation, line by line."""

import io
import json
import sys

import numpy as np
import pytest

import sample as sample_script
from npgpt import Llama, LlamaConfig
from npgpt.models import generate
from npgpt.text.bpe import END, BPETokenizer
from npgpt.text.chat import Chat, Conversation
from npgpt.text.tokenizer import load_tokenizer
from tests.gguf_files import metadata_of, tensors_of, tokenizer_metadata, write_gguf

TEMPLATE = ("{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('not bad') }}"
            "{% endif %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}")


def model_for(tokenizer):
    return Llama(LlamaConfig(tokenizer.vocab_size, block_size=200, n_layer=1, n_head=2, n_kv_head=1,
                             n_embd=16), seed=3)


@pytest.fixture
def tokenizer(home):
    """The model's, in a directory with the model and a chat template."""
    tokenizer = BPETokenizer.train(["[user][assistant][system] the quick brown fox " * 9], 270)
    model_for(tokenizer).save_pretrained("m")
    (home / "m/SHA256SUMS").unlink()
    tokenizer.save(home / "m")
    (home / "m/tokenizer_config.json").write_text(json.dumps(
        {"eos_token": END, "chat_template": TEMPLATE}))
    return tokenizer


@pytest.fixture
def chat(run, tokenizer, monkeypatch):
    """-> function: lines of standard input, words -> exit status, stdout, stderr, and the text that
    each answer follows."""
    def call(lines, *words, model="m"):
        prompts = []

        def watched(model, idx, sampling, **options):
            prompts.append(tokenizer.decode(idx[0]))
            yield from generate.steps(model, idx, sampling, **options)

        with monkeypatch.context() as patch:
            patch.setattr(sample_script, "steps", watched)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
            result = run(sample_script.main, f"--model={model}", "--chat", "--temperature=0",
                         "--max-new-tokens=5", *words)
        return *result, prompts
    return call


def turn(message, answer=None):
    said = f"[user]{message}{END}[assistant]"
    return said if answer is None else f"{said}{answer}{END}"


def test_every_line_is_a_message_and_the_model_knows_what_was_said(chat):
    status, out, err, prompts = chat("the fox\nquick\nbrown\n")
    answers = out.removesuffix("\n").split("\n")
    assert status == 0 and len(answers) == 3 and all(answers)
    assert prompts == [turn("the fox"), turn("the fox", answers[0]) + turn("quick"),
                       turn("the fox", answers[0]) + turn("quick", answers[1]) + turn("brown")]
    assert err.count("tokens/s") == 3


def test_empty_line_starts_a_new_conversation(chat):
    _, _, err, prompts = chat("the fox\n\nquick\n", "--system=be brown")
    told = f"[system]be brown{END}"
    assert prompts == [told + turn("the fox"), told + turn("quick")]
    assert "note: a new conversation" in err


def test_prompt_is_one_message(chat):
    status, out, _, prompts = chat("not read\n", "--prompt=the fox")
    assert status == 0 and prompts == [turn("the fox")] and out.count("\n") == 1


def test_answer_is_that_of_the_whole_conversation_read_anew(chat, tokenizer):
    """The cache of what was said before changes nothing."""
    _, out, _, prompts = chat("the fox\nquick\n")
    found = model_for(tokenizer).generate([tokenizer.encode(prompts[1])], 5, temperature=0)[0]
    assert out.split("\n")[1] == tokenizer.decode(found[:list(found).index(tokenizer.end)]
                                                  if tokenizer.end in found else found)


def test_what_was_said_is_not_read_again(chat, monkeypatch):
    read, lengths = generate.read, []
    monkeypatch.setattr(generate, "read", lambda model, idx, kv: lengths.append(idx.shape[1])
                        or read(model, idx, kv))
    _, _, _, prompts = chat("the fox\nquick\n")
    first, second = (n for n in lengths if n > 1)
    assert second < 5 + first <= len(prompts[1])


def test_oldest_messages_are_forgotten_if_the_context_is_full(chat):
    """200 tokens, of which an answer may take 5. What the model is told first stays."""
    lines = [f"the {'fox ' * 18}{n}" for n in "abcd"]
    status, out, err, prompts = chat("\n".join(lines) + "\n", "--system=be brown")
    told, answers = f"[system]be brown{END}", out.split("\n")
    assert status == 0 and prompts[1] == told + turn(lines[0], answers[0]) + turn(lines[1])
    assert prompts[3] == told + turn(lines[2], answers[2]) + turn(lines[3])
    assert "note: the context has 200 tokens; the 2 oldest messages are forgotten\n" in err


@pytest.mark.parametrize(("n", "room"), [(5, 195), (99, 101), (100, 100), (150, 100), (500, 100)])
def test_answer_has_room_in_the_context(n, room, chat, monkeypatch):
    asked, ask = [], Conversation.ask
    monkeypatch.setattr(Conversation, "ask", lambda self, message, room: asked.append(room) or ask(
        self, message, room))
    chat("the fox\n", f"--max-new-tokens={n}")
    assert asked == [room]


def test_prompt_that_the_template_refuses_is_refused_before_the_model_is_read(chat):
    status, out, err, prompts = chat("", "--prompt=bad")
    assert (status, out, prompts) == (2, "", [])
    assert err == "sample.py: m: the chat template failed: not bad\n"


def test_message_that_is_longer_than_the_context_is_cut_with_a_note(chat):
    status, _, err, prompts = chat(f"the fox\n{'fox ' * 300}\n")
    assert status == 0 and "the 2 oldest messages are forgotten" in err
    assert "note: the prompt has" in err and "the model reads the last 200 of them" in err
    assert prompts[1] == turn("fox " * 300)


def test_message_that_the_template_refuses_is_forgotten(chat):
    status, out, err, prompts = chat("the fox\nbad\nquick\n")
    assert status == 0 and "m: the chat template failed: not bad\n" in err
    assert prompts[1] == turn("the fox", out.split("\n")[0]) + turn("quick")


def test_interrupted_answer_counts_as_far_as_it_is_shown(run, tokenizer, monkeypatch):
    """In a terminal Ctrl-C ends an answer; here the next message is asked directly."""
    monkeypatch.setattr(sample_script, "steps", interrupted)
    config = sample_script.SampleConfig(temperature=0, max_new_tokens=9)
    writer = sample_script.Writer(model_for(tokenizer), tokenizer, config, [], None)
    tokenizer = load_tokenizer("m")
    conversation = Conversation(tokenizer, Chat.of(tokenizer, "m"))
    with pytest.raises(KeyboardInterrupt):
        sample_script.Answerer(writer, conversation).answer("the fox")
    assert [m["role"] for m in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[1]["content"]


def interrupted(*arguments, **options):
    for number, step in enumerate(generate.steps(*arguments, **options)):
        if number == 3:
            raise KeyboardInterrupt
        yield step


@pytest.mark.parametrize(("words", "message"), [
    (["--interactive"], "--chat is a conversation; leave out --interactive"),
    (["--num-samples=2"], "--chat is a conversation; leave out --num-samples"),
])
def test_options_that_contradict_each_other_are_refused(words, message, chat):
    status, out, err, prompts = chat("the fox\n", *words)
    assert (status, out, err, prompts) == (2, "", f"sample.py: {message}\n", [])


def test_system_without_a_conversation_is_refused(run, tokenizer):
    result = run(sample_script.main, "--model=m", "--system=x")
    assert (result.status, result.out) == (2, "")
    assert result.err == ("sample.py: --system is for a conversation; add --chat, or leave it "
                          "out\n")


def test_model_without_a_template_is_refused(chat, home):
    (home / "m/tokenizer_config.json").write_text("{}")
    status, out, err, _ = chat("the fox\n")
    assert (status, out) == (2, "")
    assert "m has no chat template: its model continues texts" in err and "--chat" in err


def test_every_token_that_ends_a_turn_ends_an_answer(chat, home, tokenizer, monkeypatch):
    (home / "m/tokenizer_config.json").write_text(json.dumps(
        {"eos_token": END, "eot_token": "q", "chat_template": TEMPLATE}))
    tokens = [tokenizer.encode(text)[0] for text in ("f", "q", "x")]
    monkeypatch.setattr(generate, "steps", lambda *given, **options: (
        generate.Step(np.array([token]), np.zeros((1, tokenizer.vocab_size))) for token in tokens))
    _, out, _, _ = chat("the fox\n")
    assert out == "f\n"


def test_gguf_file_has_all_that_a_conversation_needs(run, home):
    words = tokenizer_metadata() | {"tokenizer.chat_template": TEMPLATE}
    model = Llama(LlamaConfig(len(words["tokenizer.ggml.tokens"]), 64, 1, 2, 1, 16), seed=1)
    write_gguf(home / "m.gguf", metadata_of(model.config) | words, tensors_of(model))
    result = run(sample_script.main, "--model=m.gguf", "--chat", "--prompt=the fox",
                 "--max-new-tokens=4", "--seed=1")
    assert result.status == 0 and result.err.startswith("m.gguf, ")
    assert result.out.endswith("\n") and "tokens/s" in result.err
