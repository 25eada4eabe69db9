"""Folder of videos: one folder per class or no classes, optionally inside one folder per split."""

from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.videos import (
    SPLITS,
    Manifest,
    SourceVideo,
    check_no_loop,
    is_video,
    printable,
    raise_unlisted,
    split_name,
    walk,
)
from kinemae.data_tools.sources.base import Source, local_path
from kinemae.data_tools.storage.location import Location


class FolderSource(Source):
    """Reads these layouts, each to any depth below a class:

    ROOT/CLASS/*.mp4                  labelled
    ROOT/*.mp4                        unlabelled
    ROOT/train/..., ROOT/val/...      either of these in each; no other folders next to them
    """

    def list_videos(self, root: Path | Location) -> Manifest:
        root = local_path(root)
        folders, files = _children(root)
        splits = {folder: split_name(folder.name) for folder in folders}
        if not folders or None in splits.values():
            _warn_of_splits(splits)
            return _classes(root, root, None)
        if any(is_video(name) for name in files):
            raise DataError(f"{root}: expected split folders only, got videos next to them; fix: move them")
        parts = [_classes(root, folder, split) for folder, split in splits.items()]
        return _joined(parts, ignored=len(files))


def _warn_of_splits(splits: dict[Path, str | None]) -> None:
    named = [folder.name for folder, split in splits.items() if split is not None]
    others = [printable(folder.name) for folder, split in splits.items() if split is None]
    if named:
        log.warning(
            "%s is the name of a split, %s is not: all are classes; for splits rename the others (%s)",
            *(named[0], others[0], ", ".join(SPLITS)),
        )


def _classes(root: Path, folder: Path, split: str | None) -> Manifest:
    if split == "unlabelled":
        return _videos(root, folder, None, split)
    folders, files = _children(folder)
    loose = [name for name in files if is_video(name)]
    parts = [_videos(root, child, printable(child.name), split) for child in folders]
    if loose and any(part.videos for part in parts):
        raise DataError(
            f"{folder}: expected one folder per class, or videos only, got both folders and "
            f"{printable(loose[0])}"
        )
    videos = tuple(_video(root, folder / name, None, split) for name in loose)
    return _joined([*parts, Manifest(videos=videos)], ignored=len(files) - len(loose))


def _videos(root: Path, folder: Path, label: str | None, split: str | None) -> Manifest:
    """Every video at any depth."""
    found, ignored = [], 0
    check_no_loop(root, folder)
    for place, files in walk(folder):
        videos = [name for name in files if is_video(name)]
        ignored += len(files) - len(videos)
        found += [_video(root, place / name, label, split) for name in videos]
    return Manifest(videos=tuple(found), ignored=ignored)


def _joined(parts: list[Manifest], *, ignored: int) -> Manifest:
    videos = tuple(video for part in parts for video in part.videos)
    return Manifest(videos=videos, ignored=ignored + sum(part.ignored for part in parts))


def _video(root: Path, path: Path, label: str | None, split: str | None) -> SourceVideo:
    return SourceVideo(path=path, name=printable(path.relative_to(root).as_posix()), label=label, split=split)


def _children(folder: Path) -> tuple[list[Path], list[str]]:
    """Sorted folders and sorted file names directly in a folder."""
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise_unlisted(error)
    folders = [child for child in children if child.is_dir()]
    files = [child.name for child in children if not child.is_dir()]
    return [child for child in folders if not child.name.startswith(".")], files
