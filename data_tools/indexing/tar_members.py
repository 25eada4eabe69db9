"""WebDataset tars of other people: what is in them, checked where webdataset itself says nothing.

webdataset ends early without a word on a tar that was cut short, or in which one byte of a header changed.
Here such a tar is refused by name.
"""

import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.videos import VIDEO_ENDINGS, printable

# Endings of members that webdataset's own decoders would run as code or unpickle.
_PICKLES = frozenset("pickle pkl pyd pth pt dill joblib".split())  # noqa: SIM905
_BLOCK = 512
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a tar: its name, its first byte, and the number of its bytes.

    Attributes:
        link: the target of a link whose bytes are not in the tar; "" for a file.
    """

    name: str
    offset: int
    length: int
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class ForeignSample:
    """The members of one key, by their endings in lower case, and the one that is the video."""

    key: str
    video: Member
    members: dict[str, Member] = field(default_factory=dict)

    def member(self, ending: str) -> Member | None:
        """The member with an extension; if the key holds dots, the member that shares the video's full name.

        webdataset ends a key at the first dot, so `v2.0 a.mp4` has the key `v2` and `0 a.mp4` as its ending.
        """
        for found, member in self.members.items():
            if member == self.video:
                beside = f"{found.rpartition('.')[0]}.{ending}"
                return self.members.get(ending) or self.members.get(beside)
        return self.members.get(ending)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Contents of a tar: samples in order, skipped keys with reasons, and the number of other files."""

    samples: tuple[ForeignSample, ...]
    left_out: dict[str, str]
    ignored: int


def members_of(file: IO[bytes], name: str) -> list[Member]:
    """Every file of a tar, in order: hard links with the bytes of their target, symbolic links as such.

    Args:
        file: the tar, seekable.
        name: what errors call it.

    Raises:
        DataError: it is no plain tar, a header is damaged, or it ends before its end mark.
    """
    _refuse_compressed(file, name)
    members: list[Member] = []
    targets: dict[str, Member] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.issparse():
                    raise DataError(
                        f"{name} holds the sparse file {info.name}: pack it anew without --sparse"
                    )
                member = _member(info, targets)
                if member is not None:
                    members.append(member)
                    targets[info.name] = member
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(f"{name} is no whole tar: {error}; get or make it anew") from error
    _check_end(file, name, end, members)
    return members


def _member(info: tarfile.TarInfo, targets: Mapping[str, Member]) -> Member | None:
    """A file or a link, None for other members; a hard link has the bytes of an earlier member."""
    name = printable(info.name)
    if info.isreg():
        return Member(name=name, offset=info.offset_data, length=info.size)
    target = targets.get(info.linkname) if info.islnk() else None
    if target is not None:
        return replace(target, name=name)
    if info.islnk() or info.issym():
        return Member(name=name, offset=info.offset_data, length=0, link=printable(info.linkname))
    return None


def samples_in(members: Sequence[Member], name: str, *, video: str = "") -> Contents:
    """Members grouped by key as webdataset does it: a key ends at the first dot of the base name.

    Args:
        name: what errors call the tar.
        video: the ending of the member to take where a sample has several videos.

    Raises:
        DataError: a key has two members of one ending, or several videos and `video` does not say which.
    """
    keys: dict[str, dict[str, Member]] = {}
    links: dict[str, Member] = {}
    ignored = 0
    for member in members:
        key, ending = split_member(member.name)
        if not key:
            ignored += 1
        elif member.link:
            keys.setdefault(key, {})
            links[key] = member if _is_video(ending) else links.get(key, member)
        elif ending in keys.setdefault(key, {}):
            raise DataError(f"{name} holds {member.name} twice: keys must be unique; remove one or rename it")
        else:
            keys[key][ending] = member
    warn_of_pickles(members, name)
    samples, left_out = [], {}
    for key, found in keys.items():
        chosen = _video_of(found, f"{name}, {key}", video)
        if chosen is None:
            left_out[key] = _why_without_video(links.get(key))
        else:
            samples.append(ForeignSample(key=key, video=chosen, members=found))
    return Contents(samples=tuple(samples), left_out=left_out, ignored=ignored)


def warn_of_pickles(members: Sequence[Member], tar: str) -> set[str]:
    """Log a warning if a tar has pickled members; return their names."""
    pickles = [member.name for member in members if member.name.rpartition(".")[2].lower() in _PICKLES]
    if pickles:
        log.warning(
            "%s holds %d pickled members, first %s: they can hold code and are never read; do not call "
            "webdataset's .decode() on them",
            *(tar, len(pickles), pickles[0]),
        )
    return set(pickles)


def _why_without_video(link: Member | None) -> str:
    if link is None:
        return "no member of it is a video"
    return f"{link.name} is a link to {link.link}, whose bytes are not in the tar"


def _is_video(ending: str) -> bool:
    return ending.rpartition(".")[2] in VIDEO_ENDINGS


def split_member(name: str) -> tuple[str, str]:
    """Key and ending of a member as webdataset splits them; two empty texts for what it passes over."""
    found = re.fullmatch(r"((?:.*/)?[^./]+)[.]([^/]*)", name, re.DOTALL)
    if found is None or re.match(r"__[^/]*__($|/)", name):
        return "", ""
    return found.group(1), found.group(2).lower()


def read_member(file: IO[bytes], member: Member, name: str) -> bytes:
    """A member's bytes.

    Raises:
        DataError: the tar has become shorter.
    """
    file.seek(member.offset)
    content = file.read(member.length)
    if len(content) != member.length:
        raise DataError(f"{name} ends inside {member.name}; get or make it anew")
    return content


def _refuse_compressed(file: IO[bytes], name: str) -> None:
    file.seek(0)
    begin = file.read(4)
    file.seek(0)
    if begin[:2] == b"\x1f\x8b" or begin == b"\x28\xb5\x2f\xfd" or begin[:3] == b"BZh" or begin == b"\xfd7zX":
        raise DataError(f"{name} is compressed: unpack it to a plain tar, in which single videos can be read")


def _check_end(file: IO[bytes], name: str, end: int, members: Sequence[Member]) -> None:
    """A whole tar ends with a block of zeros, and nothing but zeros follows."""
    file.seek(end)
    mark = file.read(_BLOCK)
    last = f"after {members[-1].name}" if members else "at its beginning"
    if len(mark) < _BLOCK:
        raise DataError(f"{name} is cut short {last}: it has no end mark; get or make it anew")
    if any(mark):
        raise DataError(f"{name} has a damaged header {last}, at byte {end}; get or make it anew")
    while piece := file.read(_PIECE):
        if piece.strip(b"\0"):
            raise DataError(f"{name} goes on after its end mark at byte {end}: tars cannot be joined by cat")


def _video_of(found: dict[str, Member], where: str, wanted: str) -> Member | None:
    if wanted:
        return found.get(wanted.lower())
    videos = [member for ending, member in found.items() if _is_video(ending)]
    if len(videos) > 1:
        raise DataError(
            f"{where} holds both {videos[0].name} and {videos[1].name}: say which is the video by its "
            "ending, as in video=mp4 (source.args.video=mp4 to shard); names of several samples must differ "
            "before their first dot"
        )
    return videos[0] if videos else None
