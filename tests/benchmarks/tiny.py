"""A tiny text and a tiny configuration for the benchmarks that run train.py."""

import contextlib
import io

TEXT = "the quick brown fox jumps over the lazy dog; " * 30 + "THE END OF IT, NEVER READ. " * 5
CONFIG = """\
n_layer = 1
n_head = 1
n_embd = 8
block_size = 8
batch_size = 2
max_iters = 4
muon_lr = 0.01
log_interval = 1
"""


def write(folder, name="tiny", **values):
    """-> the path of the tiny configuration, with other values; the text is beside it."""
    (folder / "text.txt").write_text(TEXT)
    kept = [line for line in CONFIG.splitlines() if line.split(" = ")[0] not in values]
    path = folder / f"{name}.toml"
    path.write_text("\n".join([*kept, *(f"{name} = {value}" for name, value in values.items())]))
    return path


def output(main, *arguments):
    """-> the exit status of a main() that gets these arguments, and its output."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(list(map(str, arguments)))
    return status, out.getvalue()
