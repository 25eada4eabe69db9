"""Members of WebDataset tars: read all headers, group members into samples, reject damaged tars.

webdataset stops silently at a truncated tar or at a damaged header. Here both are errors that name the tar.
"""

import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.videos import VIDEO_EXTENSIONS, printable

# webdataset's own decoders unpickle these members, which can run code.
_PICKLE_EXTENSIONS = frozenset("pickle pkl pyd pth pt dill joblib".split())  # noqa: SIM905
_BLOCK = 512
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """A file in a tar.

    Attributes:
        offset, length: the position of its bytes.
        link: the target of a link whose bytes are not in the tar; "" for a file.
    """

    name: str
    offset: int
    length: int
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class TarSample:
    """The members of one key by lower-case extension, and the member that is the video."""

    key: str
    video: TarMember
    members: dict[str, TarMember] = field(default_factory=dict)

    def member(self, extension: str) -> TarMember | None:
        """The member with an extension; if the key holds dots, the member that shares the video's full name.

        webdataset ends a key at the first dot: `v2.0 a.mp4` has the key `v2` and the extension `0 a.mp4`.
        """
        for found, member in self.members.items():
            if member == self.video:
                same_name = f"{found.rpartition('.')[0]}.{extension}"
                return self.members.get(extension) or self.members.get(same_name)
        return self.members.get(extension)


@dataclass(frozen=True, kw_only=True)
class TarContents:
    """Contents of a tar: samples in order, skipped keys with reasons, and the number of other files."""

    samples: tuple[TarSample, ...]
    skipped: dict[str, str]
    ignored: int


def read_members(file: IO[bytes], name: str) -> list[TarMember]:
    """List all files of a tar in order. A hard link gets the bytes of its target.

    Args:
        file: the tar, seekable.
        name: the tar's name in errors.

    Raises:
        DataError: the file is not a plain tar, is truncated, or has a damaged header.
    """
    _check_uncompressed(file, name)
    members: list[TarMember] = []
    targets: dict[str, TarMember] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.issparse():
                    raise DataError(
                        f"{name}: expected plain members, got the sparse file {info.name}; "
                        "fix: create the tar again without --sparse"
                    )
                member = _member(info, targets)
                if member is not None:
                    members.append(member)
                    targets[info.name] = member
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(
            f"{name}: expected a tar, got invalid data ({error}); fix: download or create it again"
        ) from error
    _check_end(file, name, end, members)
    return members


def _member(info: tarfile.TarInfo, targets: Mapping[str, TarMember]) -> TarMember | None:
    """Convert a file or a link; None for other kinds of members."""
    name = printable(info.name)
    if info.isreg():
        return TarMember(name=name, offset=info.offset_data, length=info.size)
    target = targets.get(info.linkname) if info.islnk() else None
    if target is not None:
        return replace(target, name=name)
    if info.islnk() or info.issym():
        return TarMember(name=name, offset=info.offset_data, length=0, link=printable(info.linkname))
    return None


def group_members(members: Sequence[TarMember], name: str, *, video: str = "") -> TarContents:
    """Group members into samples as webdataset does: a key ends at the first dot of the base name.

    Args:
        name: the tar's name in errors.
        video: the extension of the video member in samples with several videos.

    Raises:
        DataError: a key has two members with one extension, or several videos without `video`.
    """
    keys: dict[str, dict[str, TarMember]] = {}
    links: dict[str, TarMember] = {}
    ignored = 0
    for member in members:
        key, extension = split_key(member.name)
        if not key:
            ignored += 1
        elif member.link:
            keys.setdefault(key, {})
            links[key] = member if is_video_extension(extension) else links.get(key, member)
        elif extension in keys.setdefault(key, {}):
            raise DataError(
                f"{name}: expected unique members, got {member.name} twice; fix: remove or rename one"
            )
        else:
            keys[key][extension] = member
    warn_of_pickles(members, name)
    samples, skipped = [], {}
    for key, found in keys.items():
        chosen = _video_of(found, f"{name}, {key}", video)
        if chosen is not None:
            samples.append(TarSample(key=key, video=chosen, members=found))
        elif key in links:
            skipped[key] = f"{links[key].name} is a link to {links[key].link}, which is not in the tar"
        else:
            skipped[key] = "no member of the sample is a video"
    return TarContents(samples=tuple(samples), skipped=skipped, ignored=ignored)


