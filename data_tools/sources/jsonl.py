"""Table of videos as a jsonl file: one json object per line, with the columns of a csv file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.table import (
    KNOWN,
    Row,
    TableArguments,
    check_header,
    known_names,
    unify_columns,
)
from kinemae.data_tools.manifest.text import numbered_lines
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sources.base import Source, local_path
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class JsonlSource(TableArguments, Source):
    """Reads lines such as {"path": "a.mp4", "label": "run", "group": "camera 3", "score": 0.5}.

    Columns are those of `CsvSource`, with the types of JSON. A line may omit a column or set it to null. The
    arguments are those of `TableArguments`.
    """

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        lines = [_row(where, line) for where, line in numbered_lines(root, self.encoding)]
        names, rows = self._renamed(lines)
        rows = unify_columns(rows, [name for name in names if name not in KNOWN])
        return self.manifest(root, str(root), names, rows)

    def _renamed(self, rows: list[Row]) -> tuple[list[str], list[Row]]:
        """The columns by their names in the index, and the rows with these names."""
        header = list(dict.fromkeys(name for row in rows for name in row.cells))
        names = dict(zip(header, known_names(header, self.columns), strict=True))
        kept = list(dict.fromkeys(name for name in names.values() if name is not None))
        if rows:
            cells = [str(rows[0].cells.get(name, "")) for name in header]
            check_header(rows[0].where, header, kept, self.columns, cells, has_header=False)
        renamed = [Row(where=row.where, cells=_named(row.where, row.cells, names)) for row in rows]
        return kept, renamed


def _named(where: str, cells: Mapping[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for old, value in cells.items():
        name = names[old]
        if name in found:
            raise DataError(f"{where}: expected one column {name!r}, got two; fix: remove one of them")
        if name is not None:
            found[name] = value
    return found


def _row(where: str, line: str) -> Row:
    try:
        cells = json.loads(line, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise DataError(f"{where}: expected one json object, got {line[:60]!r} ({error})") from error
    if not isinstance(cells, dict):
        raise DataError(
            f'{where}: expected a json object such as {{"path": "a.mp4"}}, got {line[:60]!r}; '
            "fix: write one object on each line"
        )
    return Row(where=where, cells={name: value for name, value in cells.items() if value not in (None, "")})


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) != len(pairs):
        raise ValueError("a key is repeated")
    return cells
