"""docs/lecture.ipynb, executed from a clean kernel: `python -m tests.notebook`.

An error in a cell is an error here, and so is a cell that prints other text than the notebook as it
is committed: it must not go stale. Pictures are not compared, nor cells tagged "varies", whose last
digits depend on how a processor rounds.
"""

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs/lecture.ipynb"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="store what comes out")
    write = parser.parse_args().write
    committed = nbformat.read(PATH, as_version=4)
    began = time.perf_counter()
    fresh = executed(committed)
    print(f"{PATH.relative_to(ROOT)}: executed in {time.perf_counter() - began:.0f} s")
    if write:
        nbformat.write(fresh, PATH)
        return 0
    stale = [old.id for old, new in zip(committed.cells, fresh.cells) if text(old) != text(new)]
    for cell in stale:
        print(f"cell {cell} prints other text than the committed notebook shows")
    return 1 if stale else 0


def executed(notebook):
    """-> the notebook with new outputs, and nothing in it of the machine that made them."""
    notebook = nbformat.from_dict(notebook)
    NotebookClient(
        notebook, timeout=300, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(ROOT)}},
    ).execute()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def text(cell):
    """What a cell printed or showed, as far as it is the same everywhere."""
    if cell.cell_type != "code" or "varies" in cell.metadata.get("tags", ()):
        return ""
    shown = [output.get("data", {}) for output in cell.outputs]
    return "".join([output.get("text", "") for output in cell.outputs]
                   + [data.get("text/plain", "") for data in shown if "image/png" not in data])


if __name__ == "__main__":
    raise SystemExit(main())