def split_key(name: str) -> tuple[str, str]:
    """Split a member name into key and extension as webdataset does; two empty strings if it skips it."""
    found = re.fullmatch(r"((?:.*/)?[^./]+)[.]([^/]*)", name, re.DOTALL)
    if found is None or re.match(r"__[^/]*__($|/)", name):
        return "", ""
    return found.group(1), found.group(2).lower()


def warn_of_pickles(members: Iterable[TarMember], tar: str) -> set[str]:
    """Log the number of pickled members and the first one; returns their names."""
    pickles = [member.name for member in members if is_pickle(member.name)]
    if pickles:
        log.warning(
            "%s holds %d pickled members, first %s: they can run code and are never read; do not call "
            "webdataset's .decode() on them",
            *(tar, len(pickles), pickles[0]),
        )
    return set(pickles)


def is_pickle(name: str) -> bool:
    """Check whether a member is pickled, by its extension."""
    return name.rpartition(".")[2].lower() in _PICKLE_EXTENSIONS


def read_member(file: IO[bytes], member: TarMember, name: str) -> bytes:
    """Read the bytes of a member.

    Raises:
        DataError: the tar has become shorter.
    """
    file.seek(member.offset)
    content = file.read(member.length)
    if len(content) != member.length:
        raise DataError(
            f"{name}: expected {member.length} bytes of {member.name}, got {len(content)}; "
            "fix: download or create the tar again"
        )
    return content


def is_video_extension(extension: str) -> bool:
    """Check whether a member is a video; `v2.0 a.mp4` has the extension `0 a.mp4`."""
    return extension.rpartition(".")[2] in VIDEO_EXTENSIONS


def _check_uncompressed(file: IO[bytes], name: str) -> None:
    file.seek(0)
    begin = file.read(4)
    file.seek(0)
    if begin[:2] == b"\x1f\x8b" or begin == b"\x28\xb5\x2f\xfd" or begin[:3] == b"BZh" or begin == b"\xfd7zX":
        raise DataError(
            f"{name}: expected a plain tar, for reads of single videos, got a compressed one; fix: unpack it"
        )


def _check_end(file: IO[bytes], name: str, end: int, members: Sequence[TarMember]) -> None:
    """Check that a block of zeros ends the tar and that only zeros follow."""
    file.seek(end)
    mark = file.read(_BLOCK)
    last = f"after {members[-1].name}" if members else "at its beginning"
    fix = "fix: download or create it again"
    if len(mark) < _BLOCK:
        raise DataError(f"{name}: expected a complete tar, got one that is cut short {last}; {fix}")
    if any(mark):
        raise DataError(f"{name}: expected a header, got damaged bytes {last}, at byte {end}; {fix}")
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise DataError(
                f"{name}: expected the end of the tar at byte {end}, got more data; fix: do not concatenate "
                "tars with cat"
            )


def _video_of(found: dict[str, TarMember], where: str, extension: str) -> TarMember | None:
    if extension:
        return found.get(extension.lower())
    videos = [member for name, member in found.items() if is_video_extension(name)]
    if len(videos) > 1:
        raise DataError(
            f"{where}: expected one video, got {videos[0].name} and {videos[1].name}; fix: select one by its "
            "extension, as in video=mp4 (for shard source.args.video=mp4), or rename the files: names of "
            "different samples must differ before their first dot"
        )
    return videos[0] if videos else None
