"""A table of videos: a csv file with the header `path,label`, and `split` where the splits are fixed."""

import csv
from collections.abc import Iterator
from pathlib import Path

from data_tools.command import DataError
from data_tools.sources.base import SPLITS, Listing, Source, SourceVideo, split_name

_COLUMNS = ("path", "label", "split")


class CsvSource(Source):
    """Reads a csv file whose paths are relative to the file. Labels are class names or integers.

    Either all videos have a label or none has; only videos of the split `unlabelled` may lack one beside
    others that have it.
    """

    def __init__(self, *, delimiter: str = ","):
        if len(delimiter) != 1:
            raise ValueError(f"source.args.delimiter must be one character, got {delimiter!r}")
        self.delimiter = delimiter

    def listing(self, root: Path) -> Listing:
        rows = list(self._rows(root))
        _all_or_none(root, "split", rows)
        labelled = [(line, row) for line, row in rows if split_name(row["split"]) != "unlabelled"]
        _all_or_none(root, "label", labelled)
        seen: dict[str, int] = {}
        for line, row in rows:
            first = seen.setdefault(row["path"], line)
            if first != line:
                raise DataError(
                    f"{root}, line {line}: {row['path']} stands in line {first} already; keep one of them"
                )
        return Listing(videos=tuple(_video(root, line, row) for line, row in rows))

    def _rows(self, root: Path) -> Iterator[tuple[int, dict[str, str]]]:
        """Line numbers and cells, blank lines left out."""
        try:
            with root.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=self.delimiter, strict=True)
                header = [cell.strip() for cell in next(reader, [])]
                _check_header(root, header)
                for cells in reader:
                    if any(cell.strip() for cell in cells):
                        yield reader.line_num, _cells(root, reader.line_num, header, cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{root} is no csv file in UTF-8: {error}") from error
        except OSError as error:
            raise DataError(f"cannot read {root}: {error.strerror}") from error


def _check_header(root: Path, header: list[str]) -> None:
    if "path" not in header or not set(header) <= set(_COLUMNS) or len(set(header)) != len(header):
        raise DataError(
            f"{root}, line 1: expected the header path,label or path,label,split, got {','.join(header)!r}"
        )


def _cells(root: Path, line: int, header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(
            f"{root}, line {line}: expected {len(header)} cells ({','.join(header)}), got {len(cells)}"
        )
    row = dict.fromkeys(_COLUMNS, "") | {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if not row["path"]:
        raise DataError(f"{root}, line {line}: the path is missing")
    return row


def _all_or_none(root: Path, column: str, rows: list[tuple[int, dict[str, str]]]) -> None:
    without = [line for line, row in rows if not row[column]]
    if without and len(without) < len(rows):
        raise DataError(
            f"{root}, line {without[0]}: the {column} is missing, as in {len(without)} of {len(rows)} lines; "
            f"give every video a {column} or none"
        )


def _video(root: Path, line: int, row: dict[str, str]) -> SourceVideo:
    split = split_name(row["split"])
    if row["split"] and split is None:
        raise DataError(f"{root}, line {line}: no split named {row['split']!r}; there is {', '.join(SPLITS)}")
    label = None if split == "unlabelled" else row["label"] or None
    return SourceVideo(path=root.parent / row["path"], name=row["path"], label=label, split=split)
