"""Renew the generated parts of the documentation: `python docs/generate.py`.

    docs/explain/*.html    a page for each subject of `npgpt explain`
    docs/gallery.md        from the code in tests/gallery
    README.md              the excerpts between <!-- generated: ... --> and <!-- end -->

With --check nothing is written. Each file that is not up to date is named on a line of its own, and
the exit status is 1.

An excerpt is part of what `npgpt explain` prints in a terminal of 80 columns. Its marker names
arrays, not lines, so an excerpt stays valid when the lines of a layer move:

    <!-- generated: explain layernorm, backward from dw to mean_dxhat_xhat, check dw -->

This gives the steps of the backward from the one that first makes dw to the one that first makes
mean_dxhat_xhat, the check of dw, and the verdict.

Code and words must match exactly. Numbers in the output of explain may differ by 0.1 %, and
rounding errors are not compared: they depend on the processor and on the version of NumPy. A file
that differs only by these counts as up to date.
"""

import argparse
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # for npgpt and tests.gallery

from npgpt.explain import page, terminal, wording
from npgpt.explain.command import ExplainConfig
from npgpt.explain.explanation import explain
from npgpt.explain.subjects import SUBJECTS
from tests.gallery.page import page as gallery

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 80
SEED = ExplainConfig().seed
EXCERPT = re.compile(r"(<!-- generated: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
MARKER = re.compile(r"explain (\w+), (forward|backward) from (\w+) to (\w+), check (\S+)")

CODE = re.compile(
    r'<div class="code">.*?</div>|<pre class="formula">.*?</pre>'       # on a page
    r"|^ *\d+ │.*?$", re.DOTALL | re.MULTILINE)                         # in an excerpt
SHADE = re.compile(r'( class="(plus|minus)")? style="--a:[\d.]+"')
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")


class GenerateError(Exception):
    """A part cannot be generated; the message says why."""


def main(arguments=None, root=ROOT):
    """Renew or check the files under root -> exit status."""
    parser = argparse.ArgumentParser(description="Renew the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true",
                        help="write nothing; exit with status 1 if a file is not up to date")
    check = parser.parse_args(arguments).check
    try:
        files = generated(root)
    except GenerateError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [name for name, text in files.items() if not is_up_to_date(root / name, text)]
    for name in stale:
        if check:
            print(f"{name} is not up to date; run: python docs/generate.py")
        elif files[name] is None:
            (root / name).unlink()
            print(f"deleted {name}")
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(files[name], encoding="utf-8")
            print(f"wrote {name}")
    return 1 if check and stale else 0


def generated(root):
    """-> name of a file -> its text, or None if the file must not exist."""
    explanations = {name: _explained(name) for name in SUBJECTS}
    files = {f"docs/explain/{path.name}": None for path in (root / "docs/explain").glob("*.html")}
    files |= {f"docs/explain/{name}.html": page.html(e) for name, e in explanations.items()}
    files["docs/gallery.md"] = gallery()
    readme = (root / "README.md").read_text(encoding="utf-8")
    files["README.md"] = with_excerpts(readme, explanations)
    return files


def _explained(name):
    e = explain(name, SUBJECTS[name].sizes, SEED)
    if not e.right:
        raise GenerateError(f"the backward of {name} is wrong; see: python -m npgpt explain {name}")
    return e


def is_up_to_date(path, text):
    """Whether a file has this text. Output of explain may differ by rounding."""
    if text is None or not path.exists():
        return text is None and not path.exists()
    old = path.read_text(encoding="utf-8")
    return old == text or (path.name != "gallery.md" and same(old, text))


def same(old, new):
    """Whether two outputs of explain are the same apart from rounding."""
    old, new = _parts(old), _parts(new)
    return old[:2] == new[:2] and len(old[2]) == len(new[2]) and all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-7) for a, b in zip(old[2], new[2]))


def _parts(text):
    """A text -> its lines of code, its other words, its other numbers."""
    rest = SHADE.sub("", CODE.sub(" ", text)).replace(wording.ROUNDING, "")
    words = " ".join(NUMBER.sub(" # ", rest).split())
    return CODE.findall(text), words, [float(number) for number in NUMBER.findall(rest)]


def with_excerpts(text, explanations):
    """A text with each of its excerpts renewed."""
    def renewed(match):
        return f"{match[1]}```\n{excerpt(match[2], explanations)}\n```\n{match[4]}"

    found = len(EXCERPT.findall(text))
    if found != text.count("<!-- generated:") or found != text.count("<!-- end -->"):
        raise GenerateError("README.md: every <!-- generated: ... --> needs an <!-- end -->")
    return EXCERPT.sub(renewed, text)


def excerpt(marker, explanations):
    """The text for a marker: steps, a check and the verdict."""
    words = MARKER.fullmatch(marker)
    if not words:
        raise GenerateError("README.md: a marker must have the form <!-- generated: explain "
                            "layernorm, backward from dw to mean_dxhat_xhat, check dw -->, "
                            f"got {marker!r}")
    name, side, first, last, gradient = words.groups()
    if name not in explanations:
        raise GenerateError(f"README.md: explain has no subject {name!r}; choose one of "
                            f"{', '.join(explanations)}")
    e = explanations[name]
    steps = e.forward if side == "forward" else e.backward
    makes = {}                                   # name -> index of the step that first makes it
    for i, step in enumerate(steps):
        for value in step.values:
            makes.setdefault(value.name, i)
    checks = {check.name: check for check in e.checks}
    for wanted, known in ((first, makes), (last, makes), (gradient, checks)):
        if wanted not in known:
            raise GenerateError(f"README.md: explain {name} shows no {wanted!r} there; choose one "
                                f"of {', '.join(known)}")
    if makes[first] > makes[last]:
        raise GenerateError(f"README.md: {first!r} comes after {last!r} in {marker!r}")
    lines = [*terminal.steps(steps[makes[first]:makes[last] + 1], WIDTH), "…",
             *list(terminal.checks([checks[gradient]], WIDTH))[:-1], "…",
             *terminal.verdict(e, WIDTH)]
    return "\n".join(str(line).rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
