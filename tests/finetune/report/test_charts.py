"""Charts: axes, ticks, averaging of long lines, tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.finetune.report.charts import MOST_POINTS, Rule, Series, averaged, draw_chart

FINITE = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(st.lists(st.tuples(st.integers(0, 10**9), FINITE), min_size=1, max_size=50))
def test_any_finite_values_are_inside_of_the_chart(pairs: list[tuple[int, float]]) -> None:
    x, y = zip(*sorted(pairs), strict=True)
    chart = draw_chart("t", [Series(name="s", x=x, y=y, kind="points")], x_label="x", y_label="y")
    assert chart is not None
    for left, top, _ in chart.series[0].points:
        assert -20 <= left <= 1020 and -6 <= top <= 306
    assert all(-0.02 <= fraction <= 1.02 for fraction, _ in (*chart.x_ticks, *chart.y_ticks))
    assert 1 <= len(chart.y_ticks) <= 8


def test_values_that_are_not_finite_are_left_out() -> None:
    series = Series(name="s", x=[0, 1, 2], y=[1.0, float("nan"), 3.0])
    chart = draw_chart("t", [series], x_label="x", y_label="y")
    assert chart is not None and [row[0] for row in chart.rows] == ["0", "2"]
    nothing = Series(name="s", x=[0], y=[float("inf")])
    assert draw_chart("t", [nothing], x_label="x", y_label="y") is None


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 12_345])
def test_long_lines_are_averaged(count: int) -> None:
    x, y, per_point = averaged(range(count), range(count))
    assert len(x) <= MOST_POINTS and per_point == -(-count // MOST_POINTS)
    np.testing.assert_allclose(x, y)
    assert x[0] == pytest.approx((min(per_point, count) - 1) / 2)


def test_ticks_are_round_numbers() -> None:
    chart = draw_chart("t", [Series(name="s", x=[0, 10], y=[0, 0.001])], x_label="x", y_label="y")
    assert chart is not None
    assert [label for _, label in chart.y_ticks] == [
        "0.0000",
        "0.0002",
        "0.0004",
        "0.0006",
        "0.0008",
        "0.0010",
    ]
    assert [label for _, label in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_rules_are_placed_on_the_axis() -> None:
    series = Series(name="s", x=[0, 10], y=[0, 1])
    chart = draw_chart("t", [series], x_label="x", y_label="y", rules=[Rule(x=5, text="best")])
    assert chart is not None and chart.rules == ((0.5, "best"),)
