"""Shards of other folders: how an index names them, and copies."""

import os
import tempfile
from pathlib import Path
from posixpath import normpath

from kinemae.data_tools.command import DataError
from kinemae.data_tools.storage.location import Location


def reference_to(shard: Location, folder: Location) -> str:
    """The name of a shard in an index in `folder`: relative inside the folder, else a path or a URL.

    Raises:
        DataError: the folder is remote and the shard is a file of this machine.
    """
    if shard.path is not None and folder.path is not None:
        path, root = os.path.abspath(shard.path), os.path.abspath(folder.path)
        return os.path.relpath(path, root) if path.startswith(f"{root}/") else path
    if shard.path is not None:
        raise DataError(
            f"{folder}: expected remote shards in a remote data set, got the local file {shard}; "
            "fix: videos=copy"
        )
    scheme, _, rest = shard.url.partition("://")
    url = f"{scheme}://{normpath(rest)}" if "/../" in rest else shard.url
    root = folder.url.rstrip("/") + "/"
    return url.removeprefix(root) if url.startswith(root) else url


def copy_shard(source: Location, target: Location, size: int) -> None:
    """Copy a shard; the copy is complete or absent.

    Raises:
        DataError: the shard does not have the size that its index states.
    """
    if source.path is not None:
        target.upload(source.path)
    elif target.path is not None:
        target.path.parent.mkdir(parents=True, exist_ok=True)
        source.download(target.path)
    else:
        with tempfile.TemporaryDirectory(prefix="kinemae-copy-") as folder:
            source.download(Path(folder) / "shard.tar")
            target.upload(Path(folder) / "shard.tar")
    if target.size() != size:
        target.remove()
        raise DataError(
            f"{source}: expected {size} bytes, as its index states, got another size; "
            "fix: repair the source; `kinemae data verify` checks it"
        )
