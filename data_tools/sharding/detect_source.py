"""Detect the source of a collection: by file extension, by official lists, by lists in a folder of videos."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.components import Component
from kinemae.data_tools.folder_checks import list_data_sets
from kinemae.data_tools.index import DATASET_NAME, REJECTED_NAME
from kinemae.data_tools.indexing.shard_list import find_shards
from kinemae.data_tools.manifest.table import is_kinetics, is_label_name, is_path_name
from kinemae.data_tools.manifest.text import is_comment, lines_of, names_video, read_text
from kinemae.data_tools.manifest.videos import Manifest, is_image, is_video, split_name
from kinemae.data_tools.overrides import as_override
from kinemae.data_tools.sharding.rejects import NOTES_NAME
from kinemae.data_tools.storage.location import Location

_BY_EXTENSION = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".tar": "webdataset",
    ".tsv": "csv",
    ".txt": "path_label",
    ".list": "path_label",
    ".parquet": "parquet",
}
_TABLE = "; save the table as CSV UTF-8"
_OTHER_EXTENSIONS = {
    ".json": "; for a json list write one object on each line of a .jsonl",
    ".ods": _TABLE,
    ".xls": _TABLE,
    ".xlsx": _TABLE,
}
_LIST_EXTENSIONS = frozenset((".csv", ".tsv", ".txt", ".list", ".lst", ".jsonl", ".json"))
_MAX_SHOWN = 3  # lists in a message
_MAX_LINES = 20  # of a list, for the detection
_MAX_BYTES = 1 << 26  # larger files are not lists
_MAX_FILES = 200  # per folder with lists


def detect_source(root: Location) -> Component:
    """The source for a folder or a file.

    Raises:
        DataError: SOURCE does not exist, or a folder holds lists of its videos.
        ValueError: a file with an unknown extension, or a URL that is not a tar.
    """
    if root.path is not None and not root.path.exists() and not any(sign in root.name for sign in "{*"):
        raise DataError(
            f"SOURCE {root}: expected a folder of videos, or a csv or jsonl file with a column path, got "
            "nothing at this path"
        )
    if root.path is not None and root.path.is_dir():
        official = _official_source(root.path)
        if official:
            log.info(
                "SOURCE %s is read by source.name=%s, with its official lists; source.name=folder uses the "
                "folders", *(root, official),
            )  # fmt: skip
            return Component(name=official)
        _check_no_lists(root.path)
        return Component(name="folder")
    extension = _extension(root)
    if extension not in _BY_EXTENSION:
        expected = "a folder or a file" if root.path is not None else "a file"
        raise ValueError(
            f"SOURCE {root}: expected {expected} with the extension {', '.join(_BY_EXTENSION)}; fix: set "
            f"source.name, for a remote folder of tars source.name=webdataset{_file_hint(root)}"
        )
    name = _BY_EXTENSION[extension]
    if name == "csv" and root.path is not None:
        name = _source_of_csv(root.path)
    if name not in ("csv", "jsonl", "webdataset"):
        log.info("SOURCE %s is read by source.name=%s", root, name)
    return Component(name=name)


def check_not_empty(root: Location, manifest: Manifest, *, source: str = "folder") -> None:
    """Reject a source without videos; the error states what the folder seems to hold instead.

    Raises:
        DataError: the manifest is empty.
    """
    if manifest.videos:
        return
    if source == "webdataset":
        raise DataError(
            f"SOURCE {root}: expected members such as KEY.mp4, got no sample with a video; fix: set "
            "source.args.video to the extension of the videos"
        )
    if root.path is not None and root.path.is_file() and not root.name.endswith(".tar"):
        raise DataError(f"SOURCE {root}: expected a row for each video, got no video")
    raise DataError(
        f"SOURCE {root}: expected CLASS/*.mp4, *.mp4, train/CLASS/*.mp4 or a csv file with path,label, got "
        f"no video and {manifest.ignored} other files{_folder_hint(root)}"
    )


def warn_of_one_class(root: Location, manifest: Manifest) -> None:
    """Log that the class folders may be one level deeper than expected."""
    labels = {video.label for video in manifest.videos}
    splits = {video.split for video in manifest.videos}
    folders = {video.path.parent for video in manifest.videos}
    if len(labels) == len(splits) == 1 and None not in labels and len(folders) > 1:
        [label] = labels
        log.warning(
            "all videos are of the class %r, in %d folders; if those are the classes, set SOURCE to %s",
            *(label, len(folders), root / str(label)),
        )


def _extension(root: Location) -> str:
    return "." + root.name.rpartition(".")[2].lower()


def _file_hint(root: Location) -> str:
    if is_video(root.name):
        return "; for a video set SOURCE to its folder"
    extension = _extension(root)
    if extension not in _OTHER_EXTENSIONS and root.path is not None and _source_of_csv(root.path) != "csv":
        return f"; source.name={_source_of_csv(root.path)} reads this file"
    return _OTHER_EXTENSIONS.get(extension, "")


def _folder_hint(root: Location) -> str:
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
        return f"; it holds tars such as {tars[0].name}; fix: set source.name=webdataset for a WebDataset"
    image = next((path for path in Path(root.path).rglob("*") if is_image(path.name)), None)
    if image is not None:
        return f"; it holds images such as {image.name}; fix: set source.name=frames for folders of images"
    return ""


def _official_source(root: Path) -> str:
    """The source whose official lists are in a folder with their official name; "" if there are none."""
    lists = root / "ucfTrainTestlist"
    if all((lists / name).is_file() for name in ("classInd.txt", "trainlist01.txt", "testlist01.txt")):
        return "ucf101"
    return "hmdb51" if any((root / "testTrainMulti_7030_splits").glob("*_test_split1.txt")) else ""


def _check_no_lists(root: Path) -> None:
    """Reject a SOURCE with both lists and class folders: the user has to choose."""
    found = [(file, words) for file in _text_files(root) if (words := _overrides(root, file))]
    found += _known_lists(root)
    if found:
        found.sort(key=lambda pair: pair[1].startswith("SOURCE"))
        ways = [f"to read {file.relative_to(root)} give {words}" for file, words in found[:_MAX_SHOWN]]
        raise DataError(
            f"SOURCE {root}: expected videos in folders alone, got {len(found)} lists of videos too; fix: "
            f"{', '.join(ways)}, to use the folders give source.name=folder"
        )
    unread = [file for file in _text_files(root) if file.parent == root and _name_videos(_first_lines(file))]
    if unread:
        log.warning("%s lists videos and is not read: classes and splits are those of the folders", unread[0])


def _known_lists(root: Path) -> list[tuple[Path, str]]:
    """An official list of a known data set, with its override; at most one."""
    for folder in (root, root / "ucfTrainTestlist"):
        if (folder / "classInd.txt").is_file():
            return [(folder / "classInd.txt", "source.name=ucf101")]
    for folder in (root, root / "testTrainMulti_7030_splits", root / "splits"):
        for file in sorted(folder.glob("*_test_split1.txt")):
            return [(file, "source.name=hmdb51")]
    for folder in (root / "labels", root):
        found = sorted(folder.glob("*labels.json"))
        if found and any(folder.glob("*train.json")):
            return [(found[0], "source.name=ssv2")]
    for folder in (root, root / "annotations"):
        for file in sorted(folder.glob("*.csv"))[:_MAX_FILES]:
            if is_kinetics("".join(_first_lines(file)[:1]).split(",")):
                return [(file, "source.name=kinetics")]
    return []


def _overrides(root: Path, file: Path) -> str:
    """The overrides that read a list; "" if the file is not a list.

    A list names videos in its lines, and it is named after a split, has columns of paths and labels, or lines
    `path label`.
    """
    lines = _first_lines(file)
    is_own = file.name in (REJECTED_NAME, NOTES_NAME)
    if not _name_videos(lines) or file.suffix.lower() == ".json" or is_own:
        return ""
    is_split = any(split_name(word) for word in re.split(r"[^A-Za-z]+", file.stem))
    is_path_label = all(re.search(r"\.\w+[\"']?\s+[0-9]+(\s+-1)?\s*$", line) for line in lines)
    if not is_split and not is_path_label and not _is_table(file, lines[0]):
        return ""
    if split_name(file.stem) and file.parent == root and not _has_header(lines):
        return "source.name=path_label"
    is_table = _has_header(lines) or file.suffix == ".jsonl"
    return f"SOURCE {file}" + ("" if is_table else " source.name=path_label")


def _source_of_csv(file: Path) -> str:
    """The source of a .csv file, from its first lines: csv, path_label or kinetics."""
    lines = _first_lines(file)
    if is_kinetics("".join(lines[:1]).split(",")):
        return "kinetics"
    is_one_cell = not any(sign in line for line in lines for sign in ",;\t|")
    return "path_label" if is_one_cell and lines and names_video(lines[0].lower()) else "csv"


def _is_table(file: Path, line: str) -> bool:
    """Check whether a first line has a path column and a label column."""
    is_jsonl = file.suffix.lower() == ".jsonl"
    cells = re.findall(r'"(\w+)"\s*:', line) if is_jsonl else re.split(r"[,;\t|]", line)
    return any(is_path_name(cell) for cell in cells) and any(is_label_name(cell) for cell in cells)


def _has_header(lines: Sequence[str]) -> bool:
    return bool(lines) and not names_video(lines[0])


def _name_videos(lines: Sequence[str]) -> bool:
    """Check whether all lines except a header row name videos."""
    below = lines[1:] if _has_header(lines) else lines
    return bool(below) and all(names_video(line) for line in below)


def _text_files(root: Path) -> Iterator[Path]:
    """Text files in a folder and in its folders without videos and images."""
    for folder in (root, *(child for child in _children(root) if child.is_dir())):
        files = _children(folder)
        has_media = any(is_video(file.name) or is_image(file.name) for file in files)
        if folder == root or not (folder.name.startswith(".") or has_media):
            texts = [file for file in files if file.suffix.lower() in _LIST_EXTENSIONS and file.is_file()]
            yield from texts[:_MAX_FILES]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _first_lines(file: Path) -> list[str]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            return []
        text = read_text(file)
    except (DataError, OSError):
        return []
    lines = (line for line in lines_of(text) if line.strip() and not is_comment(line))
    return [line for line, _ in zip(lines, range(_MAX_LINES), strict=False)]
