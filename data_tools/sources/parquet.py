"""Table of videos as a parquet file, or as a folder of parquet files, with the columns of a csv file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.parquet_files import column_types, read_rows
from kinemae.data_tools.manifest.table import (
    KNOWN,
    Row,
    TableArguments,
    check_header,
    known_names,
    unify_columns,
)
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.sources.base import Source, local_path
from kinemae.data_tools.storage.location import Location

_READ = ("text", "number", "time")


@dataclass(frozen=True, kw_only=True)
class ParquetSource(TableArguments, Source):
    """Reads the columns of `CsvSource` with the types of the file.

    Columns of other types, such as lists and bytes, are left out. Missing values are null or NaN. The
    arguments are those of `TableArguments`, without `encoding`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoding:
            raise ValueError(
                f"source.args.encoding: expected none for parquet, got {self.encoding!r}; fix: leave it out"
            )

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        files = sorted(root.glob("*.parquet")) if root.is_dir() else [root]
        if not files:
            raise DataError(
                f"SOURCE {root}: expected parquet files, got none; fix: name a file or its folder"
            )
        names: dict[str, None] = {}
        rows: list[Row] = []
        for file in files:
            found, some = self._rows(file)
            names |= dict.fromkeys(found)
            rows += some
        rows = unify_columns(rows, [name for name in names if name not in KNOWN])
        return self.manifest(files[0], str(root), list(names), rows)

    def _rows(self, file: Path) -> tuple[list[str], list[Row]]:
        """The unified column names of a file and its rows."""
        types = column_types(file)
        header = [name for name, kind in types.items() if kind in _READ]
        names = dict(zip(header, known_names(header, self.columns), strict=True))
        left_out = {name: kind for name, kind in types.items() if kind not in _READ}
        _check_bytes(file, types, list(names.values()))
        if left_out:
            log.info(
                "%s: columns are left out: %s",
                file,
                ", ".join(f"{name} ({kind})" for name, kind in left_out.items()),
            )
        kept = {old: new for old, new in names.items() if new is not None}
        check_header(str(file), header, list(kept.values()), self.columns, (), has_header=False)
        rows = [
            Row(where=f"{file}, row {number}", cells={kept[name]: value for name, value in cells.items()})
            for number, cells in enumerate(read_rows(file, list(kept)), start=1)
        ]
        return list(kept.values()), rows


def _check_bytes(file: Path, types: dict[str, str], names: Sequence[str | None]) -> None:
    """Reject a table that holds the videos themselves."""
    held = next((name for name, kind in types.items() if "bytes" in kind or "binary" in kind), None)
    if "path" not in names and held is not None:
        raise DataError(
            f"{file}: expected a column path, got the bytes of the videos in the column {held}; fix: write "
            "them to tars, see docs/import-export.md"
        )
