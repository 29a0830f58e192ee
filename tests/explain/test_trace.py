"""`explain` shows what the code does: its lines in execution order, and their arrays."""

import ast
import inspect
import sys
import textwrap

import numpy as np
import pytest

from npgpt.explain.explanation import explain
from npgpt.explain.inputs import Draw
from npgpt.explain.subjects import SUBJECTS
from npgpt.explain.trace import trace
from npgpt.explain.values import Seen
from npgpt.models.gpt import GPT

SEED = 3


def functions(name):
    return map(inspect.unwrap, SUBJECTS[name].functions())


def explained(name, **sizes):
    return explain(name, SUBJECTS[name].sizes | sizes, SEED)


def sides(name):
    """-> pairs of a function and the steps that are shown of it."""
    e = explained(name)
    return zip(functions(name), (e.forward, e.backward))


def lines_run(function, call):
    """The line numbers of a function in execution order, by a separate tracer."""
    lines = []

    def local(frame, event, _):
        if event == "line":
            lines.append(frame.f_lineno)
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: local if frame.f_code is function.__code__ else None)
    try:
        result = call()
    finally:
        sys.settrace(before)
    return result, lines


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_line_is_shown_in_execution_order(name):
    subject = SUBJECTS[name]
    inputs = subject.inputs(subject.sizes, Draw(SEED))
    forward, backward = functions(name)
    e = explained(name)
    (y, cache), lines = lines_run(forward, lambda: forward(*inputs.values()))
    assert walked(e.forward, lines) == len(e.forward)
    more = (GPT(inputs["config"]).gradients(),) if subject.adds else ()
    _, lines = lines_run(backward, lambda: backward(np.ones_like(y), cache, *more))
    assert walked(e.backward, lines) == len(e.backward)


def walked(steps, lines):
    """The number of steps that these lines account for, including those that did not run."""
    at = 0                              # the head, which has run when the first line does
    for line in lines:
        while not (steps[at].ran and steps[at].first <= line <= steps[at].last and at > 0):
            at += 1
            assert at == 1 or not steps[at - 1].ran or steps[at - 1].first in lines
    while at + 1 < len(steps) and not steps[at + 1].ran:
        at += 1
    return at + 1


@pytest.mark.parametrize("name", SUBJECTS)
def test_source_is_shown_as_in_the_file(name):
    for function, steps in sides(name):
        lines, start = inspect.getsourcelines(function)
        for step in steps:
            found = "".join(lines[step.first - start:step.last - start + 1])
            assert step.source == found.removesuffix("\n")
        shown = {n for step in steps for n in range(step.first, step.last + 1)}
        assert shown == set(range(start, start + len(lines)))


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "gpt"])
def test_each_statement_computes_the_arrays_shown_under_it(name):
    """Statement after statement is executed outside of its function, on the same inputs."""
    subject = SUBJECTS[name]
    inputs = subject.inputs(subject.sizes, Draw(SEED))
    cache = None
    for function, steps in sides(name):
        parameters = inspect.signature(function).parameters.items()
        names = {key: parameter.default for key, parameter in parameters}
        if cache is None:
            names |= inputs
        else:
            dy = steps[0].values[0]
            names |= {"cache": cache, dy.name: 1.0 if dy.data is None else dy.data}
        loops = {}                                    # the line of a loop that runs -> its iterator
        for step in steps[1:]:
            code = textwrap.dedent(step.source)
            if not step.ran or code.startswith(("if ", "elif ", "else")):
                continue
            if code.startswith("return "):
                result = eval(code.removeprefix("return "), function.__globals__, names)
                cache = result[1] if cache is None else cache
                continue
            if code.startswith("for "):
                if step.note == "end of the loop":
                    assert not list(loops.pop(step.first))
                    continue
                head = ast.parse(f"{code} pass").body[0]
                if step.first not in loops:
                    loops[step.first] = iter(
                        eval(ast.unparse(head.iter), function.__globals__, names))
                names["following"] = next(loops[step.first])
                code = f"{ast.unparse(head.target)} = following"
            exec(code, function.__globals__, names)
            for value in step.values:
                if value.data is not None:
                    found = eval(value.name, {}, names)
                    assert found.tobytes() == value.data.tobytes(), (step.source, value.name)


@pytest.mark.parametrize("name", SUBJECTS)
def test_arrays_shown_last_are_the_results_of_the_layer(name):
    subject, e = SUBJECTS[name], explained(name)
    draw = Draw(SEED)
    inputs = subject.inputs(subject.sizes, draw)
    y, _ = subject.functions()[0](*inputs.values())
    returned = next(step for step in e.forward[::-1] if step.ran).values[0]
    assert returned.name == subject.output
    if np.ndim(y):
        assert np.array_equal(returned.data, y)
    else:
        assert returned.text == f" = {y:.4g}"
    assert e.right and e.error < 1e-12
    shown = {value.name: value.data for step in e.backward for value in step.values}
    for check in e.checks:
        if check.name in shown:
            assert np.array_equal(shown[check.name], check.found)
    assert {check.name for check in e.checks} & shown.keys() or name == "block"


def test_arrays_changed_in_place_are_shown_with_the_elements_that_changed():
    e = explained("attention")
    step = next(step for step in e.forward if "copyto" in step.source)
    (value,) = step.values
    assert value.name == "scores" and np.isneginf(value.data[value.changed]).all()
    assert np.array_equal(value.changed[0, 0], ~np.tri(3, dtype=bool))


