"""Runs a function and records what each statement makes.

Python calls a trace function before each line (sys.settrace). The recorder compares the function's
names before and after each statement. So it finds everything that the statement made or changed,
also an array that a called function changed in place. It knows nothing about particular layers.
"""

import ast
import inspect
import sys
import textwrap
from dataclasses import dataclass, field

import numpy as np

from npgpt.explain.values import Value, described, differences, snapshot


@dataclass
class Step:
    """A statement that ran, or a line between two of them that did not run."""

    first: int                  # line in the file
    last: int
    source: str                 # as in the file
    ran: bool = True
    values: list[Value] = field(default_factory=list)
    note: str = ""              # the result of a condition; the end of a loop; no change

    @property
    def is_idle(self):
        """Whether it is code that did not run."""
        code = self.source.partition("#")[0].strip()
        return not self.ran and code not in ("", "else:")


def trace(function, call, seen, returns):
    """Run call(), which calls the function once -> the result of call(), and the Steps.

    seen: the arrays that were shown before. returns: names for the returned values, used for those
    that are not variables of the function.
    """
    recorder = _Recorder(inspect.unwrap(function), seen, returns)
    before = sys.gettrace()
    sys.settrace(recorder)
    try:
        result = call()
    finally:
        sys.settrace(before)
    return result, recorder.steps


class _Recorder:
    """The trace function and the steps it has recorded so far."""

    def __init__(self, function, seen, returns):
        self.function, self.seen, self.returns = function, seen, returns
        lines, start = inspect.getsourcelines(function)
        self.lines = {start + n: line.rstrip("\n") for n, line in enumerate(lines)}
        (self.definition,) = ast.parse(textwrap.dedent("".join(lines))).body
        ast.increment_lineno(self.definition, start - 1)
        self.statements = {line: statement for statement in _statements(self.definition.body)
                           for line in range(statement.first, statement.last + 1)}
        self.steps = []
        self.current = None         # the statement that is running
        self.before = {}            # a snapshot of the names before it

    def __call__(self, frame, event, argument):
        """Called for every function call. Only the lines of self.function are traced."""
        if frame.f_code is not self.function.__code__:
            return None
        self._begin(frame)
        return self._line

    def _line(self, frame, event, argument):
        if event == "line":
            statement = self.statements[frame.f_lineno]
            if statement is not self.current:       # else: another line of the same statement
                self._end(frame, statement)
                self.current = statement
        elif event == "return":
            self._end(frame, None)
            if isinstance(self.current.node, ast.Return) and argument is not None:
                self.steps[-1].values = self._returned(argument)
            self._pass_over(max(self.lines) + 1)
        return self._line

    def _begin(self, frame):
        """The first step: the head of the function, its arguments and the constants it reads."""
        first = self.definition.body[0]
        has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        last = first.end_lineno if has_docstring else first.lineno - 1
        step = self._step(min(self.lines), last)
        constants = {name: frame.f_globals[name] for name in self.function.__code__.co_names
                     if isinstance(frame.f_globals.get(name), (int, float))}
        for name, held in {**frame.f_locals, **constants}.items():
            step.values += described(name, held, self.seen, step.first)
        self.before = snapshot(frame.f_locals)

    def _end(self, frame, following):
        """Record the statement that has just run; `following` runs next."""
        after = snapshot(frame.f_locals)
        if self.current is not None:
            node = self.current.node
            step = self._step(self.current.first, self.current.last)
            inside = following is not None and _contains(node, following)
            if isinstance(node, ast.If):
                step.note = "yes" if inside else "no"
            elif isinstance(node, ast.For) and not inside:
                step.note = "end of the loop"
            if not (isinstance(node, ast.For) and not inside):
                step.values = differences(self.before, after, _targets(node), self.seen, step.first)
            if isinstance(node, ast.Expr) and not step.values:
                step.note = "changes nothing"
        self.before = after

    def _step(self, first, last):
        self._pass_over(first)
        source = "\n".join(self.lines[line] for line in range(first, last + 1))
        self.steps.append(Step(first, last, source))
        return self.steps[-1]

    def _pass_over(self, line):
        """Record the lines between the last step and this one: they did not run. Lines that are
        already recorded, as in the next pass of a loop, are left out."""
        begun = self.steps[-1].last + 1 if self.steps else line
        known = {n for step in self.steps for n in range(step.first, step.last + 1)}
        self.steps += [Step(n, n, self.lines[n], ran=False)
                       for n in range(begun, line) if n not in known]

    def _returned(self, result):
        """The values that the return statement returned."""
        node = self.current.node.value
        whole = isinstance(node, ast.Tuple) and len(node.elts) == len(self.returns)
        parts = zip(node.elts, self.returns, result) if whole else [(node, self.returns[0], result)]
        values = []
        for part, name, held in parts:
            found = described(name, held, self.seen, self.current.first)
            if name == "cache":
                found = [Value(name, text=f": {_packed(part, held)}")]
            elif isinstance(part, ast.Name) and found[0].origin and part.id != name:
                found[0].origin = part.id, found[0].origin[1]
            values += found
        return values


@dataclass(eq=False)
class _Statement:
    """A simple statement, or the head of an if or a loop."""

    first: int
    last: int
    node: ast.stmt


def _statements(body):
    """Every statement of a body and of the bodies inside it."""
    for node in body:
        inner = [] if isinstance(node, ast.FunctionDef) else [
            getattr(node, name, []) for name in ("body", "orelse", "finalbody")
        ]
        if any(inner):
            heads = [child.end_lineno for child in ast.iter_child_nodes(node)
                     if isinstance(child, ast.expr)]
            yield _Statement(node.lineno, max([node.lineno, *heads]), node)
        else:
            yield _Statement(node.lineno, node.end_lineno, node)
        for statements in inner:
            yield from _statements(statements)


def _contains(node, statement):
    """Whether a statement is in the body of an if or a loop, not in its else."""
    body = getattr(node, "body", None)
    return bool(body) and body[0].lineno <= statement.first <= body[-1].end_lineno


def _targets(node):
    """The names that a statement assigns to, in order. dw[i] = ... assigns to dw."""
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    found = [part for target in targets if target is not None for part in ast.walk(target)]
    return list(dict.fromkeys(part.id for part in found
                              if isinstance(part, ast.Name) and _is_assigned(part, targets)))


def _is_assigned(name, targets):
    """dw[start:start + T] = ... assigns to dw; start and T are only read."""
    return isinstance(name.ctx, ast.Store) or any(
        part.value is name for target in targets for part in ast.walk(target)
        if isinstance(part, ast.Subscript)
    )


def _packed(node, held):
    """The cache that a forward returns: its parts with their names in the source and shapes."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    items = held if isinstance(node, ast.Tuple) else [held]
    return ", ".join(
        ast.unparse(part) + (f" {item.shape}" if isinstance(item, np.ndarray) and item.ndim else "")
        for part, item in zip(parts, items)
    )
