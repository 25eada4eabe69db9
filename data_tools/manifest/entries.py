"""What the sources that read a list share: entries that know their line, held against each other."""

import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import require
from kinemae.data_tools.manifest.labels import one_spelling
from kinemae.data_tools.manifest.resolve_paths import Searched, Spellings, advice
from kinemae.data_tools.manifest.text import is_comment, lines_of, read_text
from kinemae.data_tools.manifest.videos import Listing, SourceVideo, is_video
from kinemae.data_tools.storage.location import location

# What a list may leave without a label beside videos that have one.
_MAY_LACK_A_LABEL = ("unlabelled", "test")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A video and where a list names it, as in "train.csv, line 7"."""

    where: str
    video: SourceVideo


def listing_of(
    entries: Sequence[Entry],
    *,
    max_missing_fraction: float,
    classes: Iterable[str] = (),
    ignored: int = 0,
    searched: Searched | None = None,
) -> Listing:
    """The videos of a list that does not contradict itself.

    Args:
        max_missing_fraction: more videos without a file than this share are a mistake in the list or in
            the folder; fewer stay in the listing, to be rejected one by one.
        searched: the base of its paths, for the fix in the error about missing files.

    Raises:
        DataError: a video stands there twice, only some have a split or a label, or too many are missing;
            the message names the line.
    """
    entries, missing = _with_files(_with_one_spelling(entries))
    _refuse_repeats(entries)
    _all_or_none("split", [(entry, entry.video.split) for entry in entries])
    labelled = [entry for entry in entries if entry.video.split not in _MAY_LACK_A_LABEL]
    _all_or_none("label", [(entry, entry.video.label) for entry in labelled])
    if missing:
        _weigh_missing(missing, len(entries), max_missing_fraction, searched)
    videos = tuple(entry.video for entry in entries)
    return Listing(videos=videos, ignored=ignored, missing=len(missing), classes=tuple(classes))


def check_list_arguments(max_missing_fraction: float, classes: int = 0) -> None:
    """Refuse arguments that no list can have.

    Raises:
        ValueError: one of them is out of its range.
    """
    key = "source.args.max_missing_fraction"
    require(0 <= max_missing_fraction <= 1, key, "lie in [0, 1]", max_missing_fraction)
    require(classes >= 0, "source.args.classes", "be 0 (as many as there are) or more", classes)


def check_fold(fold: int) -> None:
    """Refuse a number that is none of the three official splits of UCF101 and HMDB51.

    Raises:
        ValueError: it is none.
    """
    require(fold in (1, 2, 3), "source.args.fold", "be 1, 2 or 3", fold)


def numbered_lines(file: Path, encoding: str | None = None) -> list[tuple[str, str]]:
    """The location and text of each line, without empty lines and comments.

    Args:
        encoding: as for `read_text`.
    """
    lines = enumerate(lines_of(read_text(file, encoding)), 1)
    return [
        (f"{file}, line {number}", line) for number, line in lines if line.strip() and not is_comment(line)
    ]


def placed(where: str, folder: Path, text: str) -> tuple[Path, str]:
    """The path and the URL (empty where it is a file of this machine) of a video that a list names.

    Raises:
        DataError: a URL of a kind that is not allowed; the message names the line.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is None:
        return folder / text, ""
    try:
        place = location(text)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    return (place.path, "") if place.path else (Path(place.name), text)


def folder_of_videos(root: Path, videos: str, guesses: Sequence[str] = ()) -> Path:
    """The folder that a list's paths begin from.

    Args:
        root: the folder of the list.
        videos: the user's word, relative to it; "" takes the first of the guesses that exists, else the root.

    Raises:
        ValueError: the user's folder does not exist.
    """
    if videos:
        if not (root / videos).is_dir():
            raise ValueError(f"source.args.videos: there is no folder {root / videos}")
        return root / videos
    return next((root / guess for guess in guesses if (root / guess).is_dir()), root)


