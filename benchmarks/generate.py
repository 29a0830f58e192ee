"""Generation compared with that of transformers, both with their cache of keys and values and the
same weights, in float32: `python -m benchmarks.generate`.

It compares configurations with random weights: `generate` of both sides, which samples, for one
text and for 16 texts; and the fastest loop around the model of transformers, which is greedy.
`python -m benchmarks.generate laptop baby` compares only these.

`python -m benchmarks.generate MODEL` compares a real model, a GGUF file or a model directory, such
as SmolLM2's: greedy text, one row. The time of a token is measured after a short prompt; a long
prompt is measured on its own.

Every side runs in processes of its own; the sides alternate, and medians are compared. Every token
reads all weights once, so the time of reading as many bytes, in as many threads as there are cores,
is the limit. On a busy machine threads wait for each other: `--busy` measures the CPU time of one
thread.
"""

import argparse
import json
import os
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

import npgpt
from benchmarks.works import Race, machine
from benchmarks.works import timed as timed_by
from npgpt import GPT, GPTConfig
from npgpt.models.generate import KVCache, read

PROMPT = 5              # tokens
TOKENS = 64             # after it
WARM_UP = 5             # of them
LONG_PROMPT = 512       # tokens
LONG_PROMPTS = 3        # of these in a round, after one to warm up
ROUNDS = 3
BATCHES = (1, 16)       # texts
SAMPLED = 48            # tokens after the prompt, within the smallest context
SECONDS = 1             # of these in a round, after the first one
FEWEST = 3              # times in a round, also if that takes longer
TEMPERATURE = 0.8
BARS = {"laptop": 4.0, "baby": 2.5, "124M": 1.4}        # tokens/s divided by those of transformers
CONFIGS = Path(__file__).parents[1] / "configs"
BUSY = "NPGPT_GENERATE_BUSY"                            # in the environment of the sides
ONE_THREAD = {BUSY: "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
              "OPENBLAS_NUM_THREADS": "1"}
timed = partial(timed_by, clock=time.process_time if BUSY in os.environ else time.perf_counter)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", metavar="MODEL", nargs="*", default=list(BARS),
                        help=f"{', '.join(BARS)}, a GGUF file or a model directory [all three]")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each side [3]")
    parser.add_argument("--quick", action="store_true", help="laptop only, one round")
    parser.add_argument("--busy", action="store_true", help="the CPU time of one thread")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=[*WORKS, *map(str, BATCHES)], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return print(json.dumps(SIDES[arguments.side](*arguments.models, arguments.work)))

    os.environ.update(ONE_THREAD if arguments.busy else {})          # of the processes of all sides
    models, rounds = (["laptop"], 1) if arguments.quick else (arguments.models, arguments.rounds)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} before\n")
    compare_configurations([name for name in models if name in BARS], rounds)
    for path in models:
        if path not in BARS:
            compare_model(path, rounds)
    print(f"\nload {os.getloadavg()[0]:.1f} after")
    return 0


def compare_configurations(names, rounds):
    """Print the table of configurations with random weights."""
    if names:
        print("| model | texts | npgpt, tokens/s | transformers | ratio | 95 % interval | bar "
              "| its loop | ratio | a token of each text | limit | share of the limit "
              "| memory, npgpt | transformers |\n|" + " --- |" * 14, flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, "model")
            GPT(configuration(name)).save_pretrained(directory)
            for texts in BATCHES:
                sides = {side: [directory, "--side", side, "--work", texts] for side in SIDES}
                print(_tokens_row(name, texts, Race("generate", sides, rounds)), flush=True)


def configuration(name):
    """The name of a file in configs/, whose text has 65 characters, or 124M -> GPTConfig."""
    if name == "124M":
        return GPTConfig()
    values = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    sizes = ("n_layer", "n_head", "n_embd", "block_size")
    return GPTConfig(vocab_size=65, **{size: values[size] for size in sizes})


def _tokens_row(name, texts, race):
    ratio, low, high = race.ratio("transformers", "npgpt")
    seconds = race.median("npgpt")
    speeds = [f"{texts / race.median(side):,.0f}" for side in ("npgpt", "transformers", "loop")]
    verdict = "" if ratio >= BARS[name] else ", missed"
    return "| " + " | ".join([
        name, str(texts), *speeds[:2], f"**{ratio:.2f}**", f"{low:.2f} to {high:.2f}",
        f"≥ {BARS[name]}{verdict}", speeds[2], f"{race.ratio('loop', 'npgpt')[0]:.2f}",
        _milliseconds(seconds, 2), _milliseconds(race.median("reading"), 2),
        f"{race.median('reading') / seconds:.0%}", *_memory(race)]) + " |"


