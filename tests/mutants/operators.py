"""Mutations that mutmut does not make: common mistakes, most of them of mathematics.

    a @ b        becomes  b @ a                    x.T, x.swapaxes(...)    becomes  x
    x.mean(...)  becomes  x.sum(...), and back     keepdims=True           is dropped
    a + b        becomes  a, and b;  a - b: a      x += y, x -= y          are dropped
    a constant   is off by one part in a million   return da, db           becomes  return db, da
    if a: ...    becomes  if not a                 f(x), as a statement,   is dropped
    ... for x in y if a   loses  if a

`mutants_of` yields them; `install` puts one in place of the code that runs.
"""

import ast
import copy
import sys
import types
from dataclasses import dataclass

MILLIONTH = 1 + 1e-6


@dataclass
class Mutant:
    """A module's syntax tree with one change."""

    module: str
    function: str        # with its class, or "constant"
    line: str            # as it is
    changed: str         # as the mutant has it
    tree: ast.Module


def mutants_of(module, source, constants=True):
    """Name and source of a module -> its mutants, one after another. constants: whether those are
    changed by a millionth."""
    count = _Change(None, constants)
    count.visit(ast.parse(source))
    for number in range(count.seen):
        tree = ast.parse(source)
        change = _Change(number, constants)
        tree = ast.fix_missing_locations(change.visit(tree))
        yield Mutant(module, change.function, change.line, change.changed, tree)


def install(mutant, module):
    """Replace the code of the functions, and the constants, of an imported module by the mutant's.
    Existing references to the functions run the new code too."""
    new = types.ModuleType(module.__name__)
    new.__dict__.update(module.__dict__)
    exec(compile(mutant.tree, module.__file__, "exec"), new.__dict__)
    before = dict(vars(module))
    _replace(before, vars(new), module)
    for name, value in vars(new).items():
        if isinstance(before.get(name), (int, float, str, tuple)) and value != before[name]:
            for other in list(sys.modules.values()):       # also where it was imported
                if getattr(other, "__dict__", {}).get(name) is before[name]:
                    setattr(other, name, value)
        elif isinstance(before.get(name), dict) and value != before[name] and name.isupper():
            before[name].update(value)


def _replace(old, new, module):
    for name, value in new.items():
        before, value = _function(old.get(name)), _function(value)
        if isinstance(before, types.FunctionType) and before.__module__ == module.__name__:
            before.__code__, before.__defaults__ = value.__code__, value.__defaults__
            before.__kwdefaults__ = value.__kwdefaults__
        elif isinstance(before, type) and before.__module__ == module.__name__:
            _replace(dict(vars(before)), vars(value), module)


def _function(value):
    """The function within a property, a class method or a decorator."""
    for name in ("fget", "__func__", "__wrapped__"):
        value = getattr(value, name, value)
    return value


class _Change(ast.NodeTransformer):
    """Makes the change with a given number, or only counts the possible changes."""

    def __init__(self, number, constants):
        self.number, self.constants = number, constants
        self.seen = 0
        self.function, self.line, self.changed = "constant", "", ""
        self._class, self._function = "", "constant"
        self._statement = None

    def visit(self, node):
        if isinstance(node, ast.ClassDef):        # its functions alone; fields are set only once
            outer, self._class = self._class, f"{node.name}."
            node.body = [self.visit(part) if isinstance(part, ast.FunctionDef) else part
                         for part in node.body]
            self._class = outer
            return node
        if isinstance(node, ast.FunctionDef):
            outer = self._function
            if outer == "constant":
                self._function = self._class + node.name
            self._statement = node                # for its defaults; the body has its own
            node = self._generic(node)
            self._function = outer
            return node
        if isinstance(node, ast.stmt):
            self._statement = node
        for changed in self._changes(node):
            if self.seen == self.number:
                self.function = self._function
                self.line = ast.unparse(self._statement).splitlines()[0]
                self.seen += 1
                self.changed = ast.unparse(changed).strip().splitlines()[0]
                return changed
            self.seen += 1
        return self._generic(node)

    @property
    def _is_constant(self):
        return self.constants and self._function == "constant"

    def _generic(self, node):
        statement = self._statement
        node = super().generic_visit(node)
        self._statement = statement
        return node

    def _changes(self, node):
        """The possible replacements of a node."""
        match node:
            case ast.BinOp(left, ast.MatMult(), right) if ast.dump(left) != ast.dump(right):
                yield ast.BinOp(right, ast.MatMult(), left)
            case ast.Attribute(value, "T"):
                yield value
            case ast.Call(ast.Attribute(value, "swapaxes")):
                yield value
            case ast.Call(ast.Attribute(value, "mean" | "sum" as name)):
                other = copy.deepcopy(node)
                other.func.attr = {"mean": "sum", "sum": "mean"}[name]
                yield other
            case ast.BinOp(left, ast.Add(), right):
                yield from (left, right)
            case ast.BinOp(left, ast.Sub(), right):
                yield left
            case ast.AugAssign(_, ast.Add() | ast.Sub()):
                yield ast.Pass()
            case ast.Return(ast.Tuple(elts)):
                for i in range(len(elts) - 1):
                    swapped = [*elts[:i], elts[i + 1], elts[i], *elts[i + 2:]]
                    yield ast.Return(ast.Tuple(swapped, ast.Load()))
            case ast.If(test) if self._function != "constant":
                yield ast.If(ast.UnaryOp(ast.Not(), test), node.body, node.orelse)
            case ast.Expr(ast.Call()) if self._function != "constant" and not _uses_super(node):
                yield ast.Pass()
            case ast.comprehension(ifs=[_, *_]):
                yield ast.comprehension(node.target, node.iter, [], node.is_async)
            case ast.Assign([ast.Name()], value) if self._is_constant and _number(value):
                other = copy.deepcopy(node)
                other.value = ast.BinOp(value, ast.Mult(), ast.Constant(MILLIONTH))
                yield other
        if isinstance(node, ast.Call) and any(k.arg == "keepdims" for k in node.keywords):
            other = copy.deepcopy(node)
            other.keywords = [k for k in node.keywords if k.arg != "keepdims"]
            yield other
        if (self.constants and isinstance(node, ast.Constant) and isinstance(node.value, float)
                and node.value):
            yield ast.Constant(node.value * MILLIONTH)


def _uses_super(node):
    """Without super() a method has no variable __class__, and cannot replace the one that has."""
    return any(isinstance(part, ast.Name) and part.id == "super" for part in ast.walk(node))


def _number(node):
    """Whether a module's constant is arithmetic on numbers that are not all integers."""
    parts = list(ast.walk(node))
    if any(isinstance(p, (ast.Dict, ast.Tuple, ast.List)) for p in parts):
        return False                              # their numbers are constants of their own
    return any(isinstance(p, ast.Constant) and isinstance(p.value, float) for p in parts) or any(
        isinstance(p, ast.Attribute) and p.attr in ("sqrt", "pi") for p in parts)
