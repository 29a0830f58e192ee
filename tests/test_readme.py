"""What README.md shows in Python runs as it stands, and what the documents point at exists."""

import ast
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted(path for folder in (".", "docs", "examples", "data")
                   for path in (ROOT / folder).glob("*.md"))
NAMING_FILES = [README, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path):
    return path.relative_to(ROOT).as_posix()


def words(path):
    """The text of a document without its blocks of code."""
    return CODE.sub("", path.read_text(encoding="utf-8"))


def anchors(path):
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", words(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_python_of_readme_runs_in_order_in_one_namespace(tmp_path, monkeypatch):
    """In an empty directory without a network, so that load_source() falls back to pydocs."""
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    text = README.read_text(encoding="utf-8")
    namespace = {"__name__": "__main__"}
    blocks = [match for match in CODE.finditer(text) if match[1] == "python"]
    assert len(blocks) >= 3
    for block in blocks:
        code = ast.parse(block[2])
        ast.increment_lineno(code, text.count("\n", 0, block.start(2)))   # README's own lines
        exec(compile(code, str(README), "exec"), namespace)
    assert namespace["loss"] < 3.5       # nats per character; an untrained model has about 4.6


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_relative_links_lead_to_files_and_headings_that_exist(document):
    links = re.findall(r"\]\(([^)\s]+)\)", words(document))
    dead = []
    for link in links:
        file, _, heading = link.partition("#")
        target = document.parent / file if file else document
        if "://" not in link and not (
                target.exists() and (not heading or heading in anchors(target))):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("document", NAMING_FILES, ids=name)
def test_paths_in_backticks_exist(document):
    """`training/step.py` may leave out npgpt/; NAME stands for any name."""
    paths = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", words(document))
    paths = [path for path in paths if "/" in path or path.endswith((".py", ".toml"))]
    paths = [path for path in paths if "NAME" not in path and not path.startswith("out/")]
    assert [path for path in paths
            if not (ROOT / path).exists() and not (ROOT / "npgpt" / path).exists()] == []
