"""Names of the columns of a list: which one is the path, which one the label."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.table import KNOWN, RESERVED, TYPES
from kinemae.data_tools.manifest.text import names_video
from kinemae.data_tools.manifest.videos import is_video, split_name
from kinemae.data_tools.overrides import as_override

_KINETICS = {"youtube_id", "time_start", "time_end"}
_PATH_LABEL = "; fix: this is a list of paths with numbers behind them, add source.name=path_label"
_PATHS = re.compile(r"(?=.)(video|clip)?(file)?(path|name)?s?|fname|ur[il]|videourl|link")
_STARTS = re.compile(r"(time|t)?(start|begin)(time|s|sec|seconds)?")
_ENDS = re.compile(r"(time|t)?(end|stop)(time|s|sec|seconds)?")
_LABELS = re.compile(
    r"(cls|class|category|categorie|action|target|activity|gt|groundtruth|label)"
    r"(name|id|idx|index|label)?(e?s)?"
)


def is_path_name(name: str) -> bool:
    """Whether a column name is a usual name of a path column."""
    return _PATHS.fullmatch(_plain(name)) is not None


def is_label_name(name: str) -> bool:
    """Whether a column name is a usual name of a label column."""
    return _LABELS.fullmatch(_plain(name)) is not None


def check_names(columns: Mapping[str, Any], types: Mapping[str, str] | None = None) -> None:
    """Reject invalid values of the arguments `columns` and `types`.

    Raises:
        ValueError: a name that is not known, or a value of another kind; the message names the key.
    """
    for name, theirs in columns.items():
        is_name = isinstance(theirs, str) and theirs and name not in RESERVED
        if not is_name and not (theirs is None and name != "path"):
            raise ValueError(
                f"source.args.columns.{name} must be the list's own name of the column, or null to leave it "
                f"out, got {theirs!r}"
            )
    for name, kind in (types or {}).items():
        if name in KNOWN or kind not in TYPES:
            raise ValueError(
                f"source.args.types.{name} must be one of {', '.join(TYPES)} for a column of your own "
                f"(not {', '.join(KNOWN)}), got {kind!r}"
            )


def known_names(header: Sequence[str], columns: Mapping[str, str | None]) -> list[str | None]:
    """Map each column of a list to its name in the index: known names are unified, None skips a column.

    A known name is found in any case, with surrounding spaces, and with # before it.

    Args:
        columns: source.args.columns: the list's names by ours; None for a column to leave out.
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


def require_columns(where: str, header: Sequence[str], columns: Mapping[str, str | None]) -> None:
    """Reject source.args.columns if the list lacks one of its columns.

    Raises:
        DataError: a column is not in the list.
    """
    there = {_plain(name) for name in header}
    for known, theirs in columns.items():
        if theirs is not None and theirs not in header and _plain(theirs) not in there:
            raise DataError(
                f"{where}: expected source.args.columns.{known} to be one of "
                f"{', '.join(header)}, got {theirs!r}"
            )


def require_path(where: str, header: Sequence[str], first: Sequence[str], *, has_header: bool = True) -> None:
    """Reject a list without a column `path`; the error states the arguments that read the list.

    Args:
        header: the first row, its columns named by `known_names`.
        first: the cells of the row that follows.
        has_header: whether the source has the argument `header`.

    Raises:
        DataError: there is no column path; the message names the line.
    """
    if "path" in header:
        return
    expected = f"{where}: expected a column path, and perhaps {', '.join(KNOWN[1:])} and any of your own"
    raise DataError(f"{expected}, got {', '.join(header)!r}{_fix(header, first, has_header)}")


def check_labelled(
    where: str, header: Sequence[str], own: Mapping[str, Sequence[Any]], *, is_asked: bool
) -> None:
    """Log the columns of a list without labels that might hold them.

    Args:
        own: the values of each column that has no known name.
        is_asked: whether the user stated that there is no label.

    Raises:
        DataError: a column has a usual name of a label column.
    """
    _warn_of_times(where, header, own)
    if "split" not in header:
        _warn_of_splits(where, own)
    if "label" in header or is_asked or not own:
        return
    named = next((name for name in own if is_label_name(name)), None)
    if named is not None:
        raise DataError(
            f"{where}: expected a column label, got {named!r}; fix: add "
            f"{as_override('source.args.columns.label', named)} to take it as the label, or "
            "source.args.columns.label=null for videos without labels"
        )
    repeating = [name for name, values in own.items() if 1 < len(set(values)) <= len(values) / 2]
    hint = as_override("source.args.columns.label", repeating[0] if repeating else "NAME")
    level = log.warning if repeating else log.info
    level("%s: no column label, so the videos have no classes; %s takes one as the label", where, hint)


def _warn_of_times(where: str, header: Sequence[str], own: Mapping[str, Sequence[Any]]) -> None:
    found = {"start_s": _STARTS, "end_s": _ENDS}
    for known, pattern in found.items():
        name = next((name for name in own if pattern.fullmatch(_plain(name))), None)
        if name is not None and known not in header:
            log.warning(
                "%s: no column %s, and the column %s cuts no video; %s reads it as seconds",
                *(where, known, name, as_override(f"source.args.columns.{known}", name)),
            )


def _warn_of_splits(where: str, own: Mapping[str, Sequence[Any]]) -> None:
    for name, values in own.items():
        if values and all(isinstance(value, str) and split_name(value) for value in values):
            log.warning(
                "%s: no column split, so splits are drawn; %s takes them from the column %s",
                *(where, as_override("source.args.columns.split", name), name),
            )


def _fix(header: Sequence[str], first: Sequence[str], has_header: bool) -> str:
    if {name.lower() for name in header} >= _KINETICS:
        return "; fix: these are the columns of Kinetics, add source.name=kinetics"
    if has_header and any(names_video(cell) for cell in header):
        return _fix_without_header(header)
    path = next((name for name, cell in zip(header, first, strict=False) if is_video(cell.strip())), None)
    path = path or next((name for name in header if is_path_name(name)), None)
    if path is None:
        words = [name for name in header if name and name not in KNOWN and not is_label_name(name)]
        word = words[0] if words and len(header) > 1 else "NAME"
        return f"; fix: name the column of the paths, as in {as_override('source.args.columns.path', word)}"
    others = [name for name in header if name != path and name not in KNOWN]
    label = next((name for name in others if is_label_name(name)), None)
    if label is None and len(others) == 1 and "label" not in header:
        label = others[0]
    words = [as_override("source.args.columns.path", path)]
    words += [as_override("source.args.columns.label", label)] if label and "label" not in header else []
    return f"; fix: add {' '.join(words)}"


def _fix_without_header(cells: Sequence[str]) -> str:
    """The fix for a first row that already is a video."""
    if len(cells) == 1 and re.search(r"\s-?[0-9]+(\.0*)?$", cells[0]):
        return _PATH_LABEL
    place = next(place for place, cell in enumerate(cells) if names_video(cell))
    numbers = [re.fullmatch(r"-?[0-9]+", cell) is not None for cell in cells]
    if place == 0 and len(cells) > 2 and all(numbers[1:]):
        return _PATH_LABEL
    names = [f"column{number}" for number in range(1, len(cells) + 1)]
    names[place] = "path"
    if len(cells) == 2:
        names[1 - place] = "label"
    return (
        f"; fix: the file has no row of names, add {as_override('source.args.header', ','.join(names))} (its "
        f"columns in order; known are {', '.join(KNOWN)})"
    )


def names_of(header: str) -> list[str]:
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


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
