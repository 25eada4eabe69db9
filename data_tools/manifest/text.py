"""Read lists of videos: encoding, lines and comments; csv files with any delimiter."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.videos import VIDEO_EXTENSIONS

# The byte order mark of UTF-32 begins with that of UTF-16, so it is tested first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS; fix: fetch the file with `git lfs pull`",
    b"<!DOCTYPE": "a web page; fix: download the file itself",
    b"<html": "a web page; fix: download the file itself",
    b"PK\x03\x04": "a zip file or a workbook; fix: save the table as CSV UTF-8",
}
_MAX_SHOWN = 80  # characters of a line in a message
_VIDEO = re.compile(rf"\.({'|'.join(sorted(VIDEO_EXTENSIONS))})\b", re.IGNORECASE)
_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True, kw_only=True, slots=True)  # there may be millions
class CsvRow:
    """A row: its location, such as "list.csv, line 7", and its cells in order."""

    where: str
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CsvTable:
    """A csv file: the header, and the rows with as many cells as the header."""

    header: CsvRow
    rows: tuple[CsvRow, ...]


def read_text(file: Path, encoding: str | None = None) -> str:
    """Read a list in UTF-8, in UTF-16 or in the given encoding.

    Args:
        encoding: source.args.encoding; "" if it is not set, None if the source has no such argument.

    Raises:
        DataError: the file is unreadable, or has another encoding; the message states the line.
        ValueError: the encoding is unknown.
    """
    check_encoding(encoding or "")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: expected a readable list, got an error ({error.strerror}); fix: check the path"
        ) from error
    for begin, kind in _OTHER_FILES.items():
        if content.startswith(begin):
            raise DataError(f"{file}: expected a list as text, got {kind}")
    try:
        return content.decode(encoding or _encoding_of(content))
    except UnicodeDecodeError as error:
        raise DataError(_undecodable(file, content, error, encoding)) from error


def check_encoding(encoding: str) -> None:
    """Reject an unknown encoding.

    Raises:
        ValueError: the encoding is unknown.
    """
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise ValueError(
            f"source.args.encoding must name an encoding, such as cp1252, got {encoding!r}"
        ) from error


def lines_of(text: str) -> list[str]:
    """Split a text at line ends only: a name may hold a rarer Unicode separator."""
    return re.split(r"\r\n|\r|\n", text)


def numbered_lines(file: Path, encoding: str | None = None) -> list[tuple[str, str]]:
    """The location and text of each line, without empty lines and comments.

    Args:
        encoding: as for `read_text`.
    """
    lines = enumerate(lines_of(read_text(file, encoding)), 1)
    return [
        (f"{file}, line {number}", line) for number, line in lines if line.strip() and not is_comment(line)
    ]


def is_comment(line: str) -> bool:
    """Check whether a line is a comment: it begins with # and is not the name of a video."""
    line = line.strip()
    return line.startswith("#") and (line[1:2].isspace() or len(line) == 1 or not names_video(line))


def names_video(text: str) -> bool:
    """Check whether a text holds the name of a video file."""
    return _VIDEO.search(text) is not None


def read_csv(
    file: Path,
    *,
    encoding: str,
    delimiter: str,
    header: Sequence[str],
    is_header: Callable[[Sequence[str]], bool],
    folder: Path,
) -> CsvTable:
    """Read a csv file.

    Args:
        encoding: as for `read_text`.
        delimiter: between the cells; "" selects the one of `, ; tab |` or space that gives a header.
        header: the column names of a file without a header row.
        is_header: whether cells are column names, including a path column.
        folder: the base of paths; an unquoted path may hold the delimiter if its file exists there.

    Raises:
        DataError: the file is not a csv, or a row has another number of cells; the message states the line.
    """
    text = read_text(file, encoding)
    declared = re.match(r"\s*sep=(.)\r?\n", text)  # Excel writes and reads such a line
    if declared is not None:
        text = "\n" + text[declared.end() :]
        delimiter = delimiter or declared[1]
    delimiter = delimiter or _delimiter_of(text, header, is_header)
    if delimiter == " ":
        text = "\n".join(re.sub(" +", " ", line.strip()) for line in lines_of(text))
    rows = _rows(file, text, delimiter, None if header else is_header)
    top = CsvRow(where=f"{file}, line 1", cells=tuple(header))
    if not header and rows:
        top = rows.pop(0)
    top = replace(top, cells=tuple(cell.strip() for cell in top.cells))
    if is_header(top.cells):  # a wrong header is reported before a wrong number of cells
        top, rows = _without_empty_ends(top, rows)
        rows = [_fitted(row, top, delimiter, folder) for row in rows]
    return CsvTable(header=top, rows=tuple(rows))


def _encoding_of(content: bytes) -> str:
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    begin = content[:64]
    if len(begin) > 3 and not any(begin[1::2]):
        return "utf-16-le"
    if len(begin) > 3 and not any(begin[0::2]):
        return "utf-16-be"
    return "utf-8"


def _undecodable(file: Path, content: bytes, error: UnicodeDecodeError, encoding: str | None) -> str:
    before = content[: error.start]
    number = before.count(b"\n") + 1
    line = content.split(b"\n")[number - 1].rstrip(b"\r")
    where = f"byte 0x{content[error.start]:02x} in line {number}"
    if encoding:
        return f"{file}: expected text in {encoding}, got {where}; fix: correct source.args.encoding"
    if encoding is None:
        return f"{file}: expected text in UTF-8, got {where}; fix: save it as UTF-8"
    return (
        f"{file}: expected text in UTF-8, got {where}; fix: save it as UTF-8, or set "
        "source.args.encoding=cp1252 (Windows in Western Europe), in which the line is "
        f"{line.decode('cp1252', 'replace')[:_MAX_SHOWN]!r}"
    )


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
        raise DataError(f"{file}, line {reader.line_num}: expected csv, got invalid text: {error}") from error
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
