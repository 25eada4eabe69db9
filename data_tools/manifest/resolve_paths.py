"""Find the files of a list: other spellings of a path, and fixes for missing files."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from kinemae.data_tools.manifest.videos import is_video
from kinemae.data_tools.overrides import as_override

_MOST_FOLDERS = 200  # to search


@dataclass(frozen=True)
class Searched:
    """The base of the paths of a list.

    Attributes:
        base: the folder that source.args.videos is relative to.
        folder: the folder that relative paths are relative to.
        has_strip: whether the source has the argument `strip`.
    """

    base: Path
    folder: Path
    has_strip: bool = False


@dataclass
class Spellings:
    """Other spellings of paths without a file, each looked up in its folder.

    Lists from other systems may have backslashes, %20 for a space, ~, another Unicode form, another case, or
    names without extension.
    """

    _folders: dict[Path, "_Names"] = field(default_factory=dict)

    def find(self, path: Path) -> Path | None:
        """The only file that matches a path under another spelling; None if there is none, or several."""
        spellings = list(_spellings(str(path)))
        there = next((Path(text) for text in spellings if os.path.lexists(text)), None)
        if there is not None:
            return there
        for text in spellings:
            found = self._alike(Path(text))
            if found is not None:
                return found
        return None

    def _alike(self, path: Path) -> Path | None:
        if path.parent not in self._folders:
            self._folders[path.parent] = _Names(path.parent)
        names = self._folders[path.parent]
        key = _plain(path.name)
        found = names.by_name.get(key) or ([] if is_video(path.name) else names.by_stem.get(key, []))
        return path.parent / found[0] if len(found) == 1 else None


class _Names:
    """The files of a folder by normalised names, with and without extensions."""

    def __init__(self, folder: Path):
        self._folder = folder

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    found[_plain(entry.name)].append(entry.name)
        except OSError:
            pass  # no such folder
        return found

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for names in self.by_name.values():
            for name in names:
                if is_video(name):
                    found[_plain(name.rpartition(".")[0])].append(name)
        return found


def advice(searched: Searched, path: Path) -> str:
    """Command-line arguments with which the file of a path is found; "" if there are none.

    Args:
        path: a path of the list, joined to the base folder.
    """
    text = os.path.relpath(path, searched.folder) if path.is_relative_to(searched.folder) else str(path)
    number = re.match(r"[0-9]+\s+", text)
    if number is not None and (searched.folder / text[number.end() :]).exists():
        return as_override("source.args.header", "label,path")
    for start in [0, *(match.end() for match in re.finditer(r"[\\/]+", text))]:
        rest = text[start:].replace("\\", "/")
        if start and not searched.has_strip:
            break
        base = next((base for base in _bases(searched) if rest and (base / rest).exists()), None)
        if base is not None:
            return _overrides(searched, base, text[:start])
    return ""


def _overrides(searched: Searched, base: Path, strip: str) -> str:
    words = [as_override("source.args.strip", strip)] if strip else []
    if base.resolve() != searched.base.resolve():
        words.append(as_override("source.args.videos", os.path.relpath(base, searched.base)))
    return " ".join(words)


def _bases(searched: Searched) -> Iterator[Path]:
    yield searched.folder
    absolute = searched.base.absolute()
    yield from (absolute, *list(absolute.parents)[:3], Path.cwd())
    for folder in (absolute, absolute.parent):
        try:
            yield from sorted(child for child in folder.iterdir() if child.is_dir())[:_MOST_FOLDERS]
        except OSError:
            continue


def _spellings(text: str) -> Sequence[str]:
    with_slashes = text.replace("\\", "/")
    home = re.sub(r"^.*/~/", lambda _: f"{Path.home()}/", with_slashes)
    found = [text, with_slashes, home]
    found += [unquote(spelling) for spelling in found]
    found += [unicodedata.normalize(form, spelling) for form in ("NFC", "NFD") for spelling in found]
    return list(dict.fromkeys(found))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
