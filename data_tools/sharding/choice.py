"""Which source lists a collection, where the user names none."""

from pathlib import Path

from data_tools.command import DataError
from data_tools.foreign.shards import find_shards
from data_tools.listing.videos import Listing, is_picture
from data_tools.parts import Part
from data_tools.storage.location import Location

_BY_ENDING = {".csv": "csv", ".jsonl": "jsonl", ".tar": "webdataset"}


def source_of(root: Location) -> Part:
    """The source for a folder, or for a file by its ending.

    Raises:
        DataError: nothing is there.
        ValueError: a file of an ending that tells no source, or a URL that is no tar.
    """
    ending = "." + root.name.rpartition(".")[2].lower()
    if root.path is not None and not root.path.exists() and not _is_pattern(root):
        raise DataError(
            f"SOURCE {root} does not exist: expected a folder of videos, or a csv or jsonl file with a "
            "column path"
        )
    if root.path is not None and root.path.is_dir():
        return Part(name="folder")
    if ending not in _BY_ENDING:
        expected = "a folder or a file" if root.path is not None else "a file"
        raise ValueError(
            f"SOURCE {root} must be {expected} that ends in {', '.join(_BY_ENDING)}; for another kind set "
            "source.name, for a remote folder of tars source.name=webdataset"
        )
    return Part(name=_BY_ENDING[ending])


def refuse_empty(root: Location, listing: Listing) -> None:
    """Say what a folder seems to hold instead, where its source found no video in it.

    Raises:
        DataError: the listing is empty.
    """
    if listing.videos:
        return
    raise DataError(
        f"SOURCE {root} holds no video: expected CLASS/*.mp4, *.mp4, train/CLASS/*.mp4 or a csv file "
        f"with path,label; {listing.ignored} other files were passed over{_hint(root)}"
    )


def _is_pattern(root: Location) -> bool:
    return any(sign in root.name for sign in "{*")


def _hint(root: Location) -> str:
    if root.path is None or not root.path.is_dir():
        return ""
    try:
        tars = find_shards(root, by_split=False)
    except DataError:
        tars = []
    if tars:
        return f"; it holds tars such as {tars[0].name}: set source.name=webdataset for a WebDataset"
    picture = next((path for path in Path(root.path).rglob("*") if is_picture(path.name)), None)
    if picture is not None:
        return f"; it holds pictures such as {picture.name}: set source.name=frames for folders of frames"
    return ""
