"""docs/backprop.md and docs/explain belong together. `python docs/generate.py --check` compares the
pages themselves with the code."""

import re
from pathlib import Path

import pytest

from npgpt.explain.subjects import SUBJECTS

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def test_every_subject_is_linked_beside_its_derivation():
    text = (DOCS / "backprop.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(explain/(\w+)\.html\), `python -m npgpt explain (\w+)`", text)
    assert linked == [(name, name) for name in SUBJECTS]


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_linked_files_exist(path):
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links
            if "://" not in link and not (DOCS / link).exists()] == []


def test_lines_quoted_in_the_derivations_are_in_the_code():
    text = (DOCS / "backprop.md").read_text(encoding="utf-8")
    quoted = [line.partition("#")[0].strip()
              for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
              if "import" not in block for line in block.splitlines()]
    code = {line.partition("#")[0].strip() for folder in ("layers", "models")
            for path in (ROOT / "npgpt" / folder).glob("*.py")
            for line in path.read_text(encoding="utf-8").splitlines()}
    assert len(quoted) > 20 and set(quoted) <= code
