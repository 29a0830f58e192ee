"""The text of docs/gallery.md. `python docs/generate.py` writes it."""

from tests.gallery import adapters, layers, llama, models, parts, training

BUGS = layers.BUGS + llama.BUGS + parts.BUGS + models.BUGS + adapters.BUGS + training.BUGS
HEAD = """# A gallery of wrong gradients

Each of these bugs was found in a public project, most of them in a GPT with hand-written backward
passes. Most of these projects have tests. So each bug is shown with a check that catches it and
with a check that looks reasonable but misses it, which is why the bug survived. The code is in
`tests/gallery/`, and the test suite verifies that the first check catches the bug and the second
does not. `python docs/generate.py` writes this page.

"""


def page():
    """-> the text."""
    return HEAD + "\n".join(bug.page() for bug in BUGS)
