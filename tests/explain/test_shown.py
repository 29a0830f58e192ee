"""The output of an explanation: in a terminal of any width, and on a page."""

import dataclasses
import importlib.util
import re
import textwrap
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from npgpt import layers
from npgpt.explain import page, subjects, terminal
from npgpt.explain.arrays import MOST_ROWS, array_lines
from npgpt.explain.explanation import explain
from npgpt.explain.highlight import parts
from npgpt.explain.numbers import aligned, matrices, number
from npgpt.explain.subjects import SUBJECTS
from npgpt.explain.trace import Step

WIDTHS = [40, 80, 120, 200]


def explained(name):
    return explain(name, SUBJECTS[name].sizes, 1337)


def text(name, width):
    return "\n".join(line.plain for line in terminal.lines(explained(name), width))


class Page(HTMLParser):
    """Parses a page strictly: every element is closed in its turn, every id is there once."""

    VOID = ("meta", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.links, self.words, self.cells = [], [], [], [], []
        self.tags = set()
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [value for key, value in attrs.items() if key in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "td" in self.open:
            self.cells[-1] += data


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_no_line_is_wider_than_the_terminal(name, width):
    lines = text(name, width).split("\n")
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("name", ["linear", "layernorm", "gelu"])
def test_no_line_of_the_largest_sizes_is_wider_than_a_narrow_terminal(name):
    e = explain(name, dict.fromkeys(SUBJECTS[name].sizes, subjects.LARGEST), 1337)
    for width in (40, 47, 60):
        assert max(len(line.plain) for line in terminal.lines(e, width)) <= width


def test_first_and_last_number_of_each_row_are_shown_in_a_narrow_terminal():
    array = np.arange(2 * 3 * 8).reshape(2, 3, 8) + 0.12345
    shown = [line.plain.split() for line in array_lines(array, None, 20)]
    assert shown[0][:1] == ["[0]"] and ["[1]"] in [row[:1] for row in shown]
    rows = [[number for number in row if number[0] != "["] for row in shown]
    rows = [row for row in rows if row]
    assert [(row[0], row[-1]) for row in rows] == [
        (number(m[0]), number(m[-1])) for m in array.reshape(6, 8)]
    assert all("…" in row for row in rows)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_wide_terminal_and_the_page_show_each_line_of_source_unchanged(name):
    e = explained(name)
    shown, html = text(name, 200), Page(page.html(e))
    words = "".join(html.words)
    for step in (*e.forward, *e.backward):
        for number_, line in enumerate(step.source.split("\n"), step.first):
            assert f"{number_:3} │ {line}" in shown
            assert f"{number_}{line}" in words


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_narrow_terminal_shows_every_word_of_the_source(name):
    shown = re.sub(r"\s|│|^ *\d+ │", "", text(name, 80), flags=re.M)
    for step in (*explained(name).forward, *explained(name).backward):
        assert all(re.sub(r"\s", "", line) in shown for line in step.source.split("\n"))


def source_at(step_source, width, first=1):
    step = Step(first, first + step_source.count("\n"), step_source)
    return [line.plain for line in terminal.steps([step], width)]


def test_a_long_signature_and_sentence_are_wrapped_as_one():
    assert source_at(
        'def f(x, p, n_head, mask=None, activation="gelu",\n'
        '      layers=layers):\n'
        '    """x (B, T) -> y (B, T). Some more words that fill the line, and go on\n'
        '    in the next.\n'
        '    p: of dropout.\n'
        '    """', 52) == [
        '  1 │ def f(x, p, n_head, mask=None,',
        '    │         activation="gelu", layers=layers):',
        '  3 │     """x (B, T) -> y (B, T). Some more words',
        '    │     that fill the line, and go on in the next.',
        '  5 │     p: of dropout.',
        '  6 │     """',
    ]


def test_code_is_broken_outside_of_inner_brackets():
    assert source_at('    dh, dp["ln_2.weight"], dp["ln_2.bias"] = layernorm_backward(dh, ln_2)',
                     70)[1].strip(" │") == "layernorm_backward(dh, ln_2)"
    assert source_at("    y = f(h, activation, dropout, key and key.at(1), layers)",
                     56)[1].strip(" │") == "key and key.at(1), layers)"


def test_a_formula_that_is_too_wide_loses_its_gap_first_then_its_second_column():
    rows = "    y = x * s" + " " * 12 + "s = f(u)\n" + " " * 25 + "u = g(x) * 2"
    for width, wanted in [
        (40, rows.split("\n")),
        (30, ["    y = x * s     s = f(u)", " " * 18 + "u = g(x) * 2"]),
        (25, ["    y = x * s   s = f(u)", "        u = g(x) * 2"]),
        (20, ["    y = x * s", "        s = f(u)", "        u = g(x) * 2"]),
    ]:
        assert [line.plain for line in terminal._formula(rows, width)][:-1] == wanted


@pytest.mark.parametrize("name", SUBJECTS)
def test_page_is_well_formed_and_self_contained(name):
    html = page.html(explained(name))
    parsed = Page(html)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link[0] == "#" and link[1:] in parsed.ids for link in parsed.links)
    assert not parsed.tags & {"script", "link", "img", "iframe"} and "url(" not in html
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "gpt"])
def test_page_and_terminal_show_every_number_of_every_array(name):
    e = explained(name)
    cells = [cell.strip() for cell in Page(page.html(e)).cells]
    shown = text(name, 200)
    for step in (*e.forward, *e.backward):
        for value in step.values:
            if value.data is not None and not value.brief and not value.origin:
                numbers = [number(x) for x in value.data.ravel()]
                assert set(numbers) <= set(cells)
                assert all(n in shown for n in numbers)


