"""Videos as folders of pictures, one folder for each video."""

import fnmatch
import re
from dataclasses import replace
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.videos import Listing, SourceVideo, is_picture, printable, split_name
from kinemae.data_tools.manifest.walk import walk
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location


class FramesSource(Source):
    """Reads ROOT/VIDEO/*.jpg, ROOT/CLASS/.../VIDEO/*.jpg, and either in folders for each split.

    A folder that holds pictures is a video; they are shown in the order of the numbers in their names
    (frame2 before frame10).

    Args:
        fps: pictures a second.
        pattern: which of the pictures, where a folder holds several kinds.
    """

    def __init__(self, *, fps: float = 25.0, pattern: str = "*"):
        if fps <= 0:
            raise ValueError(f"source.args.fps must be above 0, got {fps}")
        self.fps = float(fps)
        self.pattern = pattern

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        found, ignored = self._walk(root)
        if not found:
            return Listing(videos=(), ignored=ignored)
        tops = {name.split("/")[0] for name in found}
        # A folder that itself holds pictures is a video, and no split, whatever its name.
        split = all(split_name(top) is not None and top not in found for top in tops)
        videos = [self._video(root, name, found[name], split) for name in sorted(found)]
        _all_or_none_in_classes(root, videos)
        return Listing(videos=tuple(videos), ignored=ignored)

    def _walk(self, root: Path) -> tuple[dict[str, tuple[str, ...]], int]:
        """Pictures by folder, and the number of other files."""
        found, ignored = {}, 0
        for place, files in walk(root):
            pictures = [name for name in files if is_picture(name) and fnmatch.fnmatch(name, self.pattern)]
            ignored += len(files) - len(pictures)
            if pictures and place == root:
                raise DataError(
                    f"{root} holds pictures itself: expected one folder of pictures for each video"
                )
            if pictures:
                found[place.relative_to(root).as_posix()] = _in_order(place, pictures)
        return found, ignored

    def _video(self, root: Path, name: str, pictures: tuple[str, ...], split: bool) -> SourceVideo:
        parts = name.split("/")
        part = split_name(parts[0]) if split else None
        below = parts[1:] if split else parts
        video = SourceVideo(
            path=root / name,
            name=printable(name),
            label=printable(below[0]) if len(below) > 1 else None,
            split=part,
            frames=pictures,
            fps=self.fps,
        )
        return replace(video, label=None) if part == "unlabelled" else video


def _in_order(place: Path, pictures: list[str]) -> tuple[str, ...]:
    kinds = {re.sub(r"[0-9]+", "#", name): name for name in sorted(pictures, reverse=True)}
    if len(kinds) > 1:
        first, second = sorted(kinds.values())[:2]
        raise DataError(
            f"{place} holds pictures of several kinds, such as {printable(first)} and {printable(second)}: "
            "say which make the video with source.args.pattern, for instance 'img_*.jpg'"
        )
    numbers = {name: tuple(int(digits) for digits in re.findall(r"[0-9]+", name)) for name in pictures}
    return tuple(sorted(pictures, key=lambda name: (numbers[name], name)))


def _all_or_none_in_classes(root: Path, videos: list[SourceVideo]) -> None:
    labelled = [video for video in videos if video.split != "unlabelled"]
    loose = next((video for video in labelled if video.label is None), None)
    if loose is not None and any(video.label is not None for video in labelled):
        raise DataError(
            f"{root} holds both videos in class folders and {loose.name} in none: "
            "expected CLASS/VIDEO/*.jpg or VIDEO/*.jpg throughout"
        )
