"""mmaction2's lists: `path label` for videos, `path total_frames label` for folders of pictures."""

import re
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import (
    Entry,
    check_list_arguments,
    class_number,
    folder_of_videos,
    listing_of,
    numbered_classes,
    numbered_lines,
)
from kinemae.data_tools.manifest.videos import Listing, SourceVideo, split_name
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location


class Mmaction2Source(Source):
    """Reads a list, or a folder of lists whose names tell the split (kinetics400_train_list_videos.txt).

    Args:
        rawframes: lines are `path total_frames label`, and the path is a folder of pictures.
        filename_tmpl: names of the pictures, as in mmaction2; they begin with number 0 or 1.
        fps: pictures a second; the lists do not say it.
        videos: the folder in which relative paths begin, relative to the list's (mmaction2's data_prefix).
        classes: how many classes there are; 0 takes as many as there are labels.
        max_missing_fraction: refuse the list where more than this share of the videos has no file.
    """

    def __init__(
        self,
        *,
        rawframes: bool = False,
        filename_tmpl: str = "img_{:05}.jpg",
        fps: float = 25.0,
        videos: str = "",
        classes: int = 0,
        max_missing_fraction: float = 0.5,
    ):
        check_list_arguments(max_missing_fraction, classes)
        if fps <= 0:
            raise ValueError(f"source.args.fps must be above 0, got {fps}")
        if not re.fullmatch(r"[^{}/]*\{:0?[0-9]*d?\}[^{}/]*", filename_tmpl):
            raise ValueError(f"source.args.filename_tmpl must hold one {{:05}} or so, got {filename_tmpl!r}")
        self.rawframes = rawframes
        self.filename_tmpl = filename_tmpl
        self.fps = float(fps)
        self.videos = videos
        self.classes = classes
        self.max_missing_fraction = max_missing_fraction

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        entries = [
            self._entry(where, line, file.parent, split)
            for file, split in _lists(root)
            for where, line in numbered_lines(file)
        ]
        return listing_of(
            entries,
            max_missing_fraction=self.max_missing_fraction,
            classes=numbered_classes(self.classes),
        )

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
            label=class_number(where, cells[-1], self.classes),
            split=split,
            frames=self._pictures(where, path, cells[1]) if self.rawframes else (),
            fps=self.fps if self.rawframes else None,
        )
        _refuse_the_other_kind(where, video)
        return Entry(where=where, video=video)

    def _pictures(self, where: str, folder: Path, total: str) -> tuple[str, ...]:
        if not re.fullmatch(r"[1-9][0-9]{0,7}", total):
            raise DataError(f"{where}: expected a number of frames, 1 or more, got {total!r}")
        first = 0 if (folder / self.filename_tmpl.format(0)).is_file() else 1
        return tuple(self.filename_tmpl.format(number) for number in range(first, first + int(total)))


def _refuse_the_other_kind(where: str, video: SourceVideo) -> None:
    folder = video.path.with_name(video.path.name.rpartition(" ")[0] or video.path.name)
    if folder.is_dir() and not video.frames:
        raise DataError(
            f"{where}: {folder} is a folder; for folders of pictures set source.args.rawframes=true"
        )
    if video.frames and video.path.is_file():
        raise DataError(f"{where}: {video.path} is a file; for videos leave source.args.rawframes out")
    lost = video.path / video.frames[-1] if video.frames else video.path
    if video.path.is_dir() and not lost.is_file():
        raise DataError(
            f"{where}: there is no {lost}; check the number of frames and source.args.filename_tmpl"
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
                    f"{root}: {file.name} does not tell its split alone (beside {earlier.name}); "
                    "name one of the lists as SOURCE"
                )
    if not found:
        raise DataError(f"{root} holds no list: expected names like ucf101_train_split_1_videos.txt")
    return [(file, split) for split, file in found.items()]
