"""A table of videos: a csv file with a column `path`, others that are known, and any of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.columns import (
    check_labelled,
    check_names,
    known_names,
    names_of,
    require_columns,
    require_path,
)
from kinemae.data_tools.manifest.dialect import CsvTable, read_table
from kinemae.data_tools.manifest.entries import (
    check_list_arguments,
    folder_of_videos,
    listing_of,
    numbered_classes,
)
from kinemae.data_tools.manifest.resolve_paths import Searched
from kinemae.data_tools.manifest.table import KNOWN, Row, check_columns, entry_of, parse_column
from kinemae.data_tools.manifest.text import check_encoding, read_text
from kinemae.data_tools.manifest.videos import Listing
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class CsvSource(Source):
    """Reads a csv or tsv file with a row of names, in UTF-8 or UTF-16.

    Known columns are path, label, split, group, start_s and end_s; any other becomes a column of the index:
    int, float or text, whichever is the narrowest that fits all its cells. Either all videos have a label or
    none has; those of the splits `unlabelled` and `test` may lack one.

    Args:
        columns: the file's names of columns by ours, as in {path: video_path, label: class}; null leaves a
            column out.
        header: the names of the columns, joined by commas, where the file has no row of names.
        delimiter: between the cells; "" finds it: a comma, a semicolon, a tab or |.
        encoding: of the file; "" reads UTF-8, and UTF-16 with a byte order mark.
        videos: the folder in which relative paths begin, itself relative to the csv file's.
        strip: what paths begin with and is taken away, as the folder of another machine.
        types: columns of one's own that must be "int", "float" or "text".
        classes: how many classes there are; then every label must be a whole number below it.
        max_missing_fraction: refuse the list where more than this share of the videos has no file.
    """

    columns: dict[str, str | None] = field(default_factory=dict)
    header: str = ""
    delimiter: str = ""
    encoding: str = ""
    videos: str = ""
    strip: str = ""
    types: dict[str, str] = field(default_factory=dict)
    classes: int = 0
    max_missing_fraction: float = 0.5

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise ValueError(f"source.args.delimiter must be one character, got {self.delimiter!r}")
        check_names(self.columns, self.types)
        names_of(self.header)
        check_encoding(self.encoding)
        check_list_arguments(self.max_missing_fraction, self.classes)

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        folder = folder_of_videos(root.parent, self.videos)
        table = read_table(
            root,
            read_text(root, self.encoding),
            delimiter=self.delimiter,
            header=names_of(self.header),
            is_header=lambda cells: "path" in known_names(cells, self.columns),
            folder=folder,
        )
        names, rows = self._rows(table)
        for name in self.types:
            if name not in names:
                raise DataError(
                    f"{table.header.where}: expected columns of the file in source.args.types, got {name!r}"
                )
        own = [name for name in names if name not in KNOWN]
        for name in own:
            rows = parse_column(rows, name, self.types.get(name))
        values = {name: [row.cells[name] for row in rows if name in row.cells] for name in own}
        check_labelled(table.header.where, names, values, is_asked="label" in self.columns)
        return listing_of(
            [entry_of(row, folder, self.classes, strip=self.strip) for row in rows],
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.classes),
            searched=Searched(base=root.parent, folder=folder, has_strip=True),
        )

    def _rows(self, table: CsvTable) -> tuple[list[str], list[Row]]:
        """The unified column names and the rows without empty cells."""
        header, where = table.header.cells, table.header.where
        require_columns(where, header, self.columns)
        names = known_names(header, self.columns)
        kept = [name for name in names if name is not None]
        first = table.rows[0].cells if table.rows else ()
        require_path(where, header if "path" not in kept else kept, first)
        check_columns(where, kept)
        _note_renamed(where, header, names)
        rows = []
        for row in table.rows:
            named = zip(names, (cell.strip() for cell in row.cells), strict=True)
            rows.append(
                Row(where=row.where, cells={name: cell for name, cell in named if cell and name is not None})
            )
        return kept, rows


def _note_renamed(where: str, header: Sequence[str], names: Sequence[str | None]) -> None:
    renamed = [f"{old} as {new}" for old, new in zip(header, names, strict=True) if new not in (old, None)]
    if renamed:
        log.info("%s: columns are read by other names: %s", where, ", ".join(renamed))
