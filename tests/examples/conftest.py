import os
from pathlib import Path

import pytest

from npgpt.text.load import Unavailable, load_text


@pytest.fixture
def shakespeare(monkeypatch):
    """The text; the working directory is where the examples find it."""
    monkeypatch.chdir(Path(__file__).parents[2])
    try:
        return load_text("shakespeare").text
    except Unavailable as error:
        if os.environ.get("NPGPT_REQUIRE_YARDSTICKS"):
            raise
        pytest.skip(str(error))
