"""Where the tars of a foreign WebDataset are, here or behind a URL, and which split each belongs to."""

import fnmatch
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.files import open_regular
from kinemae.data_tools.manifest.videos import printable, split_name
from kinemae.data_tools.manifest.walk import walk
from kinemae.data_tools.storage.location import Location, location
from kinemae.data_tools.storage.retries import raise_if_outage

_MOST_SHARDS = 1_000_000
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tbz2", ".txz", ".tar.lz4")
_REMOTE_DEPTH = 2
_BUFFER = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ForeignShard:
    """A tar: its name below what the user named, where it is, and its split where names tell splits."""

    name: str
    place: Location
    split: str | None


def find_shards(root: str | Path | Location, *, by_split: bool = True) -> list[ForeignShard]:
    """The tars that a user means, sorted by name.

    Args:
        root: a folder (tars at any depth; two levels deep where it is remote), one tar, or a pattern such as
            s3://bucket/train-{0000..0099}.tar or data/train-*.tar.
        by_split: whether folders (train/) and names (train-0000.tar) tell the split.

    Raises:
        DataError: there is no tar, they are compressed, or only some tell a split.
        ValueError: a pattern that stands for too many tars, or a URL of an unknown kind.
    """
    place = location(root)
    found = _named(place) if _is_pattern(place) else dict(_below(place))
    if not found:
        raise DataError(
            f"{place} holds no tar: expected *.tar, train/*.tar, or a pattern like x-{{000..010}}.tar"
        )
    plain = sorted(name for name in found if name.endswith(".tar"))
    packed = sorted(name for name in found if name not in plain and _unpacked(name) not in found)
    if packed:
        raise DataError(
            f"{found[packed[0]]}: expected plain tars, in which single videos can be read, got {len(packed)} "
            f"compressed and {len(plain)} plain ones; fix: unpack it, or select by a pattern such as '*.tar'"
        )
    splits = {name: _split_of(name) if by_split else None for name in plain}
    _all_or_none(place, splits)
    return [ForeignShard(name=printable(name), place=found[name], split=splits[name]) for name in plain]


def open_shard(place: Location) -> IO[bytes]:
    """A tar as a seekable file; a remote one is read by ranges.

    Raises:
        DataError: it cannot be opened.
    """
    if place.path is None:
        return io.BufferedReader(_Ranges(place), buffer_size=_BUFFER)
    try:
        return open_regular(place.path)
    except OSError as error:
        raise_if_outage(error, f"cannot read {place}")
        raise DataError(f"cannot read {place}: {error.strerror}; check that it is there") from error


class _Ranges(io.RawIOBase):
    """A remote file that can be read and sought in."""

    def __init__(self, place: Location):
        self._place = place
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset}.get(whence)
        self._offset = offset + (self._place.size() if begin is None else begin)
        return self._offset

    def readinto(self, buffer: Any) -> int:
        content = self._place.read(self._offset, len(buffer))
        buffer[: len(content)] = content
        self._offset += len(content)
        return len(content)


def _is_pattern(place: Location) -> bool:
    """A tar's name or a pattern; what exists under its own name is no pattern."""
    if place.path is not None and place.path.exists():
        return place.path.is_file()
    return any(sign in place.url for sign in "{*") or place.name.endswith((".tar", *_COMPRESSED))


def _named(place: Location) -> dict[str, Location]:
    """Tars by name, below the folder in which a pattern begins: what the pattern stands for."""
    if place.path is not None and place.path.is_file():
        return {place.name: place}
    begin = len(re.split(r"[{*]", place.url)[0].rpartition("/")[0])
    found: dict[str, Location] = {}
    for url in _expand(place.url):
        folder, slash, name = url.rpartition("/")
        if "*" in name:
            inside = location(f"{folder}{slash}" or ".")
            names = [each for each in inside.list() if fnmatch.fnmatchcase(each, name)]
            found |= {f"{folder}/{each}"[begin:].lstrip("/"): inside / each for each in names}
        else:
            found[url[begin:].lstrip("/").partition("?" if place.is_remote else "\0")[0]] = location(url)
    return found


def _expand(text: str) -> list[str]:
    """Braces as the shell and webdataset expand them: {000..010} and {a,b}.

    Raises:
        ValueError: too many names.
    """
    braces = re.search(r"\{(?:([0-9]+)\.\.([0-9]+)|([^{}]*,[^{}]*))\}", text)
    if braces is None:
        return [text]
    first, last, words = braces.groups()
    count = words.count(",") + 1 if words else max(int(last) - int(first) + 1, 0)
    rests = _expand(text[braces.end() :]) if count <= _MOST_SHARDS else [""]
    if count * len(rests) > _MOST_SHARDS:
        raise ValueError(
            f"{text} stands for {count * len(rests)} shards, more than {_MOST_SHARDS}: name fewer of them"
        )
    chosen = words.split(",") if words else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [text[: braces.start()] + word + rest for word in chosen for rest in rests]


def _below(place: Location) -> Iterator[tuple[str, Location]]:
    endings = (".tar", *_COMPRESSED)
    if place.path is None:
        yield from _remote_below(place, "", endings, _REMOTE_DEPTH)
        return
    for folder, files in walk(place.path):
        for name in files:
            if name.endswith(endings) and not name.startswith("."):
                path = folder / name
                yield path.relative_to(place.path).as_posix(), location(path)


def _unpacked(name: str) -> str:
    """The name of a compressed tar after unpacking: x.tar for x.tar.gz and x.tgz."""
    return re.sub(r"\.(tgz|tbz2|txz|tar\.\w+)$", ".tar", name)


def _remote_below(
    place: Location, above: str, endings: tuple[str, ...], depth: int
) -> Iterator[tuple[str, Location]]:
    for name in place.list():
        if name.endswith(endings):
            yield f"{above}{name}", place / name
        elif depth > 1 and "." not in name:  # perhaps a folder: object stores do not tell
            yield from _remote_below(place / name, f"{above}{name}/", endings, depth - 1)


def _split_of(name: str) -> str | None:
    """From train/x.tar, data/train/x.tar, data/train-0000.tar or train.tar."""
    *folders, file = name.split("/")
    word = re.match(r"[A-Za-z]*", file)
    assert word is not None
    return next((split for text in (*folders, word[0]) if (split := split_name(text)) is not None), None)


def _all_or_none(place: Location, splits: dict[str, str | None]) -> None:
    named = [name for name, split in splits.items() if split is not None]
    others = [name for name, split in splits.items() if split is None]
    if named and others:
        raise DataError(
            f"{place}: {named[0]} tells its split and {others[0]} tells none; rename them, or take all "
            "for one with by_split=false (source.args.by_split=false to shard)"
        )
