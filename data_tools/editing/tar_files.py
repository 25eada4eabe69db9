"""Tars written anew from members of others; only class numbers in KEY.json may change."""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kinemae.data_tools.command import DataError, writing_to
from kinemae.data_tools.index import DESCRIPTION_FORMAT, DESCRIPTION_KEY, Shard
from kinemae.data_tools.indexing.tar_members import TarMember, read_members, split_key
from kinemae.data_tools.storage.location import Location

_MODE = 0o444  # as webdataset's TarWriter writes members
_BLOCK = 512


class TarFile:
    """An opened tar: its members in order, and those of each sample.

    Attributes:
        members: all files of the tar.
    """

    def __init__(self, file: IO[bytes], name: str):
        self.file, self.name = file, name
        self.members = read_members(file, name)
        self._keys: dict[int, list[str]] = {}  # several for hard links
        for member in self.members:
            if not member.link:
                self._keys.setdefault(member.offset, []).append(split_key(member.name)[0])
        self._by_key: dict[str, list[TarMember]] = {}
        for member in self.members:
            self._by_key.setdefault(split_key(member.name)[0], []).append(member)

    def sample(self, offset: int, key: str) -> list[TarMember]:
        """The members of the sample whose video begins at an offset.

        Args:
            key: its key in the index, which may begin with the name of the tar; it distinguishes the samples
                of hard links.

        Raises:
            DataError: there is no such video.
        """
        keys = [known for known in self._keys.get(offset, []) if known]
        if not keys:
            raise DataError(
                f"{self.name}: expected a video at byte {offset}, as the index states, got none; fix: repair "
                "the tar, which `kinemae data verify` checks"
            )
        own = [known for known in keys if f"/{key}".endswith(f"/{known}")]
        return self._by_key[max(own, key=len, default=keys[-1])]

    def relabelled(self, members: Sequence[TarMember], label: int) -> dict[str, bytes]:
        """The KEY.json of a sample with another class number, by name; empty if it has this one."""
        for member in members:
            if split_key(member.name)[1] == "json" and not member.link:
                self.file.seek(member.offset)
                content = _description(self.file.read(member.length))
                if content.get("label_index", label) != label:
                    text = json.dumps({**content, "label_index": label}, ensure_ascii=False)
                    return {member.name: text.encode()}
        return {}


def _description(text: bytes) -> dict[str, Any]:
    """A KEY.json of `kinemae data shard`; empty for another one."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    is_own = isinstance(content, dict) and content.get(DESCRIPTION_KEY) == DESCRIPTION_FORMAT
    return content if is_own else {}


@contextmanager
def open_tar(place: Location) -> Iterator[TarFile]:
    """Open a tar; a remote one is copied to this machine first."""
    with tempfile.TemporaryDirectory(prefix="kinemae-tar-") as folder:
        path = place.path
        if path is None:
            path = Path(folder) / "shard.tar"
            place.download(path)
        with path.open("rb") as file:
            yield TarFile(file, str(place))


class TarWriter:
    """A new tar in a folder, complete or absent; equal members give equal bytes.

    Args:
        folder: local or remote, locked by this process; a tar of a remote one is first written to a
            temporary folder.
    """

    def __init__(self, folder: Location):
        self._folder = folder
        self._scratch = tempfile.TemporaryDirectory(prefix="kinemae-tar-") if folder.path is None else None
        self._path = Path(self._scratch.name if self._scratch else folder.url) / "shard.partial"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")  # closed by `finish` or `discard`
        self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115

    def add(
        self, tar: TarFile, members: Sequence[TarMember], changed: Mapping[str, bytes] | None = None
    ) -> dict[int, int]:
        """Append members of a tar; return the new offset of each old one.

        Args:
            changed: other bytes of some members, by name.

        Raises:
            DataError: the disk is full, or the tar has become shorter.
        """
        offsets = {}
        with writing_to(self._path.parent):
            for member in members:
                info = tarfile.TarInfo(member.name)
                info.size, info.mode = member.length, _MODE
                if member.link:
                    info.type, info.linkname, info.size = tarfile.SYMTYPE, member.link, 0
                tar.file.seek(member.offset)
                source: IO[bytes] | _Exactly = _Exactly(tar.file, f"{tar.name}, {member.name}")
                if changed and member.name in changed:
                    source, info.size = io.BytesIO(changed[member.name]), len(changed[member.name])
                self._tar.addfile(info, source)
                offsets[member.offset] = int(self._tar.offset) - -(-info.size // _BLOCK) * _BLOCK
        return offsets

    def finish(self, name: str, samples: int) -> Shard:
        """Close the tar and give it its name; `{digest}` in it becomes the start of its sha256."""
        with writing_to(self._path.parent):
            self._tar.close()
            self._file.close()
            with self._path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            size = self._path.stat().st_size
            name = name.format(digest=sha256[:8])
            if self._folder.path is not None:
                self._path.replace(self._folder.path / name)
        if self._folder.path is None:
            (self._folder / name).upload(self._path)
        self.discard()
        return Shard(name=name, samples=samples, bytes=size, sha256=sha256)

    def discard(self) -> None:
        """Remove the unfinished file."""
        with suppress(OSError):  # a full disk
            self._file.close()
        self._path.unlink(missing_ok=True)
        if self._scratch is not None:
            self._scratch.cleanup()


class _Exactly(io.RawIOBase):
    """A file for `tarfile`; reads return as many bytes as requested."""

    def __init__(self, file: IO[bytes], name: str):
        self._file, self._name = file, name

    def read(self, length: int = -1, /) -> bytes:
        """Read exactly this number of bytes."""
        block = self._file.read(length)
        if len(block) < length:
            raise DataError(
                f"{self._name}: expected {length} more bytes, got {len(block)}; fix: copy it again"
            )
        return block
