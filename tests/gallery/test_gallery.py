"""Every bug of the gallery is caught by the check that is named, and slips through the one it is
said to slip through; docs/gallery.md is made from it: `python -m tests.gallery.test_gallery`."""

import inspect
from pathlib import Path

import pytest

from tests.gallery import layers, models, training

BUGS = layers.BUGS + models.BUGS + training.BUGS
PAGE = Path(__file__).parent.parent.parent / "docs" / "gallery.md"
HEAD = """# A gallery of wrong gradients

Each of these bugs was found in a public GPT, or its like, with backward passes written by hand.
Most of those projects have tests. So each stands here with the check that catches it and a check
that looks reasonable and does not: the second is why it lived. All of it is code in
`tests/gallery/`, and the test suite proves that the one check sees the bug and the other does not.
The page is written by `python -m tests.gallery.test_gallery`.

"""


def page():
    return HEAD + "\n".join(bug.page() for bug in BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_check_tells_right_from_wrong(bug):
    bug.check(bug.correct)
    with pytest.raises(AssertionError):
        bug.check(bug.broken)


@pytest.mark.parametrize("bug", [b for b in BUGS if b.blind], ids=lambda bug: bug.title)
def test_weaker_check_lets_both_pass(bug):
    bug.blind(bug.correct)
    bug.blind(bug.broken)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_lines_that_are_shown_are_lines_of_the_code(bug):
    assert bug.right in inspect.getsource(bug.source or bug.correct)
    assert bug.wrong in inspect.getsource(bug.broken_source or bug.broken)


def test_page_is_what_the_gallery_says():
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
