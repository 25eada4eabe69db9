"""HMDB51 with its official splits: CLASS_test_split1.txt files with code 0, 1 or 2 for each video."""

from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import Entry, build_manifest, folder_of_videos
from kinemae.data_tools.manifest.text import numbered_lines
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo
from kinemae.data_tools.sources.base import ListSource, local_path
from kinemae.data_tools.storage.location import Location

_SPLITS = {"0": None, "1": "train", "2": "test"}


@dataclass(frozen=True, kw_only=True)
class Hmdb51Source(ListSource):
    """Reads the official split files next to the class folders of the videos.

    Code 1 means train, 2 means test; videos of code 0 belong to neither and are ignored.

    Args:
        fold: which of the three official splits.
        lists: folder of the split files, relative to SOURCE; "" selects `testTrainMulti_7030_splits` or
            `splits` if they exist, else SOURCE.
        videos: folder of the class folders, relative to SOURCE; "" selects `videos` or `hmdb51_org` if they
            exist, else SOURCE.
    """

    fold: int = 1
    lists: str = ""

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        ending = f"_test_split{self.fold}.txt"
        guesses = [self.lists] if self.lists else ["testTrainMulti_7030_splits", "splits", "."]
        files = next((found for guess in guesses if (found := sorted((root / guess).glob(f"*{ending}")))), [])
        if not files:
            raise DataError(
                f"{root}: expected the split files CLASS{ending} of HMDB51, got none; fix: set "
                "source.args.lists"
            )
        folder = folder_of_videos(root, self.videos, ("videos", "hmdb51_org"))
        rows = [
            _entry(where, line, folder, file.name.removesuffix(ending))
            for file in files
            for where, line in numbered_lines(file)
        ]
        entries = [entry for entry in rows if entry is not None]
        return build_manifest(
            entries,
            max_missing_fraction=self.max_missing_fraction,
            classes=[file.name.removesuffix(ending) for file in files],
            ignored=len(rows) - len(entries),
        )


def _entry(where: str, line: str, folder: Path, label: str) -> Entry | None:
    name, _, code = line.strip().rpartition(" ")
    if not name or code not in _SPLITS:
        raise DataError(f"{where}: expected NAME.avi and 0, 1 or 2, got {line!r}")
    split = _SPLITS[code]
    if split is None:
        return None
    name = f"{label}/{name.strip()}"
    return Entry(where=where, video=SourceVideo(path=folder / name, name=name, label=label, split=split))
