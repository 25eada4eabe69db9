"""A collection as it is told: its videos, and what their names say. Nothing is opened here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.storage.location import Location, location

# What `stream.decode` has containers for.
VIDEO_ENDINGS = frozenset(
    "3g2 3gp asf avi flv gif m2ts m4v mj2 mkv mov mp4 mpeg mpg mts ogg ogv ts vob webm wmv".split()  # noqa: SIM905
)
PICTURE_ENDINGS = frozenset("bmp jpeg jpg png ppm tif tiff webp".split())  # noqa: SIM905
SPLITS = ("train", "validation", "test", "unlabelled")
_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
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
        fps: for a folder of pictures, how many are shown a second; a video says so itself.
        member: (first byte, number of bytes) of the video inside the file, as in a tar.
        url: where the file is, if not on this machine; `path` is its name alone then.
        extra: further columns by name, such as a caption or a second label.
    """

    path: Path
    name: str
    label: str | None = None
    split: str | None = None
    group: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    frames: tuple[str, ...] = ()
    fps: float | None = None
    member: tuple[int, int] | None = None
    url: str = ""
    extra: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def place(self) -> Location:
        """Where the file is, here or remote."""
        return location(self.url or self.path)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The videos of a source.

    Attributes:
        ignored: number of files beside them that are no videos, or that a split leaves out.
        missing: how many of `videos` are named by a list and have no file.
        classes: the collection's own list of classes in its own order, also those without a video; empty
            where it has none, and then the classes are the labels that occur.
    """

    videos: tuple[SourceVideo, ...]
    ignored: int = 0
    missing: int = 0
    classes: tuple[str, ...] = ()


def split_name(text: str) -> str | None:
    """The split that a folder or a cell names, None if it names none."""
    return _SPLIT_NAMES.get(text.strip().lower())


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in PICTURE_ENDINGS


def is_video(name: str) -> bool:
    """Whether a file's name says that it is a video."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in VIDEO_ENDINGS


def printable(name: str) -> str:
    """A file's name as valid text: bytes that are none are spelled out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
