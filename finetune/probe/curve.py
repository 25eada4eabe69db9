"""Scores of several encoders: a table, and a figure over pretraining steps."""

import html
from collections.abc import Sequence
from typing import Any

from kinemae.finetune.report.charts import Chart, Series, draw_chart

_LEFT, _TOP, _WIDTH, _HEIGHT = 80, 30, 1000, 300  # the chart's own coordinates are 1000 x 300


def curve(results: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per encoder: name, step, score, interval and the chosen candidate."""
    return [
        {
            "encoder": name,
            "step": result["probe"]["step"],
            "metric": result["metric"],
            "value": result[result["metric"]],
            "ci95": result["probe"]["interval"]["ci95"],
            "held_out": result["probe"]["chosen"]["held_out"],
            "floor": result["probe"]["floor"]["value"],
            "chosen": result["probe"]["chosen"],
        }
        for name, result in zip(names, results, strict=True)
    ]


def curve_svg(rows: Sequence[dict[str, Any]]) -> str | None:
    """Draw the score over the pretraining steps with its interval and the constant output as SVG.

    Returns:
        None with fewer than two encoders whose step is known.
    """
    known = sorted((row for row in rows if row["step"] is not None), key=lambda row: row["step"])
    if len({row["step"] for row in known}) < 2:
        return None
    chart = _chart(known)
    return None if chart is None else _svg(chart)


def _chart(known: Sequence[dict[str, Any]]) -> Chart | None:
    steps = [row["step"] for row in known]
    limits = [row["ci95"] or (row["value"], row["value"]) for row in known]
    return draw_chart(
        "score by pretraining step",
        [
            Series(
                name="score",
                x=steps,
                y=[row["value"] for row in known],
                kind="dotted",
                low=[low for low, _ in limits],
                high=[high for _, high in limits],
            ),
            Series(name="constant output", x=steps, y=[row["floor"] for row in known], kind="dashed"),
        ],
        x_label="pretraining steps",
        y_label=known[0]["metric"],
    )


def _svg(chart: Chart) -> str:
    score, floor = chart.series
    parts = [f'<path d="{score.band}" fill="#1f77b4" fill-opacity="0.15"/>' if score.band else ""]
    parts += [_line(score.path, "#1f77b4"), _line(floor.path, "#777", dashes="8 6")]
    parts += [
        f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="#1f77b4"><title>{html.escape(text)}</title></circle>'
        for x, y, text in score.points
    ]
    parts += [_text(x * _WIDTH, _HEIGHT + 24, label, "middle") for x, label in chart.x_ticks]
    parts += [_text(-10, (1 - y) * _HEIGHT + 5, label, "end") for y, label in chart.y_ticks]
    parts += [
        _text(_WIDTH / 2, _HEIGHT + 52, chart.x_label, "middle"),
        _text(0, -10, f"{chart.y_label}, 95 % interval; dashed: constant output", "start"),
        f'<path d="M0 0V{_HEIGHT}H{_WIDTH}" fill="none" stroke="#999"/>',
    ]
    width, height = _LEFT + _WIDTH + 40, _TOP + _HEIGHT + 70
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="16"><rect width="{width}" height="{height}" fill="white"/>'
        f'<g transform="translate({_LEFT} {_TOP})">\n' + "\n".join(filter(None, parts)) + "\n</g></svg>\n"
    )


def _line(path: str, colour: str, *, dashes: str = "none") -> str:
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"/>'


def _text(x: float, y: float, label: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(label)}</text>'
