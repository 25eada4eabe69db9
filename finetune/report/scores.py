"""Scores of a run: the headline with its floors, and all scores with their meaning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinemae.finetune.report.classes import floors
from kinemae.finetune.report.metric_names import metric, scalars
from kinemae.finetune.report.outputs import ClassOutput, Output
from kinemae.finetune.report.run_files import RunFiles


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number at the top of the page."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A horizontal bar; lengths are fractions of the width.

    Attributes:
        low, high: ends of the confidence interval; None without one.
        is_floor: whether it is a value that needs no model.
    """

    name: str
    text: str
    fraction: float
    colour: int = 0
    low: float | None = None
    high: float | None = None
    interval: str = ""
    is_floor: bool = False


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """A row of the table of scores."""

    key: str
    title: str
    value: str
    interval: str
    floor: str
    meaning: str


def interval_of(result: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """The 95 % interval of a metric; None if the result has none."""
    *path, name = key.split(".")
    for part in path:
        result = result.get(part) or {}
    found = result.get(f"{name}_ci95")
    if isinstance(found, list) and len(found) == 2 and None not in found:
        return float(found[0]), float(found[1])
    return None


def value_of(result: Mapping[str, Any], key: str) -> float | None:
    """The value of a dotted key; None if it is missing or undefined."""
    return scalars(dict(result)).get(key)


def interval_text(key: str, interval: tuple[float, float] | None) -> str:
    """An interval in the unit of its metric."""
    if interval is None:
        return ""
    about = metric(key)
    if about.is_fraction:
        return f"95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
    return f"95 % interval {about.text(interval[0])} to {about.text(interval[1])}"


def bar(  # noqa: PLR0913 - the parts of a bar, all by name
    name: str,
    key: str,
    value: float,
    interval: tuple[float, float] | None = None,
    *,
    limit: float = 1.0,
    colour: int = 0,
    is_floor: bool = False,
) -> Bar:
    """The bar of a score; `limit` has the full length."""
    low, high = (None, None) if interval is None else (_share(end, limit) for end in interval)
    return Bar(
        name=name,
        text=metric(key).text(value),
        fraction=_share(value, limit),
        colour=colour,
        low=low,
        high=high,
        interval=interval_text(key, interval).removeprefix("95 % interval "),
        is_floor=is_floor,
    )


def _share(value: float, limit: float) -> float:
    return min(max(value / limit, 0.0), 1.0)


def headline_bars(run: RunFiles, outputs: Sequence[Output]) -> list[Bar]:
    """The run's score beside the floors; empty without a score."""
    value = value_of(run.result, run.metric)
    if value is None:
        return []
    interval = interval_of(run.result, run.metric)
    floor_levels = floor_values(run.result, run.metric, outputs)
    limit = 1.0
    if not metric(run.metric).is_fraction:
        limit = max(map(abs, (value, *floor_levels.values(), *(interval or ())))) or 1.0
    levels = {
        name: bar(name, run.metric, level, limit=limit, colour=5, is_floor=True)
        for name, level in floor_levels.items()
    }
    return [bar("This run", run.metric, value, interval, limit=limit), *levels.values()]


def floor_values(result: Mapping[str, Any], key: str, outputs: Sequence[Output]) -> dict[str, float]:
    """Scores without a model, by name."""
    single = outputs[0] if len(outputs) == 1 and isinstance(outputs[0], ClassOutput) else None
    found = None if single is None or key not in ("top1", "accuracy") else floors(single)
    if found is not None:
        return {
            f"Most frequent class ({found.majority_class})": found.majority,
            "Random class (chance)": found.chance,
        }
    level = scalars(dict(result.get("floor") or {})).get(key)
    return {} if level is None else {"Floor, without the videos": level}


def score_rows(result: Mapping[str, Any]) -> list[ScoreRow]:
    """All scores of a result."""
    rows, floor = [], scalars(dict(result.get("floor") or {}))
    found = scalars(dict(result))
    for key, value in found.items():
        if _is_repeated(key, found, result):
            continue
        about = metric(key)
        interval = interval_of(result, key)
        better = {True: "higher is better", False: "lower is better", None: ""}[about.maximize]
        rows.append(
            ScoreRow(
                key=key,
                title=about.title,
                value=about.text(value),
                interval=interval_text(key, interval).removeprefix("95 % interval "),
                meaning="; ".join(part for part in (about.meaning, better) if part),
                floor=metric(key).text(floor[key]) if key in floor else "",
            )
        )
    return rows


def _is_repeated(key: str, found: Mapping[str, float], result: Mapping[str, Any]) -> bool:
    """Check for a second name of a score, or scores with unreadable videos if all were readable."""
    if "counting_skipped." in key:
        return not result.get("skipped")
    prefix = key.removesuffix("balanced_accuracy")
    return prefix != key and f"{prefix}mean_class_accuracy" in found
