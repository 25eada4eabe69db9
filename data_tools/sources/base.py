"""Interface of sources: a source lists the videos of a collection and opens none of them."""

from pathlib import Path

from kinemae.data_tools.command import DataError
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
