"""Every command of docs/recipes.md as it is written there, with smaller configurations."""

import re
import shlex

import pytest

import sample as sample_script
import train as train_script
from npgpt import GPT, GPTConfig
from npgpt.__main__ import main as npgpt
from npgpt.durable import SUMS
from npgpt.text.bpe import BPETokenizer
from npgpt.text.token_file import encode_files
from npgpt.training import request
from tests.commands.tiny import ROOT, TEXT, process
from tests.gguf_files import (
    metadata_of,
    random_llama,
    tensors_of,
    tokenizer_metadata,
    write_gguf,
)

DOCUMENT = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", DOCUMENT, re.M | re.S)
CONFIG = """
n_layer = 1
n_head = 2
n_embd = 16
block_size = 32
batch_size = 2
max_iters = 2
eval_iters = 1
optimizer = "adamw"
"""
LLAMA = 'family = "llama"\nn_kv_head = 1\n'
SMALL = ["--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=16", "--batch-size=4",
         "--eval-iters=1", "--max-iters=2"]
SETTINGS = ("batch_size = 2", "max_iters = 2", "eval_iters = 1")


@pytest.fixture
def recipes(home, monkeypatch):
    """A text, a directory of texts, a GPT-2 of random parameters, and tiny configurations."""
    book = "The quick brown fox jumps over the lazy dog. " * 600 + TEXT
    (home / "book.txt").write_text(book)
    for name in ("texts/a.txt", "texts/more/b.md", "texts/c.py", "texts/more/d.py"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"{name}\n{book}")
    tokenizer = BPETokenizer.train([book], 300)
    GPT(GPTConfig(tokenizer.vocab_size, block_size=512, n_layer=1, n_head=2, n_embd=16)
        ).save_pretrained("gpt2")
    (home / "gpt2" / SUMS).unlink()
    tokenizer.save(home / "gpt2")
    words = tokenizer_metadata() | {"tokenizer.chat_template": "{{ messages[0].content }}"}
    llama = random_llama(vocab_size=len(words["tokenizer.ggml.tokens"]))
    write_gguf(home / "smollm2.gguf", metadata_of(llama.config) | words, tensors_of(llama))
    (home / "configs").mkdir()
    (home / "configs/laptop.toml").write_text(CONFIG)
    (home / "configs/modern.toml").write_text(CONFIG + LLAMA)
    for name in ("finetune", "lora"):
        (home / f"configs/{name}.toml").write_text("\n".join(SETTINGS))
    monkeypatch.setattr(request, "bundled", lambda name: home / name)


def test_every_command_does_what_it_says(recipes, run, home, capsys):
    assert len(BLOCKS) >= 9
    scripts = {"train.py": train_script.main, "sample.py": sample_script.main}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "recipes.md", "exec"), {})
            assert capsys.readouterr().out
            continue
        for line in block.splitlines():
            program, first, *rest = shlex.split(line)
            if program == "mpiexec":
                continue
            if program == "python" and "out/hosts" in rest:
                continue
            if program == "python":
                main = scripts[first]
            else:
                main, rest = npgpt, [first, *rest]
                assert program == "npgpt"
            if "--max-iters" in rest:                  # of a run of two steps
                rest[rest.index("--max-iters") + 1] = "3"
            result = run(main, *rest)
            assert result.status == 0, (line, result.err)
            for name in re.findall(r"--out-dir (\S+)", line):
                assert (home / name).is_dir()


def test_every_command_of_mpiexec_does_what_it_says(recipes, mpiexec, home):
    """The hosts of the file are this machine twice."""
    tokenizer = BPETokenizer.train([TEXT], 260)
    encode_files([home / "book.txt"], tokenizer, home / "tokens")
    (home / "hosts").write_text("localhost\n127.0.0.1\n")
    lines = [shlex.split(line) for language, block in BLOCKS if language == "sh"
             for line in block.splitlines() if "mpiexec" in line or "out/hosts" in line]
    assert len(lines) == 6
    for number, (program, *words) in enumerate(lines, 3):
        if "--max-iters" in words:
            words[words.index("--max-iters") + 1] = str(number)
        elif "train.py" in words:
            words += SMALL
        if program == "python":
            assert process(*words[1:]).returncode == 0
            continue
        result = mpiexec("-launcher", "fork", *words)
        assert (result.returncode, result.stderr) == (0, ""), words
        ranks = 2 if "-f" in words else int(words[words.index("-n") + 1])
        assert f", {ranks} MPI ranks" in result.stdout
    assert (home / f"out/hosts/checkpoint-{number}").is_dir()
