"""Every layer in LAYERS has a derivation in docs/backprop.md and a case for the gradient checks."""

import re
from pathlib import Path

from npgpt.layers import LAYERS
from tests.cases import CASES

BACKPROP = Path(__file__).parent.parent.parent / "docs" / "backprop.md"


def test_every_layer_has_a_section_with_its_name_in_backprop():
    sections = re.findall(r"^## (\w+) — `layers/", BACKPROP.read_text(encoding="utf-8"), re.M)
    assert [name for name in LAYERS if name not in sections] == []


def test_every_layer_has_a_case_that_checks_its_gradients():
    assert [name for name in LAYERS if name not in CASES] == []
