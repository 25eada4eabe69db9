"""Table of videos as a csv file: a column `path`, other known columns, and additional columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.entries import folder_of_videos
from kinemae.data_tools.manifest.table import (
    KNOWN,
    Row,
    TableArguments,
    check_header,
    check_names,
    header_names,
    known_names,
    parse_column,
)
from kinemae.data_tools.manifest.text import CsvTable, read_csv
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sources.base import Source, local_path
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class CsvSource(TableArguments, Source):
    """Reads a csv or tsv file with a header row, in UTF-8 or UTF-16.

    Known columns are path, label, split, group, start_s and end_s. Each other column becomes a column of the
    index, of the narrowest type of int, float and text that fits all its cells. Either all videos have a
    label or none; those of the splits `unlabelled` and `test` may lack one.

    Args:
        header: the column names, joined by commas, of a file without a header row.
        delimiter: between the cells; "" detects it: a comma, a semicolon, a tab or |.
        types: additional columns that must be "int", "float" or "text".
        The other arguments are those of `TableArguments`.
    """

    header: str = ""
    delimiter: str = ""
    types: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) > 1:
            raise ValueError(f"source.args.delimiter must be one character, got {self.delimiter!r}")
        check_names(self.columns, self.types)
        header_names(self.header)

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        table = read_csv(
            root,
            encoding=self.encoding,
            delimiter=self.delimiter,
            header=header_names(self.header),
            is_header=lambda cells: "path" in known_names(cells, self.columns),
            folder=folder_of_videos(root.parent, self.videos),
        )
        names, rows = self._rows(table)
        where = table.header.where
        for name in self.types:
            if name not in names:
                raise DataError(f"{where}: expected columns of the file in source.args.types, got {name!r}")
        for name in names:
            if name not in KNOWN:
                rows = parse_column(rows, name, self.types.get(name))
        return self.manifest(root, where, names, rows)

    def _rows(self, table: CsvTable) -> tuple[list[str], list[Row]]:
        """The unified column names and the rows without empty cells."""
        header, where = table.header.cells, table.header.where
        names = known_names(header, self.columns)
        kept = [name for name in names if name is not None]
        check_header(where, header, kept, self.columns, table.rows[0].cells if table.rows else ())
        _log_renamed(where, header, names)
        rows = []
        for row in table.rows:
            named = zip(names, (cell.strip() for cell in row.cells), strict=True)
            cells = {name: cell for name, cell in named if cell and name is not None}
            rows.append(Row(where=row.where, cells=cells))
        return kept, rows


def _log_renamed(where: str, header: Sequence[str], names: Sequence[str | None]) -> None:
    renamed = [f"{old} as {new}" for old, new in zip(header, names, strict=True) if new not in (old, None)]
    if renamed:
        log.info("%s: columns are read by other names: %s", where, ", ".join(renamed))