def compare_model(path, rounds):
    """Print the table of a real model."""
    model = npgpt.from_pretrained(path, attention="plain")
    weights = model.params.flat.nbytes
    print(f"{Path(path).name}: {model.params.flat.size:,} parameters, {weights / 1e6:,.0f} MB\n")
    with tempfile.TemporaryDirectory() as folder:        # both sides read the same float32 weights
        directory = Path(folder, "model")
        model.save_pretrained(directory)
        del model
        print("| work | npgpt | transformers | ratio | 95 % interval | limit | share of the limit "
              "| memory, npgpt | transformers |\n|" + " --- |" * 9)
        for work, title in WORKS.items():
            sides = {side: [directory, "--side", side, "--work", work] for side in SIDES
                     if side != "loop" and (side != "reading" or work == "token")}
            print(_row(title, Race("generate", sides, rounds)), flush=True)


def _row(title, race):
    ratio, low, high = race.ratio("npgpt", "transformers")
    ours, theirs, limit = map(race.median, ("npgpt", "transformers", "reading"))
    share = "—" if limit is None else f"{limit / ours:.0%}"
    return "| " + " | ".join([
        title, *map(_milliseconds, (ours, theirs)), f"**{ratio:.2f}**", f"{low:.2f} to {high:.2f}",
        _milliseconds(limit), share, *_memory(race)]) + " |"


def _memory(race):
    return [f"{race.bytes[side] / 1e6:,.0f} MB" for side in ("npgpt", "transformers")]


def _milliseconds(seconds, digits=1):
    return "—" if seconds is None else f"{1000 * seconds:,.{digits}f} ms"


def _npgpt(path, work):
    """-> seconds of each token after the prompt, or of each long prompt; for a number of texts, of
    a token of each of them."""
    model = npgpt.from_pretrained(path, attention="plain")
    c = model.config
    if work not in WORKS:
        return _sampling(lambda idx: model.generate(idx, SAMPLED, TEMPERATURE, seed=1),
                         c.vocab_size, work)

    def reader():
        kv = KVCache(c.n_layer, c.block_size)
        return lambda idx: read(model, idx, kv).argmax(-1)[:, None]

    return _seconds(reader, c.vocab_size, work)


def _transformers(path, work):
    """The same with transformers: its `generate`, or for a real model a loop around its model."""
    import torch
    import transformers

    if work in WORKS:
        return _loop(path, work)
    model = _transformers_model(path)
    options = transformers.GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=0, max_new_tokens=SAMPLED, eos_token_id=None,
        pad_token_id=0)

    def generate(idx):
        idx = torch.as_tensor(idx)
        return model.generate(idx, options, attention_mask=torch.ones_like(idx))[:, PROMPT:]

    return _sampling(generate, model.config.vocab_size, work)


def _loop(path, work):
    """The same with the model of transformers in a greedy loop."""
    import torch
    import transformers

    model = _transformers_model(path)

    def reader():
        cache = transformers.DynamicCache(config=model.config)

        def next_token(idx):
            with torch.inference_mode():
                found = model(torch.as_tensor(idx), past_key_values=cache, use_cache=True,
                              logits_to_keep=1)
                return found.logits[:, -1].argmax(-1)[:, None].numpy()
        return next_token

    def generate(idx):
        next_token, new = reader(), [idx]
        for _ in range(SAMPLED):
            new.append(next_token(new[-1]))
        return np.concatenate(new[1:], axis=1)

    V = model.config.vocab_size
    return _seconds(reader, V, work) if work in WORKS else _sampling(generate, V, work)


def _transformers_model(path):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _sampling(generate, V, texts):
    """generate(idx (B, PROMPT)) -> (B, SAMPLED). -> seconds of a token of each text."""
    idx = np.random.default_rng(0).integers(V, size=(int(texts), PROMPT))
    assert generate(idx).shape == (int(texts), SAMPLED)
    (once,) = timed(lambda: generate(idx), 1, warm_up=0)
    times = max(FEWEST, int(SECONDS / once))
    return [seconds / SAMPLED for seconds in timed(lambda: generate(idx), times, warm_up=0)]


def _seconds(reader, V, work):
    """reader() -> a function that reads tokens (1, T) after those it has read, and gives the next
    one (1, 1)."""
    rng = np.random.default_rng(0)
    if work == "prompt":
        idx = rng.integers(V, size=(1, LONG_PROMPT))
        return timed(lambda: reader()(idx), LONG_PROMPTS, warm_up=1)
    next_token = reader()
    new = [next_token(rng.integers(V, size=(1, PROMPT)))]
    return timed(lambda: new.append(next_token(new[-1])), TOKENS, WARM_UP)


def _reading(path, work):
    """-> seconds of reading the bytes of all weights, several times."""
    flat = npgpt.from_pretrained(path).params.flat
    cores = 1 if BUSY in os.environ else len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as threads:
        parts = np.array_split(flat, cores)
        return timed(lambda: list(threads.map(np.dot, parts, parts)), 10)


WORKS = {"token": "a token", "prompt": f"a prompt of {LONG_PROMPT} tokens"}
SIDES = {"npgpt": _npgpt, "transformers": _transformers, "loop": _loop, "reading": _reading}


if __name__ == "__main__":
    raise SystemExit(main())
