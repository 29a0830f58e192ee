"""The pages in docs/explain, and what docs/backprop.md and README quote, are what the code is now.

Code, names, shapes, and what is said must be the same to the letter. Numbers must be near: the last
digits that sums are rounded to, and with them the errors of the checks, the shades and what is left
of a 0, differ from one processor and one NumPy to another.
"""

import re
from pathlib import Path

import pytest

from npgpt.explain import page, terminal, wording
from npgpt.explain.explanation import explain
from npgpt.explain.subjects import SUBJECTS

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
SEED = 1337
CODE = re.compile(r'<div class="code">.*?</div>|<pre class="formula">.*?</pre>', re.DOTALL)
SHADE = re.compile(r'( class="(plus|minus)")? style="--a:[\d.]+"')
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")


def shown(html):
    """A page -> its lines of code, its other words, its other numbers."""
    rest = SHADE.sub("", CODE.sub(" ", html)).replace(wording.ROUNDING, "")
    words = " ".join(NUMBER.sub(" # ", rest).split())
    return CODE.findall(html), words, [float(number) for number in NUMBER.findall(rest)]


def near(numbers):
    return pytest.approx(numbers, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("name", SUBJECTS)
def test_committed_page_shows_what_the_code_does_now(name):
    code, words, numbers = shown((DOCS / "explain" / f"{name}.html").read_text(encoding="utf-8"))
    now = shown(page.html(explain(name, SUBJECTS[name].sizes, SEED)))
    remake = f"python -m npgpt explain {name} --html docs/explain/{name}.html"
    assert code == now[0], remake
    assert words == now[1], remake
    assert numbers == near(now[2]), remake


@pytest.mark.parametrize(("before", "after", "is_noticed"), [
    ("dy * w", "dy + w", True), ("mean(dxhat)", "sum(dxhat)", True), ("random", "chosen", True),
    ("(2, 3, 4)", "(2, 4, 3)", True), (">1.446 <", ">1.45 <", True),
    (">1.446 <", ">1.447 <", False), ("error 1", "error 2", False), ("--a:0.4", "--a:0.3", False),
])
def test_another_page_is_noticed_and_other_rounding_is_none(before, after, is_noticed):
    html = page.html(explain("layernorm", SUBJECTS["layernorm"].sizes, SEED))
    assert before in html
    code, words, numbers = shown(html)
    changed = shown(html.replace(before, after))
    assert (changed != (code, words, near(numbers))) == is_noticed


def test_every_page_is_linked_beside_its_derivation_and_no_other_is_there():
    assert {path.stem for path in (DOCS / "explain").iterdir()} == SUBJECTS.keys()
    text = (DOCS / "backprop.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(explain/(\w+)\.html\), `python -m npgpt explain (\w+)`", text)
    assert linked == [(name, name) for name in SUBJECTS]


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_files_that_are_linked_exist(path):
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links
            if "://" not in link and not (DOCS / link).exists()] == []


def test_lines_that_the_derivations_quote_stand_in_the_code():
    text = (DOCS / "backprop.md").read_text(encoding="utf-8")
    quoted = [line.partition("#")[0].strip()
              for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
              if "import" not in block for line in block.splitlines()]
    code = {line.partition("#")[0].strip() for folder in ("layers", "models")
            for path in (ROOT / "npgpt" / folder).glob("*.py")
            for line in path.read_text(encoding="utf-8").splitlines()}
    assert len(quoted) > 20 and set(quoted) <= code


def test_excerpt_in_README_has_the_lines_and_shapes_of_a_terminal_of_80_columns():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    excerpt = next(block for block in text.split("```") if " │ " in block)
    e = explain("layernorm", SUBJECTS["layernorm"].sizes, SEED)
    lines = {line.plain.rstrip() for line in terminal.lines(e, 80)}
    quoted = {line for line in excerpt.splitlines() if re.match(r" *\d* │.*[a-z]", line)}
    assert len(quoted) > 7 and quoted <= lines
