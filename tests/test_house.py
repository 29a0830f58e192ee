"""The house: which room may import which, and what is said in one place only."""

import ast
import re
from pathlib import Path

import pytest

from npgpt.layers import LAYERS
from tests.mutants.groups import MODULES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "npgpt"
ORDER = ["explain", "report", "training", "checkpoints", "optim", "parallel", "models", "kernels",
         "text", "layers", "lecture", "cli", "gradcheck", "durable", "gguf_file",
         "gguf_header", "reading",
         "backend", "host", "errors"]
DOORS = {("models/model.py", "checkpoints")}      # save_pretrained and from_pretrained
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room(parts):
    """Parts of a module's path below npgpt -> its room."""
    return parts[0] if parts else ""


def imports(path):
    """-> the modules of npgpt that a file imports, as parts of their paths."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("npgpt"):
            parts = node.module.split(".")[1:]
            for alias in node.names:
                yield parts if parts else [alias.name]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1:] for alias in node.names
                        if alias.name.startswith("npgpt."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_house(path):
    name = str(path.relative_to(PACKAGE))
    own = room([name.removesuffix(".py").split("/")[0]])
    if own in ("__init__", "__main__"):           # the front door shows every room
        return
    for parts in imports(path):
        other = room(parts)
        if other == own or (name, other) in DOORS or other == "__version__":
            continue
        assert ORDER.index(own) < ORDER.index(other), f"{name} imports {'.'.join(parts)}"


def test_every_room_stands_in_the_order():
    rooms = {room([path.relative_to(PACKAGE).parts[0].removesuffix(".py")]) for path in SOURCES}
    assert rooms - {"__init__", "__main__"} == set(ORDER)


def test_layers_import_nothing_but_the_backend():
    for path in (PACKAGE / "layers").glob("*.py"):
        assert {room(parts) for parts in imports(path)} <= {"layers", "backend"}, path.name


def test_every_room_says_what_it_is_for():
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


BELOW = {"backend.py", "durable.py", "gguf_file.py", "gguf_header.py", "host.py", "reading.py",
         "layers", "kernels", "models", "optim", "parallel", "text", "checkpoints", "gradcheck",
         "lecture"}


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] in BELOW],
    ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_flag_is_spelled_below_the_commands(path):
    """Errors name an option in backticks, and the command spells it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            flags = re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value)
            assert flags in ([], ["--std"]), node.value          # a compiler's option


def test_characters_are_no_business_of_other_rooms():
    for path in SOURCES:
        if path.parent.name != "text":
            assert "CharTokenizer" not in path.read_text(encoding="utf-8"), path


def test_yardsticks_are_not_imported():
    for path in SOURCES:
        assert not re.search(r"^\s*(import|from) (torch|transformers)\b",
                             path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_mutants_are_made_of_every_layer():
    missing = [name for name, layer in LAYERS.items()
               if layer.forward.__module__ not in MODULES]
    assert missing == []


def test_reference_trainer_imports_nothing_that_it_checks():
    path = ROOT / "tests/training/reference.py"
    assert {room(parts) for parts in imports(path)} == {"layers"}
