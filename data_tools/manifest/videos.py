"""Videos of a source: their paths and metadata. No video is opened here."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from kinemae.data_tools.command import DataError
from kinemae.data_tools.storage.location import Location, location

# Containers that `stream.decode` reads.
VIDEO_EXTENSIONS = frozenset(
    "3g2 3gp asf avi flv gif m2ts m4v mj2 mkv mov mp4 mpeg mpg mts ogg ogv ts vob webm wmv".split()  # noqa: SIM905
)
IMAGE_EXTENSIONS = frozenset("bmp jpeg jpg png ppm tif tiff webp".split())  # noqa: SIM905
SPLITS = ("train", "validation", "test", "unlabelled")
PROVENANCE = {
    "license": ("license", "licence"),
    "source_url": ("source_url", "source", "url"),
    "consent": ("consent",),
}
"""Columns of provenance by convention, with their spellings. Their values hold for each part of a video."""
_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "unlabeled": "unlabelled",
}


@dataclass(frozen=True, kw_only=True, slots=True)  # there may be millions
class SourceVideo:
    """One video of a source: its file, its name relative to the source, and its metadata.

    Attributes:
        path: the file, or the folder of `frames`.
        label: the class name.
        split: one of `SPLITS`.
        group: videos of one group (a person, a camera, a long recording) stay in one split.
        start_s, end_s: a part of the video; None for its start and its end.
        frames: for a folder of images, its files in temporal order.
        fps: for a folder of images, its frame rate.
        member: (offset, length) of the video inside a larger file, such as a tar.
        url: the URL of a remote file; `path` is then its name only.
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
        """The location of the file, local or remote."""
        return location(self.url or self.path)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The videos of a source.

    Attributes:
        ignored: number of other files that are not videos or not part of any split.
        missing: number of `videos` whose file does not exist.
        classes: the source's own list of classes in order, including classes without a video; empty if the
            source has none.
    """

    videos: tuple[SourceVideo, ...]
    ignored: int = 0
    missing: int = 0
    classes: tuple[str, ...] = ()


def split_name(text: str) -> str | None:
    """The split with this name; None if there is none."""
    return _SPLIT_NAMES.get(text.strip().lower())


def is_image(name: str) -> bool:
    """Check whether a file name has the extension of an image."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def is_video(name: str) -> bool:
    """Check whether a file name has the extension of a video."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in VIDEO_EXTENSIONS


def printable(name: str) -> str:
    """A file name as valid text: undecodable bytes are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Walk folders in a fixed order: yield each folder and its sorted file names.

    Links to folders are followed; hidden folders are skipped.

    Raises:
        DataError: a folder cannot be listed, or a link leads to one of its parent folders.
    """
    for place, folders, files in os.walk(root, followlinks=True, onerror=raise_unlisted):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            check_no_loop(root, Path(place, name))
        yield Path(place), sorted(files)


def check_no_loop(root: Path, folder: Path) -> None:
    """Reject a link to one of its own parent folders, directly or via other links.

    Args:
        root: the start of the walk.

    Raises:
        DataError: the link is a cycle.
    """
    if not folder.is_symlink():
        return
    target = folder.resolve()
    parents = [parent for parent in folder.parents if parent.is_relative_to(root)]
    if any(parent.resolve().is_relative_to(target) for parent in parents):
        raise DataError(
            f"{folder}: expected a folder, got a link to {target}, which holds it; fix: remove it"
        )


def raise_unlisted(error: OSError) -> NoReturn:
    """Raise the error for a folder that cannot be listed.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{error.filename}: expected a folder that can be listed, got an error ({error.strerror}); "
        "fix: check the path and its permissions"
    ) from error
