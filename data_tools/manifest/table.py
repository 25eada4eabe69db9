"""Tables of videos, a csv or a jsonl file: known columns, and any others with one type each."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import COLUMNS, DESCRIPTION_KEY
from kinemae.data_tools.manifest.entries import Entry, class_number, placed
from kinemae.data_tools.manifest.labels import check_label, label_text
from kinemae.data_tools.manifest.videos import SPLITS, SourceVideo, split_name

KNOWN = ("path", "label", "split", "group", "start_s", "end_s")
TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "text": str}
RESERVED = frozenset({*COLUMNS.names, "label_index", DESCRIPTION_KEY}) - set(
    KNOWN
)  # names of ours in index and json
_PATTERNS = {
    "int": r"0|-?[1-9][0-9]{0,17}",  # not 007: that is a name
    "float": r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?",
    "text": r"(?s:.*)",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table; empty cells are left out."""

    where: str
    cells: Mapping[str, Any]


def check_columns(where: str, columns: Sequence[str]) -> None:
    """Refuse a header without a path, with repeats, or with names that the index uses for itself.

    Raises:
        DataError: as said; the message names the line.
    """
    if "path" not in columns:
        raise DataError(
            f"{where}: expected a column path, and perhaps {', '.join(KNOWN[1:])} and any of your own, "
            f"got {', '.join(columns)!r}"
        )
    for position, name in enumerate(columns):
        if not name or name in columns[:position]:
            raise DataError(
                f"{where}: column {position + 1} is called {name!r}: every column needs its own name"
            )
        if name in RESERVED:
            raise DataError(
                f"{where}: the index has a column {name!r} of its own; fix: add "
                f"source.args.columns.my_{name}={name} to call yours something else, or "
                f"source.args.columns.{name}=null to leave it out"
            )


def parse_column(rows: Sequence[Row], column: str, kind: str | None) -> list[Row]:
    """The column's text as int, float or text: what `kind` says, else the narrowest that fits all rows.

    Raises:
        DataError: a cell does not fit `kind`; the message names the line.
    """
    texts = [row.cells[column] for row in rows if column in row.cells]
    fitting = kind or next(name for name in TYPES if all(_fits(text, name) for text in texts))
    for row in rows:
        if column in row.cells and not _fits(row.cells[column], fitting):
            raise DataError(f"{row.where}: {column} must be of type {fitting}, got {row.cells[column]!r}")
    convert = TYPES[fitting]
    return [
        Row(where=row.where, cells={**row.cells, column: convert(row.cells[column])})
        if column in row.cells
        else row
        for row in rows
    ]


def one_type(rows: Sequence[Row], column: str) -> list[Row]:
    """Rows in which the column's values are all int, all float (where one is) or all text.

    Raises:
        DataError: a value is of another type than the first, or of none of these; the message names the line.
    """
    first: Any = None
    for row in rows:
        value = row.cells.get(column)
        good = isinstance(value, str | int | float) and not isinstance(value, bool)
        if value is not None and (not good or (isinstance(value, float) and not math.isfinite(value))):
            raise DataError(f"{row.where}: {column} must be text or a finite number, got {value!r}")
        first = value if first is None else first
        if value is not None and isinstance(value, str) != isinstance(first, str):
            raise DataError(
                f"{row.where}: {column} is {value!r}, further up {first!r}: give a column one type"
            )
    if any(isinstance(row.cells.get(column), float) for row in rows):
        return [
            Row(where=row.where, cells={**row.cells, column: float(row.cells[column])})
            if column in row.cells
            else row
            for row in rows
        ]
    return list(rows)


def entry_of(row: Row, folder: Path, classes: int, *, strip: str = "") -> Entry:
    """The video that a row means.

    Args:
        folder: where relative paths begin.
        classes: number of classes where labels must be numbers below it, 0 for any labels.
        strip: prefix to remove from the path.

    Raises:
        DataError: the path is missing, a split has an unknown name, a time is none, a label is out of range.
    """
    path = row.cells.get("path")
    if not isinstance(path, str):
        raise DataError(
            f"{row.where}: the path is missing" if path is None else f"{row.where}: path must be text"
        )
    path = path.removeprefix(strip)
    split = _split(row)
    label = None if split == "unlabelled" else _text(row, "label")
    if label is not None:
        label = check_label(row.where, label)
    if label is not None and classes:
        label = class_number(row.where, label, classes)
    start_s, end_s = _seconds(row, "start_s"), _seconds(row, "end_s")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise DataError(f"{row.where}: end_s={end_s:g} must lie after start_s={start_s or 0.0:g}")
    place, url = placed(row.where, folder, path)
    video = SourceVideo(
        path=place,
        url=url,
        name=_name(path, start_s, end_s),
        label=label,
        split=split,
        group=_text(row, "group"),
        start_s=start_s,
        end_s=end_s,
        extra={name: value for name, value in row.cells.items() if name not in KNOWN},
    )
    return Entry(where=row.where, video=video)


def _fits(text: str, kind: str) -> bool:
    matches = re.fullmatch(_PATTERNS[kind], text) is not None
    return matches and (kind != "float" or math.isfinite(float(text)))


def _split(row: Row) -> str | None:
    text = _text(row, "split")
    split = None if text is None else split_name(text)
    if text is not None and split is None:
        raise DataError(f"{row.where}: no split named {text!r}; there is {', '.join(SPLITS)}")
    return split


def _text(row: Row, column: str) -> str | None:
    value = row.cells.get(column)
    text = label_text(value)
    if value is not None and text is None:
        raise DataError(f"{row.where}: {column} must be text or a whole number, got {value!r}")
    return text or None


def _seconds(row: Row, column: str) -> float | None:
    value = row.cells.get(column)
    if value is None:
        return None
    if isinstance(value, str) and _fits(value, "float"):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        hint = "; fix: write a decimal point" if re.fullmatch(r"[0-9]+,[0-9]+", str(value)) else ""
        raise DataError(f"{row.where}: {column} must be seconds, 0 or more, got {value!r}{hint}")
    return float(value)


def _name(path: str, start_s: float | None, end_s: float | None) -> str:
    """Several parts of one video have names of their own: a/b.mp4 from 2 to 3.5 s is a/b#2-3.5.mp4."""
    if start_s is None and end_s is None:
        return path
    part = f"#{start_s or 0.0:.10g}-{'' if end_s is None else f'{end_s:.10g}'}"
    ending = Path(path).suffix
    return f"{path.removesuffix(ending)}{part}{ending}"
