"""What a source is: it lists the videos of somebody's collection, and opens none of them."""

from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.videos import Listing
from kinemae.data_tools.storage.location import Location, location


class Source:
    """A way in which collections are laid out; a new one is a file in this folder."""

    def listing(self, root: Path | Location) -> Listing:
        """List every video of SOURCE, in a fixed order, and open none of them.

        Names are unique; either all videos have a split or none has. What `missing` counts aside, every path
        exists.

        Raises:
            DataError: the collection contradicts itself; the message names the file and the line.
        """
        raise NotImplementedError


def on_this_machine(root: Path | Location) -> Path:
    """SOURCE for a source that reads files of this machine.

    Raises:
        DataError: it is a URL.
    """
    path = location(root).path
    if path is None:
        raise DataError(
            f"SOURCE {root} is remote: give source.name=webdataset for tars, or a list on this machine (csv, "
            "jsonl) with URLs as paths"
        )
    return path
