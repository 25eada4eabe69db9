"""Videos as folders of images, one folder per video."""

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import check_arguments
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo, is_image, printable, split_name, walk
from kinemae.data_tools.sources.base import Source, local_path
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class FramesSource(Source):
    """Reads ROOT/VIDEO/*.jpg, ROOT/CLASS/.../VIDEO/*.jpg, and either in one folder per split.

    A folder with images is a video; its images are ordered by the numbers in their names (frame2 before
    frame10).

    Args:
        fps: frames per second.
        pattern: selects images by name if a folder holds several kinds.
    """

    fps: float = 25.0
    pattern: str = "*"

    def __post_init__(self) -> None:
        check_arguments(fps=self.fps)

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        found, ignored = self._walk(root)
        tops = {name.split("/")[0] for name in found}
        # A folder with images is a video and not a split, for any name.
        has_splits = all(split_name(top) is not None and top not in found for top in tops)
        videos = [self._video(root, name, found[name], has_splits) for name in sorted(found)]
        _check_classes(root, videos)
        return Manifest(videos=tuple(videos), ignored=ignored)

    def _walk(self, root: Path) -> tuple[dict[str, tuple[str, ...]], int]:
        """Images by folder, and the number of other files."""
        found, ignored = {}, 0
        for place, files in walk(root):
            images = [name for name in files if is_image(name) and fnmatch.fnmatch(name, self.pattern)]
            ignored += len(files) - len(images)
            if images and place == root:
                raise DataError(f"{root}: expected one folder of images per video, got images directly in it")
            if images:
                found[place.relative_to(root).as_posix()] = _in_order(place, images)
        return found, ignored

    def _video(self, root: Path, name: str, images: tuple[str, ...], has_splits: bool) -> SourceVideo:
        parts = name.split("/")
        split = split_name(parts[0]) if has_splits else None
        below = parts[1:] if has_splits else parts
        return SourceVideo(
            path=root / name,
            name=printable(name),
            label=printable(below[0]) if len(below) > 1 and split != "unlabelled" else None,
            split=split,
            frames=images,
            fps=float(self.fps),
        )


def _in_order(place: Path, images: list[str]) -> tuple[str, ...]:
    kinds = {re.sub(r"[0-9]+", "#", name): name for name in sorted(images, reverse=True)}
    if len(kinds) > 1:
        first, second = sorted(kinds.values())[:2]
        raise DataError(
            f"{place}: expected images of one kind, got {printable(first)} and {printable(second)}; "
            "fix: select one kind with source.args.pattern, for instance 'img_*.jpg'"
        )
    numbers = {name: tuple(int(digits) for digits in re.findall(r"[0-9]+", name)) for name in images}
    return tuple(sorted(images, key=lambda name: (numbers[name], name)))


def _check_classes(root: Path, videos: list[SourceVideo]) -> None:
    labelled = [video for video in videos if video.split != "unlabelled"]
    loose = next((video for video in labelled if video.label is None), None)
    if loose is not None and any(video.label is not None for video in labelled):
        raise DataError(
            f"{root}: expected all videos in class folders or none, got {loose.name} outside of them"
        )
