"""A folder of videos: one folder for each class, or no classes; perhaps inside folders for each split."""

from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.manifest.videos import SPLITS, Listing, SourceVideo, is_video, printable, split_name
from kinemae.data_tools.manifest.walk import refuse_loop, unreadable, walk
from kinemae.data_tools.sources.base import Source, on_this_machine
from kinemae.data_tools.storage.location import Location


class FolderSource(Source):
    """Reads these layouts, each to any depth below a class:

    ROOT/CLASS/*.mp4                  labelled
    ROOT/*.mp4                        unlabelled
    ROOT/train/..., ROOT/val/...      either of the above in each; no other folders beside them
    """

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        root = on_this_machine(root)
        folders, here = _look_into(root)
        splits = {folder: split_name(folder.name) for folder in folders}
        if not folders or None in splits.values():
            _warn_of_splits(splits)
            return _classes(root, root, None)
        if any(is_video(name) for name in here):
            raise DataError(f"{root} holds videos beside its split folders: move them into a split")
        parts = [_classes(root, folder, split) for folder, split in splits.items()]
        return Listing(
            videos=tuple(video for part in parts for video in part.videos),
            ignored=sum(part.ignored for part in parts) + len(here),
        )


def _warn_of_splits(splits: dict[Path, str | None]) -> None:
    named = [folder.name for folder, split in splits.items() if split is not None]
    others = [printable(folder.name) for folder, split in splits.items() if split is None]
    if named:
        log.warning(
            "%s names a split, %s does not: all are classes; for splits rename the others (%s)",
            *(named[0], others[0], ", ".join(SPLITS)),
        )


def _classes(root: Path, folder: Path, split: str | None) -> Listing:
    if split == "unlabelled":
        return _videos(root, folder, None, split)
    folders, here = _look_into(folder)
    loose = [name for name in here if is_video(name)]
    parts = [_videos(root, child, printable(child.name), split) for child in folders]
    if loose and any(part.videos for part in parts):
        raise DataError(
            f"{folder} holds both videos ({printable(loose[0])}) and folders of videos: "
            "expected either one folder for each class or videos alone"
        )
    videos = [video for part in parts for video in part.videos]
    videos += [_video(root, folder / name, None, split) for name in loose]
    ignored = sum(part.ignored for part in parts) + len(here) - len(loose)
    return Listing(videos=tuple(videos), ignored=ignored)


def _videos(root: Path, folder: Path, label: str | None, split: str | None) -> Listing:
    """Every video at any depth."""
    found, ignored = [], 0
    refuse_loop(root, folder)
    for place, files in walk(folder):
        videos = [name for name in files if is_video(name)]
        ignored += len(files) - len(videos)
        found += [_video(root, place / name, label, split) for name in videos]
    return Listing(videos=tuple(found), ignored=ignored)


def _video(root: Path, path: Path, label: str | None, split: str | None) -> SourceVideo:
    return SourceVideo(path=path, name=printable(path.relative_to(root).as_posix()), label=label, split=split)


def _look_into(folder: Path) -> tuple[list[Path], list[str]]:
    """Sorted folders and sorted names of files directly in a folder."""
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        unreadable(error)
    folders = [child for child in children if child.is_dir()]
    files = [child.name for child in children if not child.is_dir()]
    return [child for child in folders if not child.name.startswith(".")], files
