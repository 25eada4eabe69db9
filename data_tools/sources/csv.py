"""A table of videos: a csv file with a column `path`, others that are known, and any of one's own."""

import csv
import io
from pathlib import Path

from data_tools.command import DataError
from data_tools.listing.entries import (
    check_list_arguments,
    folder_of_videos,
    listing_of,
    numbered_classes,
    read_text,
)
from data_tools.listing.table import KNOWN, TYPES, Row, check_columns, entry_of, parse_column
from data_tools.listing.videos import Listing
from data_tools.sources.base import Source, on_this_machine
from data_tools.storage.location import Location


class CsvSource(Source):
    """Reads a csv file in UTF-8 with a header.

    Known columns are path, label, split, group, start_s and end_s; any other becomes a column of the index:
    int, float or text, whichever is the narrowest that fits all its cells. Either all videos have a label or
    none has; those of the splits `unlabelled` and `test` may lack one.

    Args:
        delimiter: between the cells.
        videos: the folder in which relative paths begin, itself relative to the csv file's.
        types: columns of one's own that must be "int", "float" or "text".
        classes: how many classes there are; then every label must be a whole number below it.
        max_missing_fraction: refuse the list where more than this share of the videos has no file.
    """

    def __init__(
        self,
        *,
        delimiter: str = ",",
        videos: str = "",
        types: dict[str, str] | None = None,
        classes: int = 0,
        max_missing_fraction: float = 0.5,
    ):
        if len(delimiter) != 1:
            raise ValueError(f"source.args.delimiter must be one character, got {delimiter!r}")
        for name, kind in (types or {}).items():
            if name in KNOWN or kind not in TYPES:
                raise ValueError(
                    f"source.args.types.{name} must be one of {', '.join(TYPES)} for a column of your own "
                    f"(not {', '.join(KNOWN)}), got {kind!r}"
                )
        check_list_arguments(max_missing_fraction, classes)
        self.delimiter = delimiter
        self.videos = videos
        self.types = types or {}
        self.classes = classes
        self.max_missing_fraction = max_missing_fraction

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        header, rows = self._rows(root)
        check_columns(f"{root}, line 1", header)
        for name in self.types:
            if name not in header:
                raise DataError(f"{root}, line 1: source.args.types names {name!r}, which is no column")
        for column in header:
            if column not in KNOWN:
                rows = parse_column(rows, column, self.types.get(column))
        folder = folder_of_videos(root.parent, self.videos)
        return listing_of(
            [entry_of(row, folder, self.classes) for row in rows],
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.classes),
        )

    def _rows(self, root: Path) -> tuple[list[str], list[Row]]:
        """The header and the rows, blank lines left out."""
        reader = csv.reader(io.StringIO(read_text(root), newline=""), delimiter=self.delimiter, strict=True)
        rows = []
        try:
            header = [cell.strip() for cell in next(reader, [])]
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.append(_row(f"{root}, line {reader.line_num}", header, cells))
        except csv.Error as error:
            raise DataError(f"{root}, line {reader.line_num}: this is no csv: {error}") from error
        return header, rows


def _row(where: str, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise DataError(f"{where}: expected {len(header)} cells ({','.join(header)}), got {len(cells)}")
    named = zip(header, (cell.strip() for cell in cells), strict=True)
    return Row(where=where, cells={name: cell for name, cell in named if cell})