def test_gradients_are_shown_with_the_measured_error():
    shown = text("layernorm", 120)
    e = explained("layernorm")
    for check in e.checks:
        assert f"{check.name} {check.found.shape}  ✓ relative error" in shown
    row = "  ".join(aligned(e.checks[0].found)[0, 0]).strip()
    assert re.search(re.escape(row) + r"\s+" + re.escape(row), shown)
    assert "✓ Every gradient is right." in shown


def test_skipped_lines_and_results_of_conditions_are_shown():
    for shown in (text("dropout", 100), "".join(Page(page.html(explained("dropout"))).words)):
        assert "    if key is None or p == 0:    → no" in shown
        assert "        return x, None    (not run)" in shown
        assert shown.count("(not run)") == 2


def test_array_shown_before_is_referred_to_by_its_line():
    e = explained("attention")
    lines = {step.source.split("#")[0].strip(): step.first for step in e.forward}
    softmax = lines["att /= total"]
    backward = text("attention", 100).partition("Backward")[2]
    assert f"att (1, 2, 3, 3), unchanged since line {softmax}\n" in backward
    assert f"kept (1, 2, 3, 3), the array att of line {softmax}\n" in backward
    link = f'the array att of <a href="#f{[step.first for step in e.forward].index(softmax)}">'
    assert link in page.html(e)


def test_page_escapes_the_source():
    html = page.html(explained("embedding"))
    assert "idx.size &lt; V" in html and "idx.size < " not in html and '-> y' not in html


WRONG = '''
    """A layer with a bug.

        y = x * w
    """

    def forward(x, w):
        """x (T, C), w (C,) -> y (T, C)."""
        return x * w, (x, w)


    def backward(dy, cache):
        """dy (T, C) -> dx (T, C), dw (C,)."""
        x, w = cache
        dx = dy * w
        dw = (dy * x).mean(0)
        return dx, dw
    '''


