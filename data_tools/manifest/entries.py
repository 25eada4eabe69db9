"""Entries of a list of videos: find their files, check them against each other, build the manifest."""

import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import require
from kinemae.data_tools.manifest.class_map import unified_labels
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo, is_video
from kinemae.data_tools.overrides import as_override
from kinemae.data_tools.storage.location import location

# Splits whose videos may lack a label or have none, while all others have one.
_UNLABELLED_SPLITS = ("unlabelled", "test")
_MAX_FOLDERS = 200  # to search for a missing file


@dataclass(frozen=True, kw_only=True, slots=True)  # there may be millions
class Entry:
    """A video and its location in a list, such as "train.csv, line 7"."""

    where: str
    video: SourceVideo


@dataclass(frozen=True)
class PathBase:
    """The base of the paths of a list, for the fix in the error about missing files.

    Attributes:
        base: the folder that source.args.videos is relative to.
        folder: the folder that relative paths are relative to.
        has_strip: whether the source has the argument `strip`.
    """

    base: Path
    folder: Path
    has_strip: bool = False


def build_manifest(
    entries: Sequence[Entry],
    *,
    max_missing_fraction: float,
    classes: Iterable[str] = (),
    ignored: int = 0,
    path_base: PathBase | None = None,
) -> Manifest:
    """Check the entries of a list and build the manifest.

    Args:
        max_missing_fraction: reject the list if a larger fraction of its files is missing. Otherwise the
            missing ones stay in the manifest and are rejected one by one.

    Raises:
        DataError: a video is repeated, only some videos have a split or a label, or too many files are
            missing; the message states the line.
    """
    entries, missing = _with_files(_with_unified_labels(entries))
    _check_unique(entries)
    _check_all_or_none("split", [(entry, entry.video.split) for entry in entries])
    labelled = [entry for entry in entries if entry.video.split not in _UNLABELLED_SPLITS]
    _check_all_or_none("label", [(entry, entry.video.label) for entry in labelled])
    if missing:
        _check_missing(missing, len(entries), max_missing_fraction, path_base)
    videos = tuple(entry.video for entry in entries)
    return Manifest(videos=videos, ignored=ignored, missing=len(missing), classes=tuple(classes))


def check_arguments(
    *,
    max_missing_fraction: float = 0.0,
    num_classes: int = 0,
    fold: int = 1,
    fps: float = 25.0,
    filename_tmpl: str = "{:05}",
) -> None:
    """Reject invalid arguments that several sources share.

    Raises:
        ValueError: an argument is out of range.
    """
    key = "source.args"
    is_fraction = 0 <= max_missing_fraction <= 1
    require(is_fraction, f"{key}.max_missing_fraction", "lie in [0, 1]", max_missing_fraction)
    require(num_classes >= 0, f"{key}.num_classes", "be 0 (any labels) or more", num_classes)
    require(fold in (1, 2, 3), f"{key}.fold", "be 1, 2 or 3", fold)
    require(fps > 0, f"{key}.fps", "be above 0", fps)
    is_template = re.fullmatch(r"[^{}/]*\{:0?[0-9]*d?\}[^{}/]*", filename_tmpl) is not None
    require(is_template, f"{key}.filename_tmpl", "hold one number format such as {:05}", filename_tmpl)


def video_location(where: str, folder: Path, text: str) -> tuple[Path, str]:
    """The path and the URL of a video in a list; the URL of a local file is empty.

    Raises:
        DataError: an unknown kind of URL; the message states the line.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is None:
        return folder / text, ""
    try:
        place = location(text)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    return (place.path, "") if place.path else (Path(place.name), text)


def folder_of_videos(root: Path, videos: str, guesses: Sequence[str] = ()) -> Path:
    """The base folder of the paths of a list.

    Args:
        root: the folder of the list.
        videos: source.args.videos, relative to it; "" selects the first guess that exists, else the root.

    Raises:
        ValueError: the folder of `videos` does not exist.
    """
    if videos:
        if not (root / videos).is_dir():
            raise ValueError(
                f"source.args.videos must be a folder, got {root / videos}, which does not exist"
            )
        return root / videos
    return next((root / guess for guess in guesses if (root / guess).is_dir()), root)


def _with_unified_labels(entries: Sequence[Entry]) -> list[Entry]:
    spelling = unified_labels(entry.video.label for entry in entries)
    return [
        replace(entry, video=replace(entry.video, label=spelling[label]))
        if (label := entry.video.label) is not None and spelling.get(label, label) != label
        else entry
        for entry in entries
    ]


def _with_files(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Entries with paths resolved to existing files of other spellings, and the entries without a file."""
    spellings = _Spellings()
    found, missing, respelled = [], [], []
    for entry in entries:
        video = entry.video
        mode = None if video.url else _mode(video.path)
        if mode is not None and stat.S_ISDIR(mode) and not video.frames:
            raise DataError(
                f"{entry.where}: expected a video file, got the folder {video.path}; fix: for folders of "
                "images use source.name=frames, mmaction2 or path_label"
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
            "%d paths of the list have another spelling on the disk, first %s: %s is %s",
            *(len(respelled), first.where, first.video.name, path),
        )
    return found, missing


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _respelled(video: SourceVideo, path: Path) -> str:
    """The name with forward slashes and with the extension that the list omits."""
    name = video.name.replace("\\", "/")
    return name if is_video(name) or not is_video(path.name) else f"{name}{path.suffix}"


