"""docs/lecture.ipynb, executed from a clean kernel: `python -m tests.notebook`.

It fails if a cell raises an error, or if a cell prints different text than in the committed
notebook. Pictures are not compared, nor cells tagged "varies", whose last digits depend on the
processor.
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
    parser.add_argument("--write", action="store_true", help="save the new outputs")
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
    """-> the notebook with new outputs, and without metadata of the machine."""
    notebook = nbformat.from_dict(notebook)
    NotebookClient(
        notebook, timeout=300, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(ROOT)}},
    ).execute()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def text(cell):
    """The output of a cell, without the parts that depend on the machine."""
    if cell.cell_type != "code" or "varies" in cell.metadata.get("tags", ()):
        return ""
    shown = [output.get("data", {}) for output in cell.outputs]
    return "".join([output.get("text", "") for output in cell.outputs]
                   + [data.get("text/plain", "") for data in shown if "image/png" not in data])


if __name__ == "__main__":
    raise SystemExit(main())
