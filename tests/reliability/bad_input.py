"""Bad input to every command, each as a process of its own: one line on stderr, exit status 2, and
nothing written or changed.

`prepare` makes a directory with what is wrong, and bad_input.txt says what is called there and how
the line begins. A new command or format joins by lines in both.
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import stat
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import train as train_script
from npgpt import Llama, LlamaConfig
from npgpt.durable import SUMS
from npgpt.text.bpe import BPETokenizer
from npgpt.text.token_file import encode_files
from tests.commands.tiny import ENVIRONMENT, ROOT, SIZES, TEXT

TABLE = Path(__file__).with_suffix(".txt")
SHORT = [*SIZES, "--max-iters=2", "--eval-interval=2", "--log-interval=1", "--workers=1"]
SCRIPTS = {"train": "train.py", "sample": "sample.py"}


def cases():
    """-> (the words of a command, how the line begins), a list."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines()
             if line and not line.startswith("#")]
    return [(command, begins) for command, _, begins in (line.partition(" | ") for line in lines)]


def prepare():
    """Make texts, configurations, runs and models in the working directory, and damage some."""
    texts()
    configurations()
    models()
    damaged_runs()
    damaged_models()


def texts():
    Path("fox.txt").write_text(TEXT)
    Path("more.txt").write_text(TEXT + "more\n")
    Path("empty.txt").touch()
    Path("latin1.txt").write_bytes((TEXT + "café").encode("latin-1"))
    Path("utf16.txt").write_bytes(TEXT.encode("utf-16"))
    Path("one.txt").write_text("a" * 5000)
    Path("short.txt").write_text("abcdefgh")
    Path("split.txt").write_text(TEXT[:100])              # 10 characters to validate on
    Path("newline.txt").write_text("\n")
    Path("texts").mkdir()
    Path("texts/data.bin").write_bytes(b"\0")
    os.mkfifo("fifo")
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")


def configurations():
    for name, content in {
        "broken": "n_layer =", "zero": "n_layer = 0", "unknown": "n_layers = 3",
        "type": "n_layer = 'x'", "float": "n_layer = 1.5", "nested": "[model]\nn_layer = 1",
        "twice": "seed = 1\nseed = 2",
        "muon": 'optimizer = "adamw"\nmuon_lr = 1.0', "workers": "workers = 13\nbatch_size = 12",
        "llama": 'family = "gpt"\nn_kv_head = 1',
    }.items():
        Path(f"{name}.toml").write_text(content)
    Path("latin1.toml").write_bytes(b"# caf\xe9")


def models():
    train("--out-dir=run")
    train("--out-dir=llama", "--family=llama", "--n-kv-head=1")
    train("--out-dir=adapter", "--init-from=llama", "--lora-rank=2", sizes=False)
    tokenizer = BPETokenizer.train([TEXT], 260)
    Path("bpe").mkdir()
    tokenizer.save("bpe")
    encode_files([Path("fox.txt")], tokenizer, Path("tokens"))
    Llama(LlamaConfig(300, 16, n_layer=1, n_head=2, n_embd=8)).save_pretrained("mute")
    Path("nothing").mkdir()
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("not npgpt's")


def train(*words, sizes=True):
    given = SHORT if sizes else ["--data=fox.txt", "--max-iters=2", "--eval-iters=1", "--workers=1"]
    assert train_script.main([*given, *words]) == 0


def damaged_runs():
    for name, damage in {
        "truncated": lambda c: cut(c / "model.safetensors"),
        "flipped": lambda c: flip(c / "model.safetensors"),
        "missing": lambda c: (c / "training.json").unlink(),
        "newer": lambda c: change(c / "training.json", format=99),
        "no-values": lambda c: change(c / "training.json", values={}),
        "not-json": lambda c: (c / "training.json").write_text("{"),
        "shapes": lambda c: change(c / "config.json", n_embd=32),
        "heads": lambda c: change(c / "config.json", n_head=3),
        "kind": lambda c: change(c / "config.json", model_type="bert"),
        "header": lambda c: giant_header(c / "model.safetensors"),
        "names": lambda c: (c / SUMS).write_text(
            (c / SUMS).read_text() + f"{'0' * 64}  ../../fox.txt\n"),
        "vocabulary": lambda c: change(c / "tokenizer.json", text="{}"),
        "linked": lambda c: relink(c / "model.safetensors"),
    }.items():
        copy = Path(f"run-{name}")
        shutil.copytree("run", copy)
        damage(copy / (copy / "latest").read_text().strip())
    for name, text in {"latest": "checkpoint-9\n", "outside": "../run/checkpoint-2\n",
                       "blank": ""}.items():
        shutil.copytree("run", f"run-{name}")
        Path(f"run-{name}/latest").write_text(text)


def damaged_models():
    shutil.copytree("tokens", "tokens-cut")
    cut(next(Path("tokens-cut").glob("*.npy")))
    Path("notes.gguf").write_text("not a model")
    Path("cut.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 10**6, 10**6))
    shutil.copytree("adapter", "orphan")
    for path in Path("orphan").glob("checkpoint-*/adapter_config.json"):
        change(path, base_model_name_or_path="gone")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change(path, text=None, **values):
    """Another text, or other values in a JSON file, so that the hashes are not what is wrong."""
    path.write_text(text if text is not None else
                    json.dumps(json.loads(path.read_text()) | values))
    if path.name != SUMS:
        path.with_name(SUMS).unlink(missing_ok=True)


def giant_header(path):
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])
    path.with_name(SUMS).unlink()


def relink(path):
    path.unlink()
    path.symlink_to("/dev/zero")
    path.with_name(SUMS).unlink()


def problems(command, begins):
    """Run a command as a process -> what is wrong with how it ends, a list of texts."""
    name, *words = shlex.split(command)
    start = [str(ROOT / SCRIPTS[name])] if name in SCRIPTS else ["-m", "npgpt", name]
    called, begins = SCRIPTS.get(name, f"npgpt {name}"), begins.replace("{here}", os.getcwd())
    try:
        done = subprocess.run([sys.executable, *start, *words], env=ENVIRONMENT, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    except subprocess.TimeoutExpired:
        return ["it takes more than a minute"]
    found = [f"status {done.returncode}"] if done.returncode != 2 else []
    found += [f"on stdout: {done.stdout}"] if done.stdout else []
    if not done.stderr.endswith("\n") or done.stderr.count("\n") != 1:
        found.append(f"not one line: {done.stderr}")
    elif not done.stderr.startswith((f"{called}: {begins}", f"npgpt: {begins}")):
        found.append(f"it says: {done.stderr.rstrip()}")
    return found


def try_bad_input(table, workers=2):
    """Call each case in a directory that none of them may change."""
    with contextlib.redirect_stdout(io.StringIO()):
        prepare()
    before, every = contents(), cases()
    with ThreadPoolExecutor(workers) as pool:
        for (command, _), found in zip(every, pool.map(lambda case: problems(*case), every)):
            table.record(f"bad input to {command.split()[0]}", found, command)
    after = contents()
    changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    table.record("the directory of all these cases", [f"{path} has changed" for path in changed],
                 "at the end")


def contents(folder="."):
    """Every path below a directory -> its bytes, or what kind of path it is."""
    return {str(path): path.readlink() if path.is_symlink() else
            path.read_bytes() if path.is_file() else stat.S_IFMT(path.stat().st_mode)
            for path in Path(folder).rglob("*")}
