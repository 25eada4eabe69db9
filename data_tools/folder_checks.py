"""Checks of data set folders from listings alone, and error messages that suggest the right folder."""

import difflib
import itertools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.videos import is_video
from kinemae.data_tools.storage.location import Location, StorageError, StorageUnavailable, location

_MAX_NAMES = 1000  # of a folder
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst")


def not_a_data_set(folder: Location, names: Sequence[str]) -> DataError:
    """Make the error for a location that should be a data set folder.

    Args:
        names: files of an index; the first one marks a data set.
    """
    if is_tar_pattern(folder):
        return DataError(
            f"{folder}: expected the folder of a data set, got tars; fix: {_folder_of(folder, names[0])}"
        )
    if folder.path is not None and folder.path.is_file():
        return DataError(f"{folder}: expected the folder of a data set, got a file")
    if folder.path is not None and not folder.is_dir():
        near = _near(folder.path, names[0])
        fix = "fix: make one with `kinemae data shard SOURCE OUT`"
        return DataError(f"no folder of shards at {folder}; {f'did you mean {near}?' if near else fix}")
    missing = next((name for name in names if not (folder / name).exists()), names[0])
    splits = list_data_sets(folder, names[0])
    hint = f"; did you mean {' or '.join(str(folder / split) for split in splits[:3])}?" if splits else ""
    if not splits and any(name.endswith(".tar") for name in _sizes(folder)):
        hint = f"; fix: make an index of its tars with `{index_command(folder)}`"
    elif not splits and folder.path is not None and _holds_video(folder.path):
        made = f"kinemae data shard {shlex.quote(str(folder))} OUT"
        hint = f"; fix: make a data set of its videos with `{made}` and give OUT/train"
    return DataError(f"{folder}: expected a data set, got a folder without {missing}{hint}")


def _holds_video(folder: Path) -> bool:
    """Check whether a folder or its subfolders hold videos."""
    places = itertools.chain(folder.glob("*.*"), folder.glob("*/*.*"))
    return any(is_video(place.name) for place in itertools.islice(places, _MAX_NAMES))


def _near(path: Path, mark: str) -> Path | None:
    """A data set in the same parent folder whose name is similar to the missing one."""
    beside = {place.name: place for place in path.parent.glob("*") if (place / mark).is_file()}
    names = difflib.get_close_matches(path.name, beside, n=1)
    return beside[names[0]] if names else None


def list_data_sets(folder: Location, mark: str) -> list[str]:
    """Names of the subfolders that are data sets."""
    return [name for name in sorted(_sizes(folder)) if "." not in name and (folder / name / mark).exists()]


def check_shards_exist(
    data_sets: Iterable[tuple[Location, Mapping[str, int]]], *, fix: str = "copy the data set again"
) -> None:
    """Reject data sets with missing or truncated shards, from one listing of each folder.

    Args:
        data_sets: the folder of each one, and the sizes in bytes of its shards by name.

    Raises:
        DataError: as above, or a remote folder names local files.
    """
    listed = cache(_sizes)
    for folder, shards in data_sets:
        found = dict(_found_shards(folder, shards, listed))
        if missing := [name for name in shards if name not in found]:
            raise DataError(f"{folder} lacks {len(missing)} of its shards, first {missing[0]}; fix: {fix}")
        for name, size in shards.items():
            if found[name] not in (size, None):
                raise DataError(
                    f"{folder}: expected the shard {name} of {size} bytes, got {found[name]}: it was "
                    f"truncated or changed after it was written; fix: {fix}"
                )


def _found_shards(
    folder: Location, names: Iterable[str], listed: Callable[[Location], dict[str, int | None]]
) -> Iterator[tuple[str, int | None]]:
    """The shards that are there, with their sizes; None for an unknown size.

    Remote shards of a local index are not looked up, because all of them may be in a cache.
    """
    for name in names:
        parent, leaf = folder, name
        if "/" in name:
            place = folder / name
            if place.path is not None:
                if folder.is_remote:
                    raise DataError(
                        f"{folder}: expected remote shards in a remote index, got the local file {name}"
                    )
                if place.exists():
                    yield name, place.size()
                continue
            above, _, leaf = place.url.rpartition("/")
            parent = Location(above, place.retry_policy)
        sizes = listed(parent) if parent.is_remote == folder.is_remote else {}
        if not sizes:  # it cannot be listed
            yield name, None
        elif leaf in sizes:
            yield name, sizes[leaf]


def is_tar_pattern(place: Location) -> bool:
    """Check whether a location is one tar or a pattern of tars, and not a folder."""
    is_named = place.name.endswith(_TARS) or any(sign in place.url for sign in "{*")
    return is_named and not (place.path is not None and place.path.is_dir())


def _folder_of(tars: Location, mark: str) -> str:
    """The fix for a path that names the tars of a data set."""
    above = location(re.split(r"[{*]", tars.url)[0].rpartition("/")[0] or ".")
    try:
        if (above / mark).exists():
            return f"give {above}"
    except StorageError:
        pass
    return (
        f"make an index with `{index_command(tars, 'INDEXES')}` and give INDEXES; only data.shards of "
        "pretraining and kinemae.clips read tars without an index"
    )


def index_command(place: Location, out: str = "") -> str:
    """The command that makes an index of tars."""
    return f"kinemae data index {shlex.quote(str(place))} {out}".rstrip()


def _sizes(folder: Location) -> dict[str, int | None]:
    try:
        return folder.list_sizes()
    except StorageUnavailable:
        raise
    except StorageError:
        return {}  # permission to read does not include permission to list