def _check_unique(entries: Sequence[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        earlier = first.setdefault(entry.video.name, entry)
        if earlier is not entry:
            file, _, line = earlier.where.rpartition(", ")
            where = line if entry.where.startswith(f"{file}, ") else earlier.where
            raise DataError(
                f"{entry.where}: expected each video once, got {entry.video.name}, which is also in {where}; "
                "fix: remove one of them"
            )


def _check_all_or_none(what: str, values: Sequence[tuple[Entry, str | None]]) -> None:
    without = [entry for entry, value in values if value is None]
    if without and len(without) < len(values):
        raise DataError(
            f"{without[0].where}: expected a {what} for all videos or for none, got none here and in "
            f"{len(without) - 1} of the other {len(values) - 1} entries"
        )


def _check_missing(
    missing: Sequence[Entry], total: int, max_missing_fraction: float, path_base: PathBase | None
) -> None:
    path = missing[0].video.path
    first = f"first {missing[0].where}: {path}"
    if len(missing) > max_missing_fraction * total:
        hint = _path_fix(path_base, path) if path_base else ""
        fix = f"add {hint}" if hint else "correct the paths, or set their folder by source.args.videos"
        if len(missing) < total:
            fix += f", or raise source.args.max_missing_fraction={max_missing_fraction}"
        file = missing[0].where.rpartition(", ")[0]
        raise DataError(
            f"{file}: expected a file for each of {total} videos, got none for {len(missing)}, {first}; "
            f"fix: {fix}"
        )
    log.warning("%d of %d videos of the list have no file, %s", len(missing), total, first)


class _Spellings:
    """Other spellings of missing paths, looked up in their folders.

    Lists from other systems may have backslashes, %20 for a space, ~, another Unicode form, another case, or
    names without extension.
    """

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path | None:
        """The only file that matches a path under another spelling; None if there is none, or several."""
        spellings = list(_spellings(str(path)))
        exact = next((Path(text) for text in spellings if os.path.lexists(text)), None)
        return exact or next((found for text in spellings if (found := self._alike(Path(text)))), None)

    def _alike(self, path: Path) -> Path | None:
        if path.parent not in self._names:
            self._names[path.parent] = _normalized_names(path.parent)
        names = self._names[path.parent]
        key = _plain(path.name)
        found = names.get(key) or ([] if is_video(path.name) else names.get(f"{key}.", []))
        return path.parent / found[0] if len(found) == 1 else None


def _normalized_names(folder: Path) -> dict[str, list[str]]:
    """The files of a folder by normalized name, and its videos also by the name up to the last dot."""
    found = defaultdict(list)
    with suppress(OSError):  # no such folder
        for name in os.listdir(folder):
            found[_plain(name)].append(name)
            if is_video(name):
                found[_plain(f"{name.rpartition('.')[0]}.")].append(name)
    return found


def _spellings(text: str) -> Sequence[str]:
    with_slashes = text.replace("\\", "/")
    home = re.sub(r"^.*/~/", lambda _: f"{Path.home()}/", with_slashes)
    found = [text, with_slashes, home]
    found += [unquote(spelling) for spelling in found]
    found += [unicodedata.normalize(form, spelling) for form in ("NFC", "NFD") for spelling in found]
    return list(dict.fromkeys(found))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _path_fix(path_base: PathBase, path: Path) -> str:
    """Overrides with which the file of a path is found; "" if there are none."""
    folder = path_base.folder
    text = os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)
    number = re.match(r"[0-9]+\s+", text)
    if number is not None and (folder / text[number.end() :]).exists():
        return as_override("source.args.header", "label,path")
    starts = [match.end() for match in re.finditer(r"[\\/]+", text)] if path_base.has_strip else []
    for start in (0, *starts):
        rest = text[start:].replace("\\", "/")
        base = next((base for base in _bases(path_base) if rest and (base / rest).exists()), None)
        if base is not None:
            words = [as_override("source.args.strip", text[:start])] if start else []
            if base.resolve() != path_base.base.resolve():
                words.append(as_override("source.args.videos", os.path.relpath(base, path_base.base)))
            return " ".join(words)
    return ""


def _bases(path_base: PathBase) -> Iterator[Path]:
    yield path_base.folder
    absolute = path_base.base.absolute()
    yield from (absolute, *list(absolute.parents)[:3], Path.cwd())
    for folder in (absolute, absolute.parent):
        try:
            yield from sorted(child for child in folder.iterdir() if child.is_dir())[:_MAX_FOLDERS]
        except OSError:
            continue