def class_number(where: str, text: str, classes: int) -> str:
    """A label that must be a whole number, in [0, classes) where `classes` is not 0.

    Raises:
        DataError: it is none, or out of range; the message names the line.
    """
    if not re.fullmatch(r"[0-9]+(\.0*)?", text):
        raise DataError(f"{where}: expected a label that is a whole number, 0 or more, got {text!r}")
    text = text.partition(".")[0]
    if classes and int(text) >= classes:
        raise DataError(
            f"{where}: label {text} is out of range, source.args.classes={classes} allows 0 to {classes - 1}"
        )
    return str(int(text))


def numbered_classes(classes: int) -> list[str]:
    """The names of classes that are numbers; none where their number is not known."""
    return [str(number) for number in range(classes)]


def _with_one_spelling(entries: Sequence[Entry]) -> list[Entry]:
    """Entries whose labels spell each whole number in one way."""
    spelled = one_spelling(entry.video.label for entry in entries if entry.video.label is not None)
    return [
        replace(entry, video=replace(entry.video, label=spelled[label]))
        if (label := entry.video.label) is not None and spelled.get(label, label) != label
        else entry
        for entry in entries
    ]


def _with_files(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Entries with paths resolved to existing files of other spellings, and the entries without a file."""
    spellings = Spellings()
    found, missing, respelled = [], [], []
    for entry in entries:
        video = entry.video
        mode = None if video.url else _mode(video.path)
        if mode is not None and stat.S_ISDIR(mode) and not video.frames:
            raise DataError(
                f"{entry.where}: expected a video file, got the folder {video.path}; fix: for folders of "
                "pictures see source.name=frames, mmaction2 and path_label"
            )
        if mode is None and not video.url:
            path = spellings.find(video.path)
            if path is None or not path.exists():
                missing.append(entry)
            else:
                respelled.append((entry, path))
                entry = replace(entry, video=replace(video, path=path, name=_respelled(video, path)))
        found.append(entry)
    if respelled:
        first, path = respelled[0]
        log.info(
            "%d paths of the list are spelled otherwise on the disk, first %s: %s is %s",
            *(len(respelled), first.where, first.video.name, path),
        )
    return found, missing


def _mode(path: Path) -> int | None:
    """The mode of a file; None where there is none."""
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _respelled(video: SourceVideo, path: Path) -> str:
    """The name with forward slashes and with the extension that the list omits."""
    name = video.name.replace("\\", "/")
    return name if is_video(name) or not is_video(path.name) else f"{name}{path.suffix}"


def _refuse_repeats(entries: Sequence[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        earlier = first.setdefault(entry.video.name, entry)
        if earlier is not entry:
            file, _, line = earlier.where.rpartition(", ")
            where = line if entry.where.startswith(f"{file}, ") else earlier.where
            raise DataError(f"{entry.where}: {entry.video.name} stands in {where} already; keep one of them")


def _all_or_none(what: str, given: Sequence[tuple[Entry, str | None]]) -> None:
    without = [entry for entry, value in given if value is None]
    if without and len(without) < len(given):
        raise DataError(
            f"{without[0].where}: the {what} is missing, as in {len(without)} of {len(given)} entries; "
            f"give every video a {what} or none"
        )


def _weigh_missing(
    missing: Sequence[Entry], total: int, max_missing_fraction: float, searched: Searched | None
) -> None:
    first = f"first {missing[0].where}: {missing[0].video.path}"
    hint = advice(searched, missing[0].video.path) if searched else ""
    if len(missing) > max_missing_fraction * total:
        where = f"add {hint}" if hint else "correct the paths, or name their folder in source.args.videos"
        share = f"source.args.max_missing_fraction above {max_missing_fraction}"
        other = f", or raise {share}" if len(missing) < total else ""
        raise DataError(
            f"{len(missing)} of {total} videos of the list have no file, {first}; fix: {where}{other}"
        )
    log.warning("%d of %d videos of the list have no file, %s", len(missing), total, first)
