"""Interface of sources: a source lists the videos of a collection and opens none of them."""

from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.entries import check_arguments
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.storage.location import Location, location


class Source:
    """A way in which collections are stored; each file in this folder adds one."""

    def list_videos(self, root: Path | Location) -> Manifest:
        """List every video of SOURCE in a fixed order.

        Names are unique, and either all videos have a split or none. Every path exists, except for the
        number of videos in `missing`.

        Raises:
            DataError: the collection is inconsistent; the message states the file and the line.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ListSource(Source):
    """Base class of sources with lists of files.

    Args:
        videos: the base folder of the files.
        max_missing_fraction: reject the lists if a larger fraction of their files is missing.
    """

    videos: str = ""
    max_missing_fraction: float = 0.5

    def __post_init__(self) -> None:
        shared = ("max_missing_fraction", "num_classes", "fold", "fps", "filename_tmpl")
        check_arguments(**{name: getattr(self, name) for name in shared if hasattr(self, name)})


def local_path(root: Path | Location) -> Path:
    """SOURCE as a local path.

    Raises:
        DataError: SOURCE is a URL.
    """
    path = location(root).path
    if path is None:
        raise DataError(
            f"SOURCE {root}: expected a local path, got a URL; fix: set source.name=webdataset for tars, or "
            "use a local csv or jsonl with URLs as paths"
        )
    return path