def test_array_with_two_names_is_shown_once():
    e = explained("gelu")
    start = next(i for i, step in enumerate(e.forward) if "xp.tanh(u, out=u)" in step.source)
    tanh, plus, times = e.forward[start:start + 3]
    assert [(value.name, value.origin) for value in tanh.values] == [
        ("s", None), ("u", ("s", tanh.first))]
    assert [[value.name for value in step.values] for step in (plus, times)] == [["s"], ["s"]]


def test_array_that_was_shown_is_not_shown_twice_unless_it_changed():
    e = explained("layernorm")
    unpack = next(step for step in e.backward if step.source.endswith("= cache"))
    assert [(value.name, value.origin[0]) for value in unpack.values] == [
        ("xhat", "xhat"), ("rstd", "rstd"), ("w", "w")]
    scaled = next(step for step in e.forward if step.source.strip() == "xhat *= rstd")
    assert unpack.values[0].origin == ("xhat", scaled.first)


def traced(source, name, *arguments, tmp_path, returns=("y", "cache")):
    """Steps of a function that is written to a file."""
    path = tmp_path / "written.py"
    path.write_text(textwrap.dedent(source))
    module = {"__name__": "written", "np": np}
    exec(compile(path.read_text(), str(path), "exec"), module)
    return trace(module[name], lambda: module[name](*arguments), Seen(), list(returns))


def test_branches_loops_and_statements_of_several_lines_are_shown_as_they_ran(tmp_path):
    source = '''
        def f(x):
            total = x
            # A comment stays.
            for i in range(2):
                if i == 1:
                    total = total + (
                        x * i
                    )
                else:
                    total = total * 2
            return total, None
        '''
    (y, _), steps = traced(source, "f", np.ones(2), tmp_path=tmp_path)
    assert y.tolist() == [3, 3]
    ran = [(step.source.strip().split("\n")[0], step.note) for step in steps[1:] if step.ran]
    assert ran == [
        ("total = x", ""), ("for i in range(2):", ""), ("if i == 1:", "no"),
        ("total = total * 2", ""), ("for i in range(2):", ""), ("if i == 1:", "yes"),
        ("total = total + (", ""), ("for i in range(2):", "end of the loop"),
        ("return total, None", ""),
    ]
    assert [step.source.strip() for step in steps if not step.ran and not step.is_idle] == [
        "# A comment stays.", "else:"]
    ranges = {(step.first, step.last) for step in steps if step.source.count("\n") == 2}
    assert len(ranges) == 1


def test_slices_and_functions_are_shown_as_they_are_written(tmp_path):
    source = '''
        def f(x, pair):
            part = slice(1, 3)
            index = slice(None), slice(0, 2), slice(2, None)
            shape = x.shape
            return x, None
        '''
    _, steps = traced(source, "f", np.ones(2), (np.ndim, max), tmp_path=tmp_path)
    shown = {value.name: value.text for step in steps for value in step.values}
    assert shown["pair"] == " = (ndim, max)"
    assert (shown["part"], shown["index"], shown["shape"]) == (
        " = 1:3", " = [:, 0:2, 2:]", " = (2,)")


def test_change_of_a_view_through_its_base_is_shown(tmp_path):
    source = '''
        def f(x):
            y = x.copy()
            row = y[0]
            row += 1
            return y, None
        '''
    _, steps = traced(source, "f", np.zeros((2, 3)), tmp_path=tmp_path)
    changed = steps[3].values
    assert [value.name for value in changed] == ["row", "y"]
    assert changed[1].changed.tolist() == [[True] * 3, [False] * 3]


def test_names_and_entries_that_disappear_are_shown(tmp_path):
    source = '''
        def f(x, d):
            y = x + 1
            del x
            d.pop("a")
            del d["b"]
            print(end="")
            return y, None
        '''
    _, steps = traced(source, "f", np.ones(2), {"a": np.ones(1), "b": 1}, tmp_path=tmp_path)
    shown = {step.source.strip(): ([(v.name, v.text) for v in step.values], step.note)
             for step in steps[2:6]}
    assert shown == {
        "del x": ([("x", ": deleted")], ""),
        'd.pop("a")': ([('d["a"]', ": deleted")], ""),
        'del d["b"]': ([("d", ": empty")], ""),
        'print(end="")': ([], "changes nothing"),
    }


def test_error_in_a_traced_function_is_raised_and_ends_the_tracing(tmp_path):
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError):
        traced("def f(x):\n    return x / 0, None\n", "f", 1, tmp_path=tmp_path)
    assert sys.gettrace() is before


def test_layers_contain_only_statements_known_to_the_tracer():
    known = (ast.Assign, ast.AugAssign, ast.Delete, ast.Expr, ast.Return, ast.If, ast.For,
             ast.FunctionDef)
    for name in SUBJECTS:
        for function in functions(name):
            (tree,) = ast.parse(inspect.getsource(function)).body
            inner = {id(node) for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)
                     and part is not tree for node in part.body for node in ast.walk(node)}
            assert all(isinstance(node, known) for node in ast.walk(tree)
                       if isinstance(node, ast.stmt) and id(node) not in inner)
