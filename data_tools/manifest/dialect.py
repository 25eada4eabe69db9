"""Split the text of a csv into a header and rows: delimiter, quotes, blank lines, comments."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.text import is_comment, lines_of

_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True, kw_only=True)
class CsvRow:
    """A row: its location, such as "list.csv, line 7", and its cells in order."""

    where: str
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CsvTable:
    """A csv file.

    Attributes:
        header: the header row.
        rows: all others, each with as many cells as the header.
    """

    header: CsvRow
    rows: tuple[CsvRow, ...]
    delimiter: str


def read_table(
    file: Path,
    text: str,
    *,
    delimiter: str,
    header: Sequence[str],
    is_header: Callable[[Sequence[str]], bool],
    folder: Path,
) -> CsvTable:
    """Read a csv.

    Args:
        delimiter: between the cells; "" selects the one of `, ; tab |` that gives a header.
        header: the column names of a file without a header row.
        is_header: whether cells are column names, including a path column.
        folder: the base of paths; an unquoted path may hold the delimiter if its file exists there.

    Raises:
        DataError: the file is not a csv, or a row has another number of cells; the message states the line.
    """
    said = re.match(r"\s*sep=(.)\r?\n", text)  # Excel writes and reads such a line
    if said is not None:
        text = "\n" + text[said.end() :]
        delimiter = delimiter or said[1]
    delimiter = delimiter or _delimiter_of(text, header, is_header)
    if delimiter == " ":
        text = "\n".join(re.sub(" +", " ", line.strip()) for line in lines_of(text))
    rows = _rows(file, text, delimiter, None if header else is_header)
    top = CsvRow(where=f"{file}, line 1", cells=tuple(header)) if header else None
    if top is None:
        top = rows.pop(0) if rows else CsvRow(where=f"{file}, line 1", cells=())
    top = replace(top, cells=tuple(cell.strip() for cell in top.cells))
    if not is_header(top.cells):  # a wrong header is reported before a wrong number of cells
        return CsvTable(header=top, rows=tuple(rows), delimiter=delimiter)
    top, rows = _without_empty_ends(top, rows)
    rows = [_fitted(row, top, delimiter, folder) for row in rows]
    return CsvTable(header=top, rows=tuple(rows), delimiter=delimiter)


def _delimiter_of(text: str, header: Sequence[str], is_header: Callable[[Sequence[str]], bool]) -> str:
    signs = (*_DELIMITERS, " ")
    begins = (
        line
        for line in text.splitlines()
        if line.strip() and (not is_comment(line) or any(is_header(_cells(line, sign)) for sign in signs))
    )
    begin = next(begins, "")
    cells = {sign: _cells(begin, sign) for sign in signs}
    if header:
        return next((sign for sign, found in cells.items() if len(found) == len(header)), ",")
    named = next((sign for sign in signs if is_header(cells[sign])), None)
    return named or max(_DELIMITERS, key=lambda sign: len(cells[sign]))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _rows(
    file: Path, text: str, delimiter: str, is_header: Callable[[Sequence[str]], bool] | None
) -> list[CsvRow]:
    """The non-empty rows without comments; a header row may begin with #."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        strict=True,
        # Strip spaces before a quote only: elsewhere they may be part of a path that holds the delimiter.
        skipinitialspace=re.search(rf'{re.escape(delimiter)} +"', text) is not None and delimiter != " ",
    )
    rows: list[CsvRow] = []
    try:
        for cells in reader:
            is_first = not rows and is_header is not None and is_header([cell.strip() for cell in cells])
            is_left_out = is_comment(delimiter.join(cells)) and not is_first
            if any(cell.strip() for cell in cells) and not is_left_out:
                rows.append(CsvRow(where=f"{file}, line {reader.line_num}", cells=tuple(cells)))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: this is no csv: {error}") from error
    return rows


def _without_empty_ends(header: CsvRow, rows: Sequence[CsvRow]) -> tuple[CsvRow, list[CsvRow]]:
    """Drop delimiters at line ends, and an unnamed first column of row numbers."""
    width = len(header.cells)
    while (
        width > 1
        and not header.cells[width - 1]
        and not any("".join(row.cells[width - 1 :]).strip() for row in rows)
    ):
        width -= 1
    first = 0
    if width > 1 and not header.cells[0]:
        numbers = [row.cells[0].strip() for row in rows]
        first = int(numbers == [str(number) for number in range(len(rows))])
    header = replace(header, cells=header.cells[first:width])
    return header, [replace(row, cells=_without_blank_end(row.cells, width)[first:]) for row in rows]


def _without_blank_end(cells: tuple[str, ...], width: int) -> tuple[str, ...]:
    while len(cells) > width and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _fitted(row: CsvRow, header: CsvRow, delimiter: str, folder: Path) -> CsvRow:
    """The row with as many cells as the header; a path without quotes may hold the delimiter."""
    extra = len(row.cells) - len(header.cells)
    if extra > 0:
        for start in range(len(header.cells)):
            joined = delimiter.join(row.cells[start : start + extra + 1]).strip()
            if (folder / joined).is_file():
                return replace(row, cells=(*row.cells[:start], joined, *row.cells[start + extra + 1 :]))
    if extra:
        hint = f"; fix: put a cell that holds {delimiter!r} in double quotes"
        hint = hint if extra > 0 else f"; fix: put {delimiter!r} between the cells, also of empty ones"
        names = delimiter.join(header.cells)
        raise DataError(
            f"{row.where}: expected {len(header.cells)} cells ({names}), got {len(row.cells)}{hint}"
        )
    return row
