"""Generation with a real model compared with that of transformers, both with their cache of keys
and values, in float32: `python -m benchmarks.generate MODEL`.

MODEL is a GGUF file or a model directory, such as SmolLM2's. Greedy text, one row, in a process for
each side; the sides alternate, and medians are compared. Every token reads all weights once, so the
time of reading as many bytes, in as many threads as there are cores, is the limit. The time of a
token is measured after a short prompt; a long prompt is measured on its own.
"""

import argparse
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import npgpt
from benchmarks.works import Race, machine, timed
from npgpt.models.generate import KVCache, read

PROMPT = 5              # tokens
TOKENS = 64             # after it
WARM_UP = 5             # of them
LONG_PROMPT = 512       # tokens
LONG_PROMPTS = 3        # of these in a round, after one to warm up
ROUNDS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", metavar="MODEL", help="a GGUF file or a model directory")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each side [3]")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return print(json.dumps(SIDES[arguments.side](arguments.model, arguments.work)))

    print(machine() + "\n")
    model = npgpt.from_pretrained(arguments.model)
    weights = model.params.flat.nbytes
    print(f"{Path(arguments.model).name}: {model.params.flat.size:,} parameters, "
          f"{weights / 1e6:,.0f} MB\n")
    with tempfile.TemporaryDirectory() as folder:        # both sides read the same float32 weights
        directory = Path(folder, "model")
        model.save_pretrained(directory)
        del model
        print("| work | npgpt | transformers | ratio | 95 % interval | limit | share of the limit "
              "| memory, npgpt | transformers |\n|" + " --- |" * 9)
        for work, title in WORKS.items():
            sides = {side: [directory, "--side", side, "--work", work] for side in SIDES
                     if side != "reading" or work == "token"}
            print(_row(title, Race("generate", sides, arguments.rounds)), flush=True)
    return 0


def _row(title, race):
    ratio, low, high = race.ratio("npgpt", "transformers")
    ours, theirs, limit = map(race.median, SIDES)
    share = "—" if limit is None else f"{limit / ours:.0%}"
    return "| " + " | ".join([
        title, *map(_milliseconds, (ours, theirs)), f"**{ratio:.2f}**", f"{low:.2f} to {high:.2f}",
        _milliseconds(limit), share,
        *(f"{race.bytes[side] / 1e6:,.0f} MB" for side in ("npgpt", "transformers"))]) + " |"


def _milliseconds(seconds):
    return "—" if seconds is None else f"{1000 * seconds:,.1f} ms"


def _npgpt(path, work):
    """-> seconds of each token after the prompt, or of each long prompt."""
    model = npgpt.from_pretrained(path)
    c = model.config

    def reader():
        kv = KVCache(c.n_layer, c.block_size)
        return lambda idx: read(model, idx, kv).argmax(-1)[:, None]

    return _seconds(reader, c.vocab_size, work)


def _transformers(path, work):
    """The same with transformers, in a loop around its model."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def reader():
        cache = transformers.DynamicCache(config=model.config)

        def next_token(idx):
            with torch.inference_mode():
                found = model(torch.as_tensor(idx), past_key_values=cache, use_cache=True,
                              logits_to_keep=1)
                return found.logits[:, -1].argmax(-1)[:, None].numpy()
        return next_token

    return _seconds(reader, model.config.vocab_size, work)


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
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as threads:
        parts = np.array_split(flat, cores)
        return timed(lambda: list(threads.map(np.dot, parts, parts)), 10)


WORKS = {"token": "a token", "prompt": f"a prompt of {LONG_PROMPT} tokens"}
SIDES = {"npgpt": _npgpt, "transformers": _transformers, "reading": _reading}


if __name__ == "__main__":
    raise SystemExit(main())
