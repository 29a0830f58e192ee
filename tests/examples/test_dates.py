import re
from datetime import date

import numpy as np
import pytest

from examples import dates
from npgpt.models.transformer import END


def ways(day, draws=500):
    rng = np.random.default_rng(0)
    return {dates.written(day, rng) for _ in range(draws)}


def test_a_day_is_written_in_many_formats():
    found = ways(date(1998, 3, 3))
    assert found >= {"3 mar 1998", "the 3rd of march, 1998", "tuesday, 3 march 1998", "3.3.1998",
                     "03/03/98", "tue, mar 3rd, 1998", "1998 march 3"}
    assert len(found) == 12 * 2 + 4             # twelve formats have words, long or short


@pytest.mark.parametrize(("day", "nth"), [
    (1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"),
    (21, "21st"), (22, "22nd"), (23, "23rd"), (30, "30th"), (31, "31st"),
])
def test_days_have_the_right_ending(day, nth):
    assert f"january {nth}, 2001" in ways(date(2001, 1, day))


def test_no_two_days_have_the_same_text():
    rng = np.random.default_rng(0)
    read = {}
    for day in dates.split(0)[0][:3000]:
        for _ in range(20):
            assert read.setdefault(dates.written(day, rng), day) == day


def test_held_out_days_are_a_tenth_and_never_trained_on():
    train, held_out = dates.split(1)
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == len({*train, *held_out}) == 36525
    assert len(held_out) == 3652
    assert dates.split(1) == (train, held_out) != dates.split(2)


def test_decoding_undoes_encoding():
    texts = sorted(ways(date(2024, 9, 30)))
    idx = dates.encoded(texts, dates.SOURCE)
    assert idx.shape == (len(texts), max(map(len, texts)))
    assert dates.decoded(idx, dates.SOURCE) == texts
    answers = dates.encoded(["1998-03-03", "2049"], dates.TARGET, end=[END])
    assert answers.shape == (2, dates.ANSWER) and (answers == END).sum(1).tolist() == [1, 1]
    assert dates.decoded(answers, dates.TARGET) == ["1998-03-03", "2049"]


def test_batches_are_a_function_of_seed_and_step():
    days, _ = dates.split(1)
    first, again, other = (dates.batch(days, 1, step) for step in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[1], other[1])
    assert set(dates.decoded(first[1], dates.TARGET)) <= {day.isoformat() for day in days}


@pytest.fixture
def few(monkeypatch):
    """Only twenty days are held out."""
    train, held_out = dates.split(1)
    monkeypatch.setattr(dates, "split", lambda seed: (train, held_out[:20]))


def output_of(arguments, capsys):
    assert dates.main(arguments) == 0
    return re.sub(r" +\d+ s\b", "", capsys.readouterr().out)


def test_same_seed_gives_the_same_answers(few, capsys):
    first, again, other = (output_of(["--steps", "3", "--seed", seed], capsys) for seed in "112")
    assert first == again != other
    assert "of all 20 held-out dates right" in first


def test_cross_attention_is_plotted(few, matplotlib, capsys, tmp_path):
    path = tmp_path / "attention.png"
    assert str(path) in output_of(["--steps", "1", "--plot", str(path)], capsys)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_missing_matplotlib_is_reported_before_the_training(capsys, monkeypatch):
    monkeypatch.setitem(dates.sys.modules, "matplotlib.figure", None)
    assert dates.main(["--plot", "attention.png"]) == 2
    assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--step", "5"], ["--seed", "x"]])
def test_invalid_flags_are_refused(arguments, capsys):
    assert dates.main(arguments) == 2
    assert capsys.readouterr().err.startswith("dates.py: ")
