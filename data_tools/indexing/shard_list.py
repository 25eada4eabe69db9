"""Find the tars of a WebDataset, local or remote, and the split of each."""

import fnmatch
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from braceexpand import braceexpand

from kinemae.data_tools.command import DataError
from kinemae.data_tools.files import open_regular
from kinemae.data_tools.manifest.videos import printable, split_name, walk
from kinemae.data_tools.storage.location import Location, location
from kinemae.data_tools.storage.retries import raise_if_outage

_MAX_SHARDS = 1_000_000
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tbz2", ".txz", ".tar.lz4")
_REMOTE_DEPTH = 2
_BLOCK = 1 << 14  # bytes of a request: headers and small members, few bytes of a video
_BLOCKS = 4096


@dataclass(frozen=True, kw_only=True)
class InputShard:
    """A tar: its name relative to SHARDS, its location, and its split (None if names give no splits)."""

    name: str
    place: Location
    split: str | None


def find_shards(root: str | Path | Location, *, by_split: bool = True) -> list[InputShard]:
    """Find tars, sorted by name.

    Args:
        root: a folder (searched at any depth; two levels deep if remote), one tar, or a pattern such as
            s3://bucket/train-{0000..0099}.tar or data/train-*.tar.
        by_split: whether folders (train/) and file names (train-0000.tar) give the split.

    Raises:
        DataError: there is no tar, a tar is compressed, or only some names give a split.
        ValueError: an invalid pattern, a pattern with too many tars, or an unknown kind of URL.
    """
    place = location(root)
    found = _matching(place) if _is_pattern(place) else dict(_below(place))
    if not found:
        raise DataError(
            f"{place}: expected *.tar, train/*.tar, or a pattern such as x-{{000..010}}.tar, got no tar"
        )
    plain = sorted(name for name in found if name.endswith(".tar"))
    packed = sorted(name for name in found if name not in plain and _unpacked(name) not in found)
    if packed:
        raise DataError(
            f"{found[packed[0]]}: expected plain tars, for reads of single videos, got {len(packed)} "
            f"compressed and {len(plain)} plain ones; fix: unpack it, or select by a pattern such as '*.tar'"
        )
    splits = {name: _split_of(name) if by_split else None for name in plain}
    _check_splits(place, splits)
    return [InputShard(name=printable(name), place=found[name], split=splits[name]) for name in plain]


def open_shard(place: Location) -> IO[bytes]:
    """Open a tar as a seekable file; a remote one is read by ranges.

    Raises:
        DataError: the tar cannot be opened.
    """
    if place.path is None:
        return io.BufferedReader(_RemoteFile(place), buffer_size=_BLOCK)
    try:
        return open_regular(place.path)
    except OSError as error:
        raise_if_outage(error, f"cannot read {place}")
        raise DataError(
            f"{place}: expected a readable tar, got an error ({error.strerror}); fix: check the path"
        ) from error


class _RemoteFile(io.RawIOBase):
    """A seekable remote file, read in blocks. The last ones are kept: small members are beside headers."""

    def __init__(self, place: Location):
        self._place = place
        self._offset = 0
        self._block = lru_cache(_BLOCKS)(lambda number: place.read(number * _BLOCK, _BLOCK))

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
        number, begin = divmod(self._offset, _BLOCK)
        content = self._block(number)[begin : begin + len(buffer)]
        buffer[: len(content)] = content
        self._offset += len(content)
        return len(content)


def _is_pattern(place: Location) -> bool:
    """Check whether a location is one tar or a pattern; an existing path is never a pattern."""
    if place.path is not None and place.path.exists():
        return place.path.is_file()
    return any(sign in place.url for sign in "{*") or place.name.endswith((".tar", *_COMPRESSED))


def _matching(place: Location) -> dict[str, Location]:
    """The tars of a pattern by name, relative to the folder in which the pattern begins."""
    if place.path is not None and place.path.is_file():
        return {place.name: place}
    begin = len(re.split(r"[{*]", place.url)[0].rpartition("/")[0])
    found: dict[str, Location] = {}
    for url in _expand(place.url):
        folder, slash, name = url.rpartition("/")
        if "*" in name:
            parent = location(f"{folder}{slash}" or ".")
            names = fnmatch.filter(parent.list(), name)
            found |= {f"{folder}/{each}"[begin:].lstrip("/"): parent / each for each in names}
        else:
            found[url[begin:].lstrip("/").partition("?" if place.is_remote else "\0")[0]] = location(url)
    return found


def _expand(pattern: str) -> list[str]:
    # The count is checked first, because braceexpand builds all names in memory.
    ranges = re.findall(r"\{([0-9]+)\.\.([0-9]+)\}", pattern)
    count = math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)
    if count > _MAX_SHARDS:
        raise ValueError(f"SHARDS {pattern}: expected at most {_MAX_SHARDS} shards, got {count}")
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError as error:
        raise ValueError(f"SHARDS {pattern}: expected a pattern with balanced braces, got {error}") from error


def _below(place: Location) -> Iterator[tuple[str, Location]]:
    extensions = (".tar", *_COMPRESSED)
    if place.path is None:
        yield from _remote_below(place, "", extensions, _REMOTE_DEPTH)
        return
    for folder, files in walk(place.path):
        for name in files:
            if name.endswith(extensions) and not name.startswith("."):
                path = folder / name
                yield path.relative_to(place.path).as_posix(), location(path)


def _remote_below(
    place: Location, prefix: str, extensions: tuple[str, ...], depth: int
) -> Iterator[tuple[str, Location]]:
    for name in place.list():
        if name.endswith(extensions):
            yield f"{prefix}{name}", place / name
        elif depth > 1 and "." not in name:  # possibly a folder: object stores have no folders
            yield from _remote_below(place / name, f"{prefix}{name}/", extensions, depth - 1)


def _unpacked(name: str) -> str:
    """The name of a compressed tar after unpacking: x.tar for x.tar.gz and x.tgz."""
    return re.sub(r"\.(tgz|tbz2|txz|tar\.\w+)$", ".tar", name)


def _split_of(name: str) -> str | None:
    """The split in train/x.tar, data/train/x.tar, data/train-0000.tar or train.tar."""
    *folders, file = name.split("/")
    words = [*folders, *re.findall(r"^[A-Za-z]+", file)]
    return next((split for word in words if (split := split_name(word)) is not None), None)


def _check_splits(place: Location, splits: dict[str, str | None]) -> None:
    named = [name for name, split in splits.items() if split is not None]
    others = [name for name, split in splits.items() if split is None]
    if named and others:
        raise DataError(
            f"{place}: expected a split in each name or in none, got {named[0]} and {others[0]}; fix: rename "
            "them, or use all as one split with by_split=false (for shard source.args.by_split=false)"
        )
