"""Lists of mmaction2: `path label` for videos, `path total_frames label` for folders of images."""

import re
from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.class_map import class_number, numbered_classes
from kinemae.data_tools.manifest.entries import Entry, build_manifest, folder_of_videos
from kinemae.data_tools.manifest.text import numbered_lines
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo, split_name
from kinemae.data_tools.sources.base import ListSource, local_path
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Mmaction2Source(ListSource):
    """Reads a list, or a folder of lists with the split in their names (kinetics400_train_list_videos.txt).

    Args:
        rawframes: lines are `path total_frames label`, and the path is a folder of images.
        filename_tmpl: names of the images, as in mmaction2; the first number is 0 or 1.
        fps: frames per second of the images; the lists do not state it.
        videos: the base folder of relative paths, relative to the list (mmaction2's data_prefix).
        num_classes: number of classes; 0 infers it from the labels.
    """

    rawframes: bool = False
    filename_tmpl: str = "img_{:05}.jpg"
    fps: float = 25.0
    num_classes: int = 0

    def list_videos(self, root: Path | Location) -> Manifest:
        entries = [
            self._entry(where, line, file.parent, split)
            for file, split in _lists(local_path(root))
            for where, line in numbered_lines(file)
        ]
        classes = numbered_classes(self.num_classes)
        return build_manifest(entries, max_missing_fraction=self.max_missing_fraction, classes=classes)

    def _entry(self, where: str, line: str, folder: Path, split: str | None) -> Entry:
        numbers = 2 if self.rawframes else 1
        cells = line.strip().rsplit(maxsplit=numbers)
        if len(cells) != numbers + 1:
            shape = "PATH TOTAL_FRAMES LABEL" if self.rawframes else "PATH LABEL"
            raise DataError(f"{where}: expected {shape}, got {line!r}")
        path = folder_of_videos(folder, self.videos) / cells[0]
        video = SourceVideo(
            path=path,
            name=cells[0],
            label=class_number(where, cells[-1], self.num_classes),
            split=split,
            frames=self._images(where, path, cells[1]) if self.rawframes else (),
            fps=float(self.fps) if self.rawframes else None,
        )
        _check_kind(where, video)
        return Entry(where=where, video=video)

    def _images(self, where: str, folder: Path, total: str) -> tuple[str, ...]:
        if not re.fullmatch(r"[1-9][0-9]{0,7}", total):
            raise DataError(f"{where}: expected a number of frames, 1 or more, got {total!r}")
        first = 0 if (folder / self.filename_tmpl.format(0)).is_file() else 1
        return tuple(self.filename_tmpl.format(number) for number in range(first, first + int(total)))


def _check_kind(where: str, video: SourceVideo) -> None:
    """Reject a folder where a video file is expected, and the reverse."""
    folder = video.path.with_name(video.path.name.rpartition(" ")[0] or video.path.name)
    if folder.is_dir() and not video.frames:
        raise DataError(
            f"{where}: expected a video file, got the folder {folder}; fix: for folders of images set "
            "source.args.rawframes=true"
        )
    if video.frames and video.path.is_file():
        raise DataError(
            f"{where}: expected a folder of images, got the file {video.path}; fix: for videos remove "
            "source.args.rawframes"
        )
    last = video.path / video.frames[-1] if video.frames else video.path
    if video.path.is_dir() and not last.is_file():
        raise DataError(
            f"{where}: expected the image {last}, got no file; fix: check the number of frames and "
            "source.args.filename_tmpl"
        )


def _lists(root: Path) -> list[tuple[Path, str | None]]:
    if not root.is_dir():
        return [(root, None)]
    found: dict[str, Path] = {}
    for file in sorted(root.glob("*.txt")):
        words = re.split(r"[^a-z]+", file.stem.lower())
        splits = {split for word in words if (split := split_name(word)) is not None}
        for split in sorted(splits):
            earlier = found.setdefault(split, file)
            if earlier is not file or len(splits) > 1:
                raise DataError(
                    f"{root}: expected one list per split, got {file.name} and {earlier.name} for {split}; "
                    "fix: give one of the lists as SOURCE"
                )
    if not found:
        raise DataError(f"{root}: expected lists such as ucf101_train_split_1_videos.txt, got none")
    return [(file, split) for split, file in found.items()]
