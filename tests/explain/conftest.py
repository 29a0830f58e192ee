"""A layer of another source in the place of a real one."""

import sys
from pathlib import Path

import pytest

from npgpt.layers import LAYERS, layernorm


@pytest.fixture
def edited_layernorm(tmp_path_factory, monkeypatch):
    """-> function: replaces a part of layernorm's source by another, and runs the result."""

    def edit(before, after):
        source = Path(layernorm.__file__).read_text(encoding="utf-8")
        assert source.count(before) == 1
        path = tmp_path_factory.mktemp("edited") / "edited.py"
        path.write_text(source.replace(before, after), encoding="utf-8")
        module = type(layernorm)("edited")
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, "edited", module)
        monkeypatch.setitem(LAYERS, "layernorm",
                            (module.layernorm_forward, module.layernorm_backward))

    return edit
