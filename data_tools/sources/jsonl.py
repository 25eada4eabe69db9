"""A table of videos with one json object a line, of the same columns as a csv file."""

import json
from pathlib import Path
from typing import Any

from data_tools.command import DataError
from data_tools.listing.entries import (
    check_list_arguments,
    folder_of_videos,
    listing_of,
    numbered_classes,
    numbered_lines,
)
from data_tools.listing.table import KNOWN, Row, check_columns, entry_of, one_type
from data_tools.listing.videos import Listing
from data_tools.sources.base import Source, on_this_machine
from data_tools.storage.location import Location


class JsonlSource(Source):
    """Reads lines such as {"path": "a.mp4", "label": "run", "group": "camera 3", "score": 0.5}.

    Columns are those of `CsvSource`, their types are json's. Lines may leave columns out, as does null.

    Args:
        videos: the folder in which relative paths begin, itself relative to the jsonl file's.
        classes: how many classes there are; then every label must be a whole number below it.
        max_missing_fraction: refuse the list where more than this share of the videos has no file.
    """

    def __init__(self, *, videos: str = "", classes: int = 0, max_missing_fraction: float = 0.5):
        check_list_arguments(max_missing_fraction, classes)
        self.videos = videos
        self.classes = classes
        self.max_missing_fraction = max_missing_fraction

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        rows = [_row(where, line) for where, line in numbered_lines(root)]
        columns: dict[str, str] = {}
        for row in rows:
            for name in row.cells:
                columns.setdefault(name, row.where)
        for name, where in columns.items():
            check_columns(where, list(dict.fromkeys(["path", name])))
            if name not in KNOWN:
                rows = one_type(rows, name)
        folder = folder_of_videos(root.parent, self.videos)
        return listing_of(
            [entry_of(row, folder, self.classes) for row in rows],
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.classes),
        )


def _row(where: str, line: str) -> Row:
    try:
        cells = json.loads(line, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise DataError(f"{where}: expected one json object, got {line[:60]!r} ({error})") from error
    if not isinstance(cells, dict):
        raise DataError(f'{where}: expected a json object such as {{"path": "a.mp4"}}, got {line[:60]!r}')
    return Row(where=where, cells={name: value for name, value in cells.items() if value not in (None, "")})


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) != len(pairs):
        raise ValueError("a key stands there twice")
    return cells
