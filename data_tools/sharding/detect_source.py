"""Which source lists a collection, where the user names none."""

from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.components import Component
from kinemae.data_tools.folder_checks import list_data_sets
from kinemae.data_tools.index import DATASET_NAME
from kinemae.data_tools.indexing.shard_list import find_shards
from kinemae.data_tools.manifest.detect_lists import lists_beside, mentions, official_source, source_of_csv
from kinemae.data_tools.manifest.videos import Listing, is_picture, is_video
from kinemae.data_tools.overrides import as_override
from kinemae.data_tools.storage.location import Location

_BY_ENDING = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".tar": "webdataset",
    ".tsv": "csv",
    ".txt": "path_label",
    ".list": "path_label",
}
_TABLE = "; save the table as CSV UTF-8"
_OTHER_KINDS = {
    ".json": "; for a json list write one object on each line of a .jsonl",
    ".ods": _TABLE,
    ".parquet": _TABLE,
    ".xls": _TABLE,
    ".xlsx": _TABLE,
}
_MOST_LISTS = 3  # in a message


def source_of(root: Location) -> Component:
    """The source for a folder, or for a file by its ending.

    Raises:
        DataError: nothing is there, or a folder holds lists of its videos.
        ValueError: a file of an ending that tells no source, or a URL that is no tar.
    """
    ending = "." + root.name.rpartition(".")[2].lower()
    if root.path is not None and not root.path.exists() and not _is_pattern(root):
        raise DataError(
            f"SOURCE {root} does not exist: expected a folder of videos, or a csv or jsonl file with a "
            "column path"
        )
    if root.path is not None and root.path.is_dir():
        official = official_source(root.path)
        if official:
            log.info(
                "SOURCE %s is read by source.name=%s, by its official lists; source.name=folder uses the "
                "folders", *(root, official),
            )  # fmt: skip
            return Component(name=official)
        _refuse_lists(root.path)
        return Component(name="folder")
    if ending not in _BY_ENDING:
        expected = "a folder or a file" if root.path is not None else "a file"
        raise ValueError(
            f"SOURCE {root} must be {expected} that ends in {', '.join(_BY_ENDING)}; for another kind set "
            f"source.name, for a remote folder of tars source.name=webdataset{_other_kind(root)}"
        )
    name = _BY_ENDING[ending]
    if name == "csv" and root.path is not None:
        name = source_of_csv(root.path)
    if name not in ("csv", "jsonl", "webdataset"):
        log.info("SOURCE %s is read by source.name=%s", root, name)
    return Component(name=name)


def _other_kind(root: Location) -> str:
    if is_video(root.name):
        return "; for a video give the folder in which it lies"
    ending = "." + root.name.rpartition(".")[2].lower()
    if ending not in _OTHER_KINDS and root.path is not None and source_of_csv(root.path) != "csv":
        return f"; source.name={source_of_csv(root.path)} reads this file"
    return _OTHER_KINDS.get(ending, "")


def _refuse_lists(root: Path) -> None:
    """Reject a SOURCE with both lists and class folders: the user has to choose."""
    found = lists_beside(root)
    if found:
        ways = [f"to read {file.relative_to(root)} give {words}" for file, words in found[:_MOST_LISTS]]
        raise DataError(
            f"SOURCE {root}: expected videos in folders alone, got {len(found)} lists of videos too; fix: "
            f"{', '.join(ways)}, to use the folders give source.name=folder"
        )
    named = mentions(root)
    if named:
        log.warning(
            "%s names videos and is not read: the classes and splits are those of the folders", named[0]
        )


def refuse_empty(root: Location, listing: Listing, *, source: str = "folder") -> None:
    """Say what a folder seems to hold instead, where its source found no video in it.

    Raises:
        DataError: the listing is empty.
    """
    if listing.videos:
        return
    if source == "webdataset":
        raise DataError(
            f"SOURCE {root}: expected members such as KEY.mp4, got no sample with a video; fix: set "
            "source.args.video to the extension of the videos"
        )
    if root.path is not None and root.path.is_file() and not root.name.endswith(".tar"):
        raise DataError(f"SOURCE {root}: expected a row for each video, got no video")
    raise DataError(
        f"SOURCE {root} holds no video: expected CLASS/*.mp4, *.mp4, train/CLASS/*.mp4 or a csv file "
        f"with path,label; {listing.ignored} other files were passed over{_hint(root)}"
    )


def warn_of_one_class(root: Location, listing: Listing) -> None:
    """Log that the class folders may be one level deeper than expected."""
    labels = {video.label for video in listing.videos}
    splits = {video.split for video in listing.videos}
    folders = {video.path.parent for video in listing.videos}
    if len(labels) == len(splits) == 1 and None not in labels and len(folders) > 1:
        [label] = labels
        log.warning(
            "all videos are of the class %r, in %d folders; if those are the classes, give SOURCE %s",
            *(label, len(folders), root / str(label)),
        )


def _is_pattern(root: Location) -> bool:
    return any(sign in root.name for sign in "{*")


def _hint(root: Location) -> str:
    if root.path is None or not root.path.is_dir():
        return ""
    splits = list_data_sets(root, DATASET_NAME)
    if splits or (root / DATASET_NAME).exists():
        made = root / splits[0] if splits else root
        return f"; it is a data set already; fix: train on it, {as_override('data.shards', made)}"
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
