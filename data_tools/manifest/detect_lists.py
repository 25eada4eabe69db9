"""Find lists in a folder of videos and the source that reads each of them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import REJECTED_NAME
from kinemae.data_tools.manifest.columns import is_label_name, is_path_name
from kinemae.data_tools.manifest.text import is_comment, lines_of, names_video, read_text
from kinemae.data_tools.manifest.videos import is_picture, is_video, split_name

_ENDINGS = frozenset((".csv", ".tsv", ".txt", ".list", ".lst", ".jsonl", ".json"))
_KINETICS = frozenset(("youtube_id", "time_start", "time_end"))
_LOOKED_AT = 20  # lines of a list
_MOST_BYTES = 1 << 26  # larger files are not lists
_MOST_FILES = 200  # in a folder with lists
_OURS = frozenset((REJECTED_NAME, "notes.jsonl"))  # lists that `shard` writes


def lists_beside(root: Path) -> list[tuple[Path, str]]:
    """Lists in a folder and in its folders without videos, each with the overrides that read it.

    A file is a list if its lines name videos, and it is named after a split, has columns of paths and labels,
    or lines `path label`.
    Lists of a source with official file names come first.
    """
    found = [(file, words) for file in _texts(root) if (words := _words(root, file))]
    known = _known_layout(root)
    found += [known] if known is not None else []
    return sorted(found, key=lambda pair: pair[1].startswith("SOURCE"))


def official_source(root: Path) -> str:
    """The source whose official lists lie in a folder under their official name; "" where there are none."""
    lists = root / "ucfTrainTestlist"
    if all((lists / name).is_file() for name in ("classInd.txt", "trainlist01.txt", "testlist01.txt")):
        return "ucf101"
    if any((root / "testTrainMulti_7030_splits").glob("*_test_split1.txt")):
        return "hmdb51"
    return ""


def source_of_csv(file: Path) -> str:
    """The source of a file that ends in .csv, by its first lines: csv, path_label or kinetics."""
    lines = _first_lines(file)
    first = lines[0].lower() if lines else ""
    if _KINETICS.issubset(cell.strip() for cell in first.split(",")):
        return "kinetics"
    is_one_cell = not any(sign in line for line in lines for sign in ",;\t|")
    return "path_label" if is_one_cell and lines and names_video(first) else "csv"


def mentions(root: Path) -> list[Path]:
    """Text files directly in a folder whose first lines name videos."""
    return [file for file in _texts(root) if file.parent == root and _names_videos(_first_lines(file))]


def _known_layout(root: Path) -> tuple[Path, str] | None:
    for folder in (root, root / "ucfTrainTestlist"):
        if (folder / "classInd.txt").is_file():
            return folder / "classInd.txt", "source.name=ucf101"
    for folder in (root, root / "testTrainMulti_7030_splits", root / "splits"):
        found = next(iter(sorted(folder.glob("*_test_split1.txt"))), None)
        if found is not None:
            return found, "source.name=hmdb51"
    for folder in (root / "labels", root):
        found = next(iter(sorted(folder.glob("*labels.json"))), None)
        if found is not None and any(folder.glob("*train.json")):
            return found, "source.name=ssv2"
    for folder in (root, root / "annotations"):
        for file in sorted(folder.glob("*.csv"))[:_MOST_FILES]:
            cells = next(iter(_first_lines(file)), "").lower().split(",")
            if _KINETICS.issubset(cell.strip() for cell in cells):
                return file, "source.name=kinetics"
    return None


def _words(root: Path, file: Path) -> str:
    """The overrides that read a list; "" where it is none."""
    lines = _first_lines(file)
    if not _names_videos(lines) or file.suffix.lower() == ".json" or file.name in _OURS:
        return ""
    is_split = any(split_name(word) for word in re.split(r"[^A-Za-z]+", file.stem))
    is_path_label = all(re.search(r"\.\w+[\"']?\s+[0-9]+(\s+-1)?\s*$", line) for line in lines)
    if not is_split and not is_path_label and not _is_table(file, lines[0]):
        return ""
    if split_name(file.stem) and file.parent == root and not _has_names(lines):
        return "source.name=path_label"
    return f"SOURCE {file}" + (
        "" if _has_names(lines) or file.suffix == ".jsonl" else " source.name=path_label"
    )


def _is_table(file: Path, line: str) -> bool:
    """Whether a first line has a path column and a label column."""
    cells = re.split(r"[,;\t|]", line) if file.suffix.lower() != ".jsonl" else _keys(line)
    return any(is_path_name(cell) for cell in cells) and any(is_label_name(cell) for cell in cells)


def _keys(line: str) -> list[str]:
    """Keys of a json object, found without a parser."""
    return re.findall(r'"(\w+)"\s*:', line)


def _has_names(lines: Sequence[str]) -> bool:
    """Whether the first line is a header row."""
    return bool(lines) and not names_video(lines[0])


def _names_videos(lines: Sequence[str]) -> bool:
    """Whether all lines except a header row are about videos."""
    below = lines[1:] if _has_names(lines) else lines
    return bool(below) and all(names_video(line) for line in below)


def _texts(root: Path) -> Iterator[Path]:
    for folder in (root, *_folders(root)):
        files = [file for file in _children(folder) if file.suffix.lower() in _ENDINGS and file.is_file()]
        yield from files[:_MOST_FILES]


def _folders(root: Path) -> list[Path]:
    """Folders that may hold lists: those without videos, pictures and folders directly in them."""
    found = []
    for folder in _children(root):
        if folder.is_dir() and not folder.name.startswith("."):
            inside = _children(folder)
            if not any(is_video(file.name) or is_picture(file.name) for file in inside):
                found.append(folder)
    return found


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _first_lines(file: Path) -> list[str]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            return []
        text = read_text(file)
    except (DataError, OSError):
        return []
    lines = (line for line in lines_of(text) if line.strip() and not is_comment(line))
    return [line for line, _ in zip(lines, range(_LOOKED_AT), strict=False)]
