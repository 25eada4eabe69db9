"""What a source is: it lists the videos of somebody's collection, and opens none of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# What `stream.decode` has containers for.
VIDEO_ENDINGS = frozenset(
    "3g2 3gp asf avi flv gif m2ts m4v mj2 mkv mov mp4 mpeg mpg mts ogg ogv ts vob webm wmv".split()  # noqa: SIM905
)
SPLITS = ("train", "validation", "test", "unlabelled")
_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "val": "validation",
    "valid": "validation",
    "unlabeled": "unlabelled",
}


@dataclass(frozen=True, kw_only=True)
class SourceVideo:
    """One video: its file, its name relative to the source, and what the source says about it.

    Attributes:
        path: the file; where the video is a part of a larger file, `member` says which.
        label: the class's name.
        split: one of `SPLITS`.
        group: videos of one group (a person, a camera, a long recording) stay in one split.
        start_s, end_s: the part of the video that is meant; None for its beginning and its end.
        frames: for a folder of pictures, its files in the order of the screen; `path` is the folder then.
        member: (first byte, number of bytes) of the video inside `path`, as in a tar.
        extra: further columns by name, such as a second label or a value to regress.
    """

    path: Path
    name: str
    label: str | None = None
    split: str | None = None
    group: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    frames: tuple[str, ...] = ()
    member: tuple[int, int] | None = None
    extra: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The videos of a source, and the number of files that are none."""

    videos: tuple[SourceVideo, ...]
    ignored: int = 0


class Source:
    """A way in which collections are laid out; a new one is a file in this folder."""

    def listing(self, root: Path) -> Listing:
        """List every video below `root`, in a fixed order: either all have a split or none has.

        Raises:
            DataError: the collection contradicts itself; the message names the file or the line.
        """
        raise NotImplementedError


def split_name(text: str) -> str | None:
    """The split that a folder or a cell names, None if it names none."""
    return _SPLIT_NAMES.get(text.strip().lower())


def is_video(name: str) -> bool:
    """Whether a file's name says that it is a video."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in VIDEO_ENDINGS


def printable(name: str) -> str:
    """A file's name as valid text: bytes that are none are spelled out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