def _two_arrays(s, draw):
    return {"x": draw(s["T"], s["C"]), "w": draw(s["C"])}


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """-> function that adds a subject made of a source, and explains it."""

    def add(source=WRONG, inputs=_two_arrays, **more):
        path = tmp_path / "wrong.py"
        path.write_text(textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location("wrong", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(__import__("sys").modules, "wrong", module)
        spec.loader.exec_module(module)
        subject = subjects.Subject(
            {"T": 3, "C": 4}, inputs, lambda: (module.forward, module.backward), **more)
        monkeypatch.setitem(SUBJECTS, "wrong", subject)
        return explained("wrong")

    return add


def test_bug_in_a_backward_marks_only_its_gradient(wrong):
    e = wrong()
    assert not e.right
    assert [(check.name, check.right) for check in e.checks] == [("dx", True), ("dw", False)]
    shown = text("wrong", 100)
    assert re.search(r"^dx \(3, 4\)  ✓", shown, re.M) and re.search(r"^dw \(4,\)  ✗", shown, re.M)
    assert "✗ The backward is not the derivative of the forward: dw." in shown
    assert "the gradient of w (4,) is wrong" in shown.replace("\n", " ")
    html = page.html(e)
    assert html.count('class="wrong">✗') == 1 and html.count("far") >= 8
    Page(html)


@pytest.mark.parametrize(("line", "changed", "said"), [
    ("return dx, dw", "return dx, dw[:2]", "its shape is (2,), but must be (4,)"),
    ("return dx, dw", "return dx", "1 gradients for 2 differentiable inputs"),
    ("dw = (dy * x).mean(0)", 'dw = (dy * x).sum(0) * float("nan")', "✗ relative error nan"),
])
def test_gradients_that_cannot_be_compared_are_wrong(wrong, line, changed, said):
    assert line in WRONG
    e = wrong(textwrap.dedent(WRONG).replace(line, changed))
    assert not e.right
    assert said in text("wrong", 100).replace("\n", " ") and said in page.html(e)


NESTED = '''
    """A composite with nested parameters.

        y = (x * w + b) * scale
    """

    def inner_forward(x, p):
        return x * p["w"] + p["b"], (x, p["w"])


    def inner_backward(dy, cache):
        x, w = cache
        return dy * w, {"b": dy.sum(0), "w": (dy * x).sum(0)}


    def forward(x, p):
        """x (T, C) -> y (T, C)."""
        h, inner = inner_forward(x, p["mlp"]["c_fc"])
        y = h * p["scale"]
        return y, (inner, h, p["scale"])


    def backward(dy, cache):
        """dy (T, C) -> dx (T, C), dp like p."""
        inner, h, scale = cache
        dp = {"mlp": {}}
        dp["scale"] = (dy * h).sum(0)
        dx, dp["mlp"]["c_fc"] = inner_backward(dy * scale, inner)
        return dx, dp
    '''
ADDING = '''
    """A model that adds its gradients.

        y = (x * w + b) * scale
    """

    def forward(x, p):
        """x (T, C) -> y (T, C)."""
        h = x * p["mlp"]["c_fc.w"] + p["mlp"]["c_fc.b"]
        return h * p["ln.scale"], (x, h, p)


    def backward(dy, cache, grads):
        """dy (T, C) -> None: the gradients are added to grads."""
        x, h, p = cache
        grads.add("ln.scale", (dy * h).sum(0))
        dh = dy * p["ln.scale"]
        dp = {"c_fc.b": dh.sum(0), "c_fc.w": (dh * x).sum(0)}
        grads.add("mlp", dp)
    '''


def _nested(s, draw):
    C = s["C"]
    return {"x": draw(s["T"], C),
            "p": draw.parameters({"scale": (C,), "mlp": {"c_fc": {"w": (C,), "b": (C,)}}})}


def test_nested_parameters_and_their_gradients_are_shown_and_checked_by_their_names(wrong):
    e = wrong(NESTED, _nested)
    assert e.right and e.error < 1e-12
    names = ['dp["scale"]', 'dp["mlp"]["c_fc"]["w"]', 'dp["mlp"]["c_fc"]["b"]']
    assert [check.name for check in e.checks] == ["dx", *names]
    assert [value.name for value in e.forward[0].values] == [
        "x", *(name[1:] for name in names)]
    made = {step.source.strip(): [value.name for value in step.values] for step in e.backward}
    assert made['dp = {"mlp": {}}'] == ['dp["mlp"]']
    assert made['dp["scale"] = (dy * h).sum(0)'] == ['dp["scale"]']
    assert made['dx, dp["mlp"]["c_fc"] = inner_backward(dy * scale, inner)'] == [
        "dx", 'dp["mlp"]["c_fc"]["b"]', 'dp["mlp"]["c_fc"]["w"]']
    assert e.backward[-1].values[-1].text == ": 3 arrays, 12 numbers, all shown above"
    shown = Page(page.html(e)).words
    assert all(name in shown and name in text("wrong", 80) for name in names)


@pytest.mark.parametrize(("line", "changed", "wrong_names"), [
    ("(dy * x).sum(0)", "(dy + x).sum(0)", ['dp["mlp"]["c_fc"]["w"]']),
    ('{"b": dy.sum(0), ', "{", []),
    ("dy.sum(0)", "dy.sum(0)[:2]", ['dp["mlp"]["c_fc"]["b"]']),
])
def test_wrong_nested_gradient_is_named(wrong, line, changed, wrong_names):
    assert line in NESTED
    e = wrong(NESTED.replace(line, changed), _nested)
    assert not e.right and "c_fc." in e.message
    assert [check.name for check in e.checks if not check.right] == wrong_names
    assert "✗ The backward is not the derivative" in text("wrong", 80)


def _only_parameters(s, draw):
    C = s["C"]
    return {"x": 1 + draw.integers(9, s["T"], C),
            "p": draw.parameters({"ln.scale": (C,), "mlp": {"c_fc.w": (C,), "c_fc.b": (C,)}})}


def test_added_gradients_are_shown_where_they_change_and_checked_under_the_same_names(wrong):
    e = wrong(ADDING, _only_parameters, adds=True, brief=True)
    assert e.right
    changed = [value.name for step in e.backward for value in step.values
               if value.changed is not None]
    assert changed == ['grads["ln.scale"]', 'grads["mlp.c_fc.w"]', 'grads["mlp.c_fc.b"]']
    assert [check.name for check in e.checks] == changed
    added = next(step for step in e.backward if 'grads.add("mlp"' in step.source)
    assert (added.values[-1].name, added.values[-1].text) == ("dp", ": empty")


def test_gradients_of_the_model_are_checked_under_the_names_they_are_shown_with():
    e = explained("gpt")
    shown = {value.name for step in e.backward for value in step.values}
    names = [check.name for check in e.checks]
    assert 'grads["h.1.attn.c_attn.weight"]' in names and set(names) <= shown
    assert {check.name for check in explained("block").checks} <= {
        value.name for step in explained("block").backward for value in step.values}


def test_bug_far_from_the_top_of_the_model_is_seen(monkeypatch):
    backward = layers.positional_backward
    monkeypatch.setattr(layers, "positional_backward",
                        lambda dy, cache: (dy, 0 * backward(dy, cache)[1]))
    e = explained("gpt")
    assert [check.name for check in e.checks if not check.right] == ['grads["wpe.weight"]']


@given(arrays(float, st.tuples(st.integers(1, 3), st.integers(1, 4)),
              elements=st.floats(allow_nan=True, width=32)))
def test_numbers_are_aligned_and_correct_to_four_digits(array):
    texts = aligned(array)
    assert len({len(t) for t in texts.ravel()}) == 1
    for x, t in zip(array.ravel(), texts.ravel()):
        assert float(t) == pytest.approx(x, rel=5.001e-4, nan_ok=True)
    points = {t.index(".") for t in texts.ravel() if "." in t}
    assert len(points) <= 1


def test_numbers_that_differ_by_rounding_are_shown_alike():
    assert number(2.6755) == number(2.67549999999) == number(2.67550000001)
    assert number(-0.0) == "0" and number(-np.inf) == "-inf" and number(np.True_) == "True"


def test_large_arrays_are_abbreviated_in_a_terminal():
    array = np.arange(20 * 3 * 30, dtype=float).reshape(20, 1, 3, 30)[:, 0] + 1000
    lines = [line.plain for line in array_lines(array, None, 70)]
    assert max(map(len, lines)) <= 70
    assert lines[-1] == "… and 12 more of these" and all("…" in line for line in lines)
    tall = [line.plain for line in array_lines(np.ones((50, 1)), None, 70)]
    assert len(tall) == MOST_ROWS and tall[-2].strip() == "…"


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4), (1, 2, 3, 4)])
def test_matrices_of_an_array_combine_to_the_array(shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    found = matrices(array)
    assert np.array_equal(np.concatenate([m.ravel() for _, m in found]), array.ravel())
    for label, matrix in found:
        if label:
            assert np.array_equal(eval(f"array{label}"), matrix)


@pytest.mark.parametrize("name", SUBJECTS)
def test_coloured_parts_of_a_source_combine_to_the_source(name):
    for step in (*explained(name).forward, *explained(name).backward):
        assert "".join(part for _, part in parts(step.source)) == step.source
    assert ("keyword", "return") in parts("    return x  # why")
    assert ("comment", "# why") in parts("    return x  # why")


def test_summary_is_a_sentence_without_its_source():
    for subject in SUBJECTS.values():
        assert subject.summary and "(" not in subject.summary.replace("(x)", "")
        assert subject.summary[0].isupper()


def test_sizes_are_pairwise_distinct():
    for name, subject in SUBJECTS.items():
        sizes = [size for letter, size in subject.sizes.items() if letter not in ("L", "Tk", "G")]
        assert len(set(sizes)) == len(sizes), name


def test_a_constant_is_shown_and_has_no_gradient():
    e = explained("rope")
    assert [check.name for check in e.checks] == e.gradients == ["dx"]
    shown = text("rope", 100)
    assert "cos (3, 2), of the angles" in shown and "sin (3, 2), of the same angles" in shown


def test_subjects_of_one_file_have_titles_of_their_own():
    of_llama = [SUBJECTS[name].summary for name in ("gated_mlp", "grouped_attention",
                                                    "llama_block")]
    assert len(set(of_llama)) == 3 and all("Llama" in summary for summary in of_llama)


def test_same_seed_shows_the_same_numbers_and_another_seed_different_ones():
    assert text("linear", 80) == text("linear", 80)
    other = explain("linear", SUBJECTS["linear"].sizes, 5)
    assert page.html(other) != page.html(explained("linear"))
    assert dataclasses.asdict(other)["seed"] == 5
