"""The named check catches every bug of the gallery, and the weaker check misses it."""

import inspect

import pytest

from tests.gallery.page import BUGS, page


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_check_accepts_the_correct_code_and_rejects_the_bug(bug):
    bug.check(bug.correct)
    with pytest.raises(AssertionError):
        bug.check(bug.broken)


@pytest.mark.parametrize("bug", [b for b in BUGS if b.blind], ids=lambda bug: bug.title)
def test_weaker_check_accepts_both(bug):
    bug.blind(bug.correct)
    bug.blind(bug.broken)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_displayed_lines_are_lines_of_the_code(bug):
    assert bug.right in inspect.getsource(bug.source or bug.correct)
    assert bug.wrong in inspect.getsource(bug.broken_source or bug.broken)


def test_page_has_every_bug_with_both_lines_and_its_check():
    sections = page().split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == [bug.title for bug in BUGS]
    for section, bug in zip(sections, BUGS):
        assert f"\n{bug.wrong}    # wrong\n{bug.right}    # right\n" in section
        assert inspect.getdoc(bug.check) in section
        assert ("Missed by: " in section) == bool(bug.blind)
