"""A table of videos with one json object a line, of the same columns as a csv file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.columns import (
    check_labelled,
    check_names,
    known_names,
    require_columns,
    require_path,
)
from kinemae.data_tools.manifest.entries import (
    check_list_arguments,
    folder_of_videos,
    listing_of,
    numbered_classes,
    numbered_lines,
)
from kinemae.data_tools.manifest.resolve_paths import Searched
from kinemae.data_tools.manifest.table import KNOWN, Row, check_columns, entry_of, one_type
from kinemae.data_tools.manifest.text import check_encoding
from kinemae.data_tools.manifest.videos import Listing
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class JsonlSource(Source):
    """Reads lines such as {"path": "a.mp4", "label": "run", "group": "camera 3", "score": 0.5}.

    Columns are those of `CsvSource`, their types are json's. Lines may leave columns out, as does null.

    Args:
        columns: the file's names of columns by ours, as in {path: file_name, label: class}; null leaves a
            column out.
        encoding: of the file; "" reads UTF-8, and UTF-16 with a byte order mark.
        videos: the folder in which relative paths begin, itself relative to the jsonl file's.
        strip: what paths begin with and is taken away, as the folder of another machine.
        classes: how many classes there are; then every label must be a whole number below it.
        max_missing_fraction: refuse the list where more than this share of the videos has no file.
    """

    columns: dict[str, str | None] = field(default_factory=dict)
    encoding: str = ""
    videos: str = ""
    strip: str = ""
    classes: int = 0
    max_missing_fraction: float = 0.5

    def __post_init__(self) -> None:
        check_names(self.columns)
        check_encoding(self.encoding)
        check_list_arguments(self.max_missing_fraction, self.classes)

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        rows = [_row(where, line) for where, line in numbered_lines(root, self.encoding)]
        names, rows = self._renamed(str(root), rows)
        for name, where in names.items():
            check_columns(where, list(dict.fromkeys(["path", name])))
            if name not in KNOWN:
                rows = one_type(rows, name)
        own = [name for name in names if name not in KNOWN]
        values = {name: [row.cells[name] for row in rows if name in row.cells] for name in own}
        check_labelled(str(root), list(names), values, is_asked="label" in self.columns)
        folder = folder_of_videos(root.parent, self.videos)
        return listing_of(
            [entry_of(row, folder, self.classes, strip=self.strip) for row in rows],
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.classes),
            searched=Searched(base=root.parent, folder=folder, has_strip=True),
        )

    def _renamed(self, file: str, rows: list[Row]) -> tuple[dict[str, str], list[Row]]:
        """Each column and the line in which it stands first, known ones as they are called here."""
        first: dict[str, str] = {}
        for row in rows:
            for name in row.cells:
                first.setdefault(name, row.where)
        header = list(first)
        require_columns(file, header, self.columns)
        names = dict(zip(header, known_names(header, self.columns), strict=True))
        if rows and "path" not in names.values():
            cells = [str(rows[0].cells.get(name, "")) for name in header]
            require_path(rows[0].where, header, cells, has_header=False)
        renamed = [Row(where=row.where, cells=_named(row.where, row.cells, names)) for row in rows]
        return {name: first[old] for old, name in names.items() if name is not None}, renamed


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
        raise ValueError("a key stands there twice")
    return cells
