"""Lines of a list without a header row: a path followed by numbers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.videos import is_video

NAMES = ("path", "label", "start", "frames", "ignore")
_NUMBER = r"-?[0-9]+(?:\.0*)?"
_LOOKED_AT = 100  # lines from which the delimiter is inferred


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line cut into cells.

    Attributes:
        where: as in "list.txt, line 7".
        text: the whole line.
        cells: the others by their names.
    """

    where: str
    text: str
    path: str
    cells: Mapping[str, str]

    @classmethod
    def of(cls, where: str, text: str, header: Sequence[str], delimiter: str, *, is_given: bool) -> "Line":
        """Cut a line; the path may hold the delimiter.

        Args:
            header: names of the cells, one of them `path`.
            is_given: whether the user set the header.

        Raises:
            DataError: the number of cells is wrong; the message states the line.
        """
        sign = None if delimiter == " " else delimiter
        before = header.index("path")
        after = len(header) - 1 - before
        left = text.strip().split(sign, before)
        right = left[-1].rsplit(sign, after)
        found = [*left[:-1], *right]
        if len(found) != len(header) or not found[before].strip():
            shape = (delimiter if delimiter.strip() else " ").join(header).upper()
            hint = "; fix: a table with a row of names is read by source.name=csv" if "," in text else ""
            raise DataError(f"{where}: expected {shape}, got {text!r}{hint}")
        path = _unquoted(found[before].strip())
        if not is_given and "label" in header:
            _refuse_two_numbers(where, text, path)
        cells = {name: cell.strip() for name, cell in zip(header, found, strict=True) if name != "path"}
        return cls(where=where, text=text, path=path, cells=cells)

    def number(self, name: str, default: int) -> int:
        """A cell as a whole number, the default where the line has no such cell.

        Raises:
            DataError: it is not a whole number; the message states the line.
        """
        text = self.cells.get(name, str(default))
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise DataError(f"{self.where}: expected a whole number as {name}, got {text!r}")
        return int(text)


def names_of_line(header: str) -> list[str]:
    """The names in source.args.header.

    Raises:
        ValueError: a name is not in `NAMES`, or the path is missing.
    """
    names = [name.strip() for name in header.split(",")] if header else []
    twice = [name for name in names if name != "ignore" and names.count(name) > 1]
    if names and ("path" not in names or twice or not set(names) <= set(NAMES)):
        raise ValueError(
            f"source.args.header must be path and perhaps {', '.join(NAMES[1:])}, joined by commas, as in "
            f"path,label, got {header!r}"
        )
    return names


def delimiter_of(lines: Sequence[str]) -> str:
    """The character before the last number of most lines; a space means any whitespace."""
    counts = Counter({" ": 0})
    for line in lines[:_LOOKED_AT]:
        found = re.search(rf"(\s*[,;|]\s*|\s+){_NUMBER}\s*$", line)
        counts[(found[1].strip() or " ") if found else " "] += 1
    return max(counts, key=lambda sign: counts[sign])


def header_of(lines: Sequence[str], delimiter: str) -> list[str]:
    """The columns of the lines: `path label`, `path`, or `path start frames` as in VideoMAE V2."""
    sign = r"\s+" if delimiter == " " else rf"\s*{re.escape(delimiter)}\s*"
    if any(re.search(rf"{sign}{_NUMBER}{sign}-1\s*$", line) for line in lines):
        return ["path", "start", "frames"]
    is_path = [_is_path(line) for line in lines]
    if lines and (all(is_path) or not any(re.search(r"[\s,;|]", line.strip()) for line in lines)):
        return ["path"]
    return ["path", "label"]


def _is_path(line: str) -> bool:
    """Whether the end of a line is the end of a path, and no label."""
    text = _unquoted(line.strip())
    return is_video(text.replace("\\", "/").rpartition("/")[2])


def _refuse_two_numbers(where: str, text: str, path: str) -> None:
    found = re.fullmatch(rf"(.*\S)[\s,;|]+{_NUMBER}", path)
    if found is not None and is_video(_unquoted(found[1]).rpartition("/")[2]):
        raise DataError(
            f"{where}: expected PATH LABEL, got two numbers in {text!r}; fix: add "
            "source.args.header=path,ignore,label where the last number is the label, or "
            "source.args.header=path,start,frames for the frames of VideoMAE V2"
        )


def _unquoted(path: str) -> str:
    for quote in ('"', "'"):
        if len(path) > 1 and path[0] == path[-1] == quote:
            return path[1:-1].replace(quote * 2, quote)
    return path
