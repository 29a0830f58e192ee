"""Time and memory of training on a large text: `python -m benchmarks.large_text`.

Writes a text of --gigabytes (Tiny Shakespeare again and again), encodes it as `--data` does, and
trains some steps on both, with the same configuration. Memory is that which grows with the data:
anonymous and shared, the sum over all processes, without the clean pages of mapped files; its peak
is sampled every 20 ms. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from npgpt.text.load import load_text
from npgpt.text.token_file import encode_files

ROOT = Path(__file__).parents[1]
WORDS = ["--config=laptop", "--max-iters=40", "--eval-interval=20"]
INTERVAL = 0.02         # seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    gigabytes = parser.parse_args().gigabytes
    content = load_text("shakespeare").text.encode()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        small, large = Path(folder, "small.txt"), Path(folder, "large.txt")
        small.write_bytes(content)
        with large.open("wb") as file:
            while file.tell() < gigabytes * 1e9:
                file.write(content)
        began = time.perf_counter()
        tokens = encode_files([large], None, Path(folder, "tokens"))
        seconds = time.perf_counter() - began
        size = tokens.facts["bytes"]
        print(f"| encoding {size / 1e9:.2f} GB, characters | {seconds:.1f} s, "
              f"{size / 1e6 / seconds:.0f} MB/s |", flush=True)
        cache = f"--data-cache={folder}/cache"
        _, base = trained(small, folder, "small", cache)
        print(f"| memory of training, small text | {base / 1e6:.0f} MB |", flush=True)
        for number in ("first", "second"):
            start, peak = trained(large, folder, number, cache)
            print(f"| {number} run on the large text: start, memory more than with the small text "
                  f"| {start:.1f} s, {(peak - base) / 1e6:+.0f} MB |", flush=True)


def trained(data, folder, name, cache):
    """-> seconds until the first line of train.py, peak memory in bytes."""
    command = [sys.executable, str(ROOT / "train.py"), f"--data={data}", cache,
               f"--out-dir={folder}/{name}", *WORDS]
    began, peak = time.perf_counter(), [0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        def sample():
            while running.poll() is None:
                peak[0] = max(peak[0], memory(running.pid))
                time.sleep(INTERVAL)

        sampler = threading.Thread(target=sample)
        sampler.start()
        running.stdout.readline()
        start = time.perf_counter() - began
        running.stdout.read()
        sampler.join()
    if running.returncode:
        raise SystemExit(f"train.py ended with status {running.returncode}")
    return start, peak[0]


def memory(pid):
    """-> bytes of a process and its children; shared memory counts once."""
    total = 0
    for number, process in enumerate(processes(pid)):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:                              # it has ended
            continue
        fields = dict(line.split(":", 1) for line in lines)
        for name in ("RssAnon", *(["RssShmem"] if number == 0 else [])):
            total += 1024 * int(fields.get(name, "0 kB").split()[0])
    return total


def processes(pid):
    """Yield a process and all below it."""
    yield pid
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                yield from processes(int(child))
    except OSError:
        return


if __name__ == "__main__":
    main()
