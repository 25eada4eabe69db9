"""Tables of videos, csv or jsonl: known columns, and any other columns with one type each."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import COLUMNS, DESCRIPTION_KEY
from kinemae.data_tools.manifest.class_map import check_label, class_number, label_text, numbered_classes
from kinemae.data_tools.manifest.entries import (
    Entry,
    PathBase,
    build_manifest,
    check_arguments,
    folder_of_videos,
    video_location,
)
from kinemae.data_tools.manifest.text import check_encoding, names_video
from kinemae.data_tools.manifest.videos import SPLITS, Manifest, SourceVideo, is_video, split_name
from kinemae.data_tools.overrides import as_override

KNOWN = ("path", "label", "split", "group", "start_s", "end_s")
TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "text": str}
# Columns of the index and fields of KEY.json that a source cannot set.
RESERVED = frozenset({*COLUMNS.names, "label_index", DESCRIPTION_KEY}) - set(KNOWN)
_PATTERNS = {
    "int": r"0|-?[1-9][0-9]{0,17}",  # 007 is text
    "float": r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?",
    "text": r"(?s:.*)",
}
_KINETICS = {"youtube_id", "time_start", "time_end"}
_PATHS = re.compile(r"(?=.)(video|clip)?(file)?(path|name)?s?|fname|ur[il]|videourl|link")
_STARTS = re.compile(r"(time|t)?(start|begin)(time|s|sec|seconds)?")
_ENDS = re.compile(r"(time|t)?(end|stop)(time|s|sec|seconds)?")
_LABELS = re.compile(
    r"(cls|class|category|categorie|action|target|activity|gt|groundtruth|label)"
    r"(name|id|idx|index|label)?(e?s)?"
)


@dataclass(frozen=True, kw_only=True, slots=True)  # there may be millions
class Row:
    """One row of a table: its location, and its cells by column without empty cells."""

    where: str
    cells: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TableArguments:
    """Arguments that csv and jsonl files share.

    Args:
        columns: from names in the index to names in the file, as in {path: video_path, label: class}; null
            leaves a column out.
        encoding: of the file; "" reads UTF-8, and UTF-16 with a byte order mark.
        videos: the base folder of relative paths, relative to the folder of the file.
        strip: prefix to remove from paths, such as the folder of another machine.
        num_classes: number of classes, with whole numbers below it as labels; 0 takes any labels.
        max_missing_fraction: reject the list if a larger fraction of its files is missing.
    """

    columns: dict[str, str | None] = field(default_factory=dict)
    encoding: str = ""
    videos: str = ""
    strip: str = ""
    num_classes: int = 0
    max_missing_fraction: float = 0.5

    def __post_init__(self) -> None:
        check_names(self.columns)
        check_encoding(self.encoding)
        check_arguments(max_missing_fraction=self.max_missing_fraction, num_classes=self.num_classes)

    def manifest(self, file: Path, where: str, names: Sequence[str], rows: Sequence[Row]) -> Manifest:
        """Convert rows with unified column names to videos; `where` is the location of the header."""
        extra = [name for name in names if name not in KNOWN]
        values = {name: [row.cells[name] for row in rows if name in row.cells] for name in extra}
        check_labelled(where, names, values, is_stated="label" in self.columns)
        folder = folder_of_videos(file.parent, self.videos)
        return build_manifest(
            [entry_of(row, folder, self.num_classes, strip=self.strip) for row in rows],
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.num_classes),
            path_base=PathBase(base=file.parent, folder=folder, has_strip=True),
        )


def is_path_name(name: str) -> bool:
    """Check whether a column name is a usual name of a path column."""
    return _PATHS.fullmatch(_plain(name)) is not None


def is_label_name(name: str) -> bool:
    """Check whether a column name is a usual name of a label column."""
    return _LABELS.fullmatch(_plain(name)) is not None


def is_kinetics(names: Sequence[str]) -> bool:
    """Check whether these are the column names of the Kinetics lists."""
    return {name.strip().lower() for name in names} >= _KINETICS


def check_names(columns: Mapping[str, Any], types: Mapping[str, str] | None = None) -> None:
    """Reject invalid values of the arguments `columns` and `types`.

    Raises:
        ValueError: an unknown name, or a value of another type; the message states the key.
    """
    for name, theirs in columns.items():
        is_name = isinstance(theirs, str) and theirs and name not in RESERVED
        if not is_name and not (theirs is None and name != "path"):
            raise ValueError(
                f"source.args.columns.{name} must be the name of a column of the list, or null to leave it "
                f"out, got {theirs!r}"
            )
    for name, kind in (types or {}).items():
        if name in KNOWN or kind not in TYPES:
            raise ValueError(
                f"source.args.types.{name} must be one of {', '.join(TYPES)} for an additional column "
                f"(not {', '.join(KNOWN)}), got {kind!r}"
            )


def header_names(header: str) -> list[str]:
    """The names in source.args.header.

    Raises:
        ValueError: a name is empty.
    """
    names = [name.strip() for name in header.split(",")] if header else []
    if not all(names):
        raise ValueError(
            f"source.args.header must be names joined by commas, as in path,label, got {header!r}"
        )
    return names


def known_names(header: Sequence[str], columns: Mapping[str, str | None]) -> list[str | None]:
    """Map each column of a list to its name in the index: known names are unified, None skips a column.

    A known name matches in any case, with surrounding spaces, and after a #.

    Args:
        columns: source.args.columns: from names in the index to names in the list; None skips a column.
    """
    plain = {_plain(name): name for name in reversed(header)}
    names: dict[str, str | None] = {name: name for name in header}
    for known in dict.fromkeys((*KNOWN, *columns)):
        theirs = columns.get(known, known)
        found = theirs if theirs in names else plain.get(_plain(theirs or ""))
        if theirs is None:
            names |= {name: None for name in header if name == known}
        elif found is not None and (known in columns or known not in header):
            names[found] = known
    return [names[name] for name in header]


def check_header(
    where: str,
    header: Sequence[str],
    names: Sequence[str],
    columns: Mapping[str, str | None],
    first: Sequence[str],
    *,
    has_header: bool = True,
) -> None:
    """Reject a list without a column `path`, or with columns that source.args.columns states wrongly.

    Args:
        header: the names of the columns in the list.
        names: their names by `known_names`, without skipped columns.
        columns: source.args.columns.
        first: the cells of the first row, for the fix in the message.
        has_header: whether the source has the argument `header`.

    Raises:
        DataError: a column is missing, or its name is repeated or reserved; the message states the fix.
    """
    plain = {_plain(name) for name in header}
    for known, theirs in columns.items():
        if theirs is not None and theirs not in header and _plain(theirs) not in plain:
            raise DataError(
                f"{where}: expected source.args.columns.{known} to be one of "
                f"{', '.join(header)}, got {theirs!r}"
            )
    if "path" not in names:
        raise DataError(
            f"{where}: expected a column path, optionally {', '.join(KNOWN[1:])} and additional columns, got "
            f"{', '.join(header)!r}{_path_fix(header, first, has_header)}"
        )
    for position, name in enumerate(names):
        if not name or name in names[:position]:
            raise DataError(
                f"{where}: expected a unique name for each column, got {name!r} for column {position + 1}"
            )
        if name in RESERVED:
            raise DataError(
                f"{where}: expected other names than those of the index, got the column {name!r}; fix: add "
                f"source.args.columns.my_{name}={name} to rename it, or source.args.columns.{name}=null to "
                "leave it out"
            )


def check_labelled(
    where: str, header: Sequence[str], extra: Mapping[str, Sequence[Any]], *, is_stated: bool
) -> None:
    """Log columns that might hold labels, times or splits.

    Args:
        extra: the values of each additional column.
        is_stated: whether source.args.columns states the label column, or that there is none.

    Raises:
        DataError: there is no column label, and an additional column has a usual name of a label column.
    """
    _warn_of_times(where, header, extra)
    if "split" not in header:
        _warn_of_splits(where, extra)
    if "label" in header or is_stated or not extra:
        return
    named = next((name for name in extra if is_label_name(name)), None)
    if named is not None:
        raise DataError(
            f"{where}: expected a column label, got {named!r}; fix: add "
            f"{as_override('source.args.columns.label', named)} to use it as the label, or "
            "source.args.columns.label=null for videos without labels"
        )
    repeating = [name for name, values in extra.items() if 1 < len(set(values)) <= len(values) / 2]
    hint = as_override("source.args.columns.label", repeating[0] if repeating else "NAME")
    level = log.warning if repeating else log.info
    level("%s: no column label, so the videos have no classes; %s uses one as the label", where, hint)


def parse_column(rows: Sequence[Row], column: str, kind: str | None) -> list[Row]:
    """Convert the texts of a column to `kind`, or to the narrowest of int, float and text that fits all.

    Raises:
        DataError: a cell does not fit `kind`; the message states the line.
    """
    texts = [row.cells[column] for row in rows if column in row.cells]
    fitting = kind or next(name for name in TYPES if all(_fits(text, name) for text in texts))
    for row in rows:
        if column in row.cells and not _fits(row.cells[column], fitting):
            raise DataError(
                f"{row.where}: expected a value of type {fitting} in {column}, got {row.cells[column]!r}"
            )
    return _converted(rows, column, TYPES[fitting])


def unify_columns(rows: Sequence[Row], columns: Sequence[str] | None = None) -> list[Row]:
    """Check that each column holds numbers or texts only; convert integers to float if a column has floats.

    Args:
        columns: the columns to check; None checks all.

    Raises:
        DataError: a value is neither, or differs from the others in kind; the message states the line.
    """
    rows = list(rows)
    for column in sorted({name for row in rows for name in row.cells}) if columns is None else columns:
        rows = _unify_column(rows, column)
    return rows


def entry_of(row: Row, folder: Path, num_classes: int, *, strip: str = "") -> Entry:
    """Convert a row to a video.

    Args:
        folder: the base of relative paths.
        num_classes: number of classes if labels are whole numbers below it, 0 for any labels.
        strip: prefix to remove from the path.

    Raises:
        DataError: no path, an unknown split, an invalid time, or a label out of range.
    """
    path = row.cells.get("path")
    if not isinstance(path, str):
        raise DataError(f"{row.where}: expected a path as text, got {path!r}")
    path = path.removeprefix(strip)
    split = _split(row)
    label = None if split == "unlabelled" else _text(row, "label")
    if label is not None:
        label = check_label(row.where, label)
    if label is not None and num_classes:
        label = class_number(row.where, label, num_classes)
    start_s, end_s = _seconds(row, "start_s"), _seconds(row, "end_s")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise DataError(f"{row.where}: expected end_s above start_s={start_s or 0.0:g}, got {end_s:g}")
    place, url = video_location(row.where, folder, path)
    video = SourceVideo(
        path=place,
        url=url,
        name=_name(path, start_s, end_s),
        label=label,
        split=split,
        group=_text(row, "group"),
        start_s=start_s,
        end_s=end_s,
        extra={name: value for name, value in row.cells.items() if name not in KNOWN},
    )
    return Entry(where=row.where, video=video)


def _unify_column(rows: list[Row], column: str) -> list[Row]:
    first: Any = None
    for row in rows:
        value = row.cells.get(column)
        is_good = isinstance(value, str | int | float) and not isinstance(value, bool)
        if value is not None and (not is_good or (isinstance(value, float) and not math.isfinite(value))):
            raise DataError(f"{row.where}: expected text or a finite number in {column}, got {value!r}")
        first = value if first is None else first
        if value is not None and isinstance(value, str) != isinstance(first, str):
            raise DataError(
                f"{row.where}: expected one type in {column}, got {value!r} after {first!r}; fix: write all "
                "values as text or all as numbers"
            )
    has_floats = any(isinstance(row.cells.get(column), float) for row in rows)
    return _converted(rows, column, float) if has_floats else rows


def _converted(rows: Sequence[Row], column: str, convert: Callable[[Any], Any]) -> list[Row]:
    return [
        Row(where=row.where, cells={**row.cells, column: convert(row.cells[column])})
        if column in row.cells
        else row
        for row in rows
    ]


def _warn_of_times(where: str, header: Sequence[str], extra: Mapping[str, Sequence[Any]]) -> None:
    for known, pattern in {"start_s": _STARTS, "end_s": _ENDS}.items():
        name = next((name for name in extra if pattern.fullmatch(_plain(name))), None)
        if name is not None and known not in header:
            log.warning(
                "%s: no column %s, and the column %s cuts no video; %s reads it as seconds",
                *(where, known, name, as_override(f"source.args.columns.{known}", name)),
            )


def _warn_of_splits(where: str, extra: Mapping[str, Sequence[Any]]) -> None:
    for name, values in extra.items():
        if values and all(isinstance(value, str) and split_name(value) for value in values):
            log.warning(
                "%s: no column split, so splits are drawn; %s reads them from the column %s",
                *(where, as_override("source.args.columns.split", name), name),
            )


def _path_fix(header: Sequence[str], first: Sequence[str], has_header: bool) -> str:
    if is_kinetics(header):
        return "; fix: these are the columns of Kinetics, add source.name=kinetics"
    if has_header and any(names_video(cell) for cell in header):
        return _header_fix(header)
    path = next((name for name, cell in zip(header, first, strict=False) if is_video(cell.strip())), None)
    path = path or next((name for name in header if is_path_name(name)), None)
    if path is None:
        words = [name for name in header if name and name not in KNOWN and not is_label_name(name)]
        word = words[0] if words and len(header) > 1 else "NAME"
        return f"; fix: state the column of the paths, as in {as_override('source.args.columns.path', word)}"
    others = [name for name in header if name != path and name not in KNOWN]
    label = next((name for name in others if is_label_name(name)), None)
    if label is None and len(others) == 1 and "label" not in header:
        label = others[0]
    words = [as_override("source.args.columns.path", path)]
    words += [as_override("source.args.columns.label", label)] if label and "label" not in header else []
    return f"; fix: add {' '.join(words)}"


def _header_fix(cells: Sequence[str]) -> str:
    """The fix for a file whose first row is a video and no header."""
    is_one_cell = len(cells) == 1 and re.search(r"\s-?[0-9]+(\.0*)?$", cells[0])
    place = next(place for place, cell in enumerate(cells) if names_video(cell))
    are_numbers = all(re.fullmatch(r"-?[0-9]+", cell) for cell in cells[1:])
    if is_one_cell or (place == 0 and len(cells) > 2 and are_numbers):
        return "; fix: this is a list of paths followed by numbers, add source.name=path_label"
    names = [f"column{number}" for number in range(1, len(cells) + 1)]
    names[place] = "path"
    if len(cells) == 2:
        names[1 - place] = "label"
    return (
        f"; fix: the file has no header row, add {as_override('source.args.header', ','.join(names))} (its "
        f"columns in order; known are {', '.join(KNOWN)})"
    )


def _fits(text: str, kind: str) -> bool:
    matches = re.fullmatch(_PATTERNS[kind], text) is not None
    return matches and (kind != "float" or math.isfinite(float(text)))


def _split(row: Row) -> str | None:
    text = _text(row, "split")
    split = None if text is None else split_name(text)
    if text is not None and split is None:
        raise DataError(f"{row.where}: expected one of the splits {', '.join(SPLITS)}, got {text!r}")
    return split


def _text(row: Row, column: str) -> str | None:
    value = row.cells.get(column)
    text = label_text(value)
    if value is not None and text is None:
        raise DataError(f"{row.where}: expected text or a whole number in {column}, got {value!r}")
    return text or None


def _seconds(row: Row, column: str) -> float | None:
    value = row.cells.get(column)
    if value is None:
        return None
    if isinstance(value, str) and _fits(value, "float"):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        hint = "; fix: write a decimal point" if re.fullmatch(r"[0-9]+,[0-9]+", str(value)) else ""
        raise DataError(f"{row.where}: expected seconds, 0 or more, in {column}, got {value!r}{hint}")
    return float(value)


def _name(path: str, start_s: float | None, end_s: float | None) -> str:
    """A unique name for each part of a video: a/b.mp4 from 2 to 3.5 s is a/b#2-3.5.mp4."""
    if start_s is None and end_s is None:
        return path
    part = f"#{start_s or 0.0:.10g}-{'' if end_s is None else f'{end_s:.10g}'}"
    extension = Path(path).suffix
    return f"{path.removesuffix(extension)}{part}{extension}"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
