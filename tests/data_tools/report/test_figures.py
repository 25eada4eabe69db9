"""Histograms count every value once, between round bin edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.report.figures import histogram, ranking, short, size_text, time_text
from tests.seeds import examples

numbers = st.lists(st.floats(0, 1e7, allow_subnormal=False), min_size=1, max_size=50)


@examples(200)
@given(values=numbers, others=st.lists(st.floats(0, 1e7, allow_subnormal=False), max_size=20))
def test_every_value_is_counted_once_and_the_bars_fill_the_width(
    values: list[float], others: list[float]
) -> None:
    drawn = histogram("Length", "s", [np.array(values), np.array(others)])
    counts = np.array([bar.counts for bar in drawn.bars]).sum(axis=0)
    assert counts.tolist() == [len(values), len(others)]
    assert sum(bar.width for bar in drawn.bars) == pytest.approx(1)
    assert max(lower + height for bar in drawn.bars for _, lower, height in bar.segments) == pytest.approx(1)
    assert len(drawn.bars) <= 60 and 1 <= len(drawn.ticks) <= 10
    assert all(0 <= share <= 1 + 1e-9 for share, _ in drawn.ticks)


def test_values_of_many_magnitudes_get_a_logarithmic_axis() -> None:
    drawn = histogram("Length", "s", [np.array([0.5, 3.0, 4000.0])])
    assert drawn.is_logarithmic
    assert drawn.bars[0].text == "0.5 to 1 s: 1"
    assert drawn.summary == "0.5 to 4,000 s, median 3 s"
    assert not histogram("Length", "s", [np.array([1.0, 5.0])]).is_logarithmic


def test_one_value_alone_is_one_bar() -> None:
    drawn = histogram("Aspect ratio", "", [np.array([1.5, 1.5])])
    assert [bar.counts for bar in drawn.bars if bar.segments] == [(2,)]
    assert drawn.summary == "1.5, median 1.5"


def test_a_ranking_is_sorted_and_folds_many_rows() -> None:
    names = [f"class {number}" for number in range(1500)]
    counts_SX = np.stack([np.arange(1500), np.ones(1500, dtype=int)])
    ranked = ranking("Classes", names, counts_SX, shown=30)
    assert (len(ranked.rows), len(ranked.folded), ranked.left_out) == (30, 970, 500)
    assert ranked.rows[0].name == "class 1499" and ranked.rows[0].total == 1500
    assert sum(ranked.rows[0].widths) == pytest.approx(1)


@pytest.mark.parametrize(
    "text, expected",
    [
        (short(0), "0"),
        (short(0.01234), "0.0123"),
        (short(29.97), "30"),
        (short(12345.6), "12,346"),
        (size_text(999), "999 B"),
        (size_text(1_234_567), "1.23 MB"),
        (time_text(2), "2 s"),
        (time_text(150), "2.5 min"),
        (time_text(36_000), "10 h"),
    ],
)
def test_numbers_are_formatted(text: str, expected: str) -> None:
    assert text == expected
