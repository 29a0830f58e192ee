"""`python docs/generate.py` updates stale files; --check names them and writes nothing."""

import importlib.util
import re
from pathlib import Path

import pytest

from npgpt.explain import page
from npgpt.explain.explanation import explain
from npgpt.explain.subjects import SUBJECTS

ROOT = Path(__file__).parent.parent.parent
MARKER = "explain layernorm, backward from dw to mean_dxhat_xhat, check dw"
README = f"# A title\n\n<!-- generated: {MARKER} -->\n<!-- end -->\n\nThe end.\n"

spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.fixture
def root(tmp_path, monkeypatch, capsys):
    """A directory in which everything is up to date, with the pages of two subjects."""
    monkeypatch.setattr(generate, "SUBJECTS", {name: SUBJECTS[name] for name in
                                               ("layernorm", "relu")})
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    assert generate.main([], tmp_path) == 0
    capsys.readouterr()
    return tmp_path


def content(root):
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8")
            for path in root.rglob("*") if path.is_file()}


def replace(path, before, after):
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_written_files_are_up_to_date(root, capsys):
    written = content(root)
    assert written.keys() == {"README.md", "docs/gallery.md", "docs/explain/layernorm.html",
                              "docs/explain/relu.html"}
    assert generate.main(["--check"], root) == 0
    assert generate.main([], root) == 0
    assert capsys.readouterr() == ("", "") and content(root) == written


@pytest.mark.parametrize(("name", "change"), [
    ("docs/explain/relu.html", lambda path: replace(path, "maximum", "minimum")),
    ("docs/explain/relu.html", Path.unlink),
    ("docs/explain/other.html", lambda path: path.write_text("of a subject that is gone")),
    ("docs/gallery.md", lambda path: replace(path, "1e-", "2e-")),
    ("docs/gallery.md", Path.unlink),
    ("README.md", lambda path: replace(path, "dw = sum_rows(dy_xhat)", "dw = dy")),
    ("README.md", lambda path: path.write_text(README)),
])
def test_check_names_a_stale_file_and_a_run_without_it_updates_the_file(name, change, root, capsys):
    written = content(root)
    change(root / name)
    stale = content(root)
    assert generate.main(["--check"], root) == 1
    line = f"{name} is not up to date; run: python docs/generate.py\n"
    assert capsys.readouterr() == (line, "") and content(root) == stale
    assert generate.main([], root) == 0
    assert capsys.readouterr().out.count("\n") == 1 and content(root) == written


def test_text_around_the_excerpts_is_kept(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# A title\n\n<!-- generated: {MARKER} -->\n```\n")
    assert text.endswith("\n```\n<!-- end -->\n\nThe end.\n")


def test_excerpt_has_the_steps_from_the_first_name_to_the_last_a_check_and_the_verdict(root):
    lines = (root / "README.md").read_text(encoding="utf-8").split("```")[1].strip("\n").split("\n")
    code = [line.partition("│ ")[2].strip() for line in lines if re.match(r" *\d+ │ ", line)]
    assert code[0].startswith("dw = sum_rows(dy_xhat)")
    assert code[-1].startswith("mean_dxhat_xhat = ")
    assert "dw (4,)  ✓ relative error" in "\n".join(lines)
    assert lines[lines.index("…") + 1].startswith("dw (4,)  ✓") and lines.count("…") == 2
    assert lines[-2].startswith("✓ Every gradient is right.")
    assert max(map(len, lines)) <= 80


def test_line_added_to_a_docstring_moves_the_excerpt_and_changes_nothing_else(
        root, edited_layernorm):
    before = (root / "README.md").read_text(encoding="utf-8")
    head = '"""dy (..., C) -> dx (..., C), dw (C,), db (C,)."""'
    edited_layernorm(head, head[:-3] + '\n    One line more.\n    """')
    assert generate.main(["--check"], root) == 1
    assert generate.main([], root) == 0 and generate.main(["--check"], root) == 0
    moved = re.sub(r"(?m)^ *(\d+) │", lambda line: f"{int(line[1]) + 2:3} │", before)
    assert (root / "README.md").read_text(encoding="utf-8") == moved
    assert "One line more." in (root / "docs/explain/layernorm.html").read_text(encoding="utf-8")


def test_wrong_backward_is_not_written(root, edited_layernorm, capsys):
    written = content(root)
    edited_layernorm("    dx -= xhat * mean_dxhat_xhat[..., None]\n", "")
    assert generate.main([], root) == 1
    message = "the backward of layernorm is wrong; see: python -m npgpt explain layernorm\n"
    assert capsys.readouterr() == ("", message) and content(root) == written


@pytest.mark.parametrize(("readme", "message"), [
    ("<!-- generated: explain layernorm -->\n<!-- end -->",
     "a marker must have the form <!-- generated: explain layernorm, backward from dw to "
     "mean_dxhat_xhat, check dw -->, got 'explain layernorm'"),
    (README.replace("explain layernorm", "explain norm"),
     "explain has no subject 'norm'; choose one of layernorm, relu"),
    (README.replace("from dw", "from dW"), "explain layernorm shows no 'dW' there; choose one of"),
    (README.replace("to mean_dxhat_xhat", "to far"),
     "explain layernorm shows no 'far' there; choose one of"),
    (README.replace("check dw", "check y"),
     "explain layernorm shows no 'y' there; choose one of dx, dw, db"),
    (README.replace("from dw to mean_dxhat_xhat", "from mean_dxhat_xhat to dw"),
     "'mean_dxhat_xhat' comes after 'dw' in"),
    (README.replace("<!-- end -->", ""), "every <!-- generated: ... --> needs an <!-- end -->"),
    (README + "<!-- end -->", "every <!-- generated: ... --> needs an <!-- end -->"),
])
def test_invalid_marker_gives_one_line_and_nothing_is_written(readme, message, root, capsys):
    (root / "README.md").write_text(readme, encoding="utf-8")
    written = content(root)
    assert generate.main([], root) == generate.main(["--check"], root) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 2 and content(root) == written
    assert error.startswith("README.md: ") and message in error


@pytest.mark.parametrize(("before", "after", "is_noticed"), [
    ("dy * w", "dy + w", True), ("mean(dxhat)", "sum(dxhat)", True), ("random", "chosen", True),
    ("(2, 3, 4)", "(2, 4, 3)", True), (">1.446 <", ">1.45 <", True),
    (">1.446 <", ">1.447 <", False), ("error 1", "error 2", False), ("--a:0.4", "--a:0.3", False),
])
def test_changes_of_code_words_and_numbers_are_detected_and_rounding_is_ignored(
        before, after, is_noticed):
    html = page.html(explain("layernorm", SUBJECTS["layernorm"].sizes, 1337))
    assert before in html
    assert generate.same(html, html.replace(before, after)) != is_noticed
