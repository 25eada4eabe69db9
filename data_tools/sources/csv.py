"""Table of videos as a csv file: a column `path`, other known columns, and additional columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.class_map import numbered_classes
from kinemae.data_tools.manifest.entries import PathBase, build_manifest, check_arguments, folder_of_videos
from kinemae.data_tools.manifest.table import (
    KNOWN,
    Row,
    check_header,
    check_labelled,
    check_names,
    entry_of,
    header_names,
    known_names,
    parse_column,
)
from kinemae.data_tools.manifest.text import CsvTable, check_encoding, read_csv
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sources.base import Source, local_path
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class CsvSource(Source):
    """Reads a csv or tsv file with a header row, in UTF-8 or UTF-16.

    Known columns are path, label, split, group, start_s and end_s. Each other column becomes a column of the
    index, of the narrowest type of int, float and text that fits all its cells. Either all videos have a
    label or none; those of the splits `unlabelled` and `test` may lack one.

    Args:
        columns: from names in the index to names in the file, as in {path: video_path, label: class}; null
            leaves a column out.
        header: the column names, joined by commas, of a file without a header row.
        delimiter: between the cells; "" detects it: a comma, a semicolon, a tab or |.
        encoding: of the file; "" reads UTF-8, and UTF-16 with a byte order mark.
        videos: the base folder of relative paths, relative to the folder of the csv file.
        strip: prefix to remove from paths, such as the folder of another machine.
        types: additional columns that must be "int", "float" or "text".
        num_classes: number of classes, with whole numbers below it as labels; 0 takes any labels.
        max_missing_fraction: reject the list if a larger fraction of its files is missing.
    """

    columns: dict[str, str | None] = field(default_factory=dict)
    header: str = ""
    delimiter: str = ""
    encoding: str = ""
    videos: str = ""
    strip: str = ""
    types: dict[str, str] = field(default_factory=dict)
    num_classes: int = 0
    max_missing_fraction: float = 0.5

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise ValueError(f"source.args.delimiter must be one character, got {self.delimiter!r}")
        check_names(self.columns, self.types)
        header_names(self.header)
        check_encoding(self.encoding)
        check_arguments(max_missing_fraction=self.max_missing_fraction, num_classes=self.num_classes)

    def list_videos(self, root: Path | Location) -> Manifest:
        """See `Source.list_videos`."""
        root = local_path(root)
        folder = folder_of_videos(root.parent, self.videos)
        table = read_csv(
            root,
            encoding=self.encoding,
            delimiter=self.delimiter,
            header=header_names(self.header),
            is_header=lambda cells: "path" in known_names(cells, self.columns),
            folder=folder,
        )
        names, rows = self._rows(table)
        for name in self.types:
            if name not in names:
                raise DataError(
                    f"{table.header.where}: expected columns of the file in source.args.types, got {name!r}"
                )
        extra = [name for name in names if name not in KNOWN]
        for name in extra:
            rows = parse_column(rows, name, self.types.get(name))
        values = {name: [row.cells[name] for row in rows if name in row.cells] for name in extra}
        check_labelled(table.header.where, names, values, is_stated="label" in self.columns)
        return build_manifest(
            [entry_of(row, folder, self.num_classes, strip=self.strip) for row in rows],
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.num_classes),
            path_base=PathBase(base=root.parent, folder=folder, has_strip=True),
        )

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
            rows.append(
                Row(where=row.where, cells={name: cell for name, cell in named if cell and name is not None})
            )
        return kept, rows


def _log_renamed(where: str, header: Sequence[str], names: Sequence[str | None]) -> None:
    renamed = [f"{old} as {new}" for old, new in zip(header, names, strict=True) if new not in (old, None)]
    if renamed:
        log.info("%s: columns are read by other names: %s", where, ", ".join(renamed))
