"""Best models of a run in S3, beside its checkpoints (`save_to`).

    s3://bucket/prefix/best/step-00000029.tar    the files of `RUN/best`

One object holds a model, since S3 has no rename: an object is complete or absent.
"""

import errno
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from kinemae.data_tools.storage.location import Location, location
from kinemae.data_tools.storage.sequential_file import SequentialFile
from kinemae.pretrain.runtime.checkpoint_storage import os_errors


class StoredModels:
    """Models in a folder of S3, by step. Every method may raise `OSError`; see `checkpoint_storage.py`."""

    def __init__(self, place: Location):
        self.place = place

    def steps(self) -> set[int]:
        """Steps of the stored models."""
        with os_errors(self.place):
            matches = [re.fullmatch(r"step-(\d+)\.tar", name) for name in self.place.list()]
        return {int(match[1]) for match in matches if match}

    def upload(self, folder: Path, step: int) -> None:
        """Store the files of a folder; they replace a model of the same step."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
        with os_errors(self._object(step)):
            self._object(step).write_chunks(_tar_blocks(folder, files), size)

    def download(self, step: int, folder: Path) -> None:
        """Copy the files of a model to a folder."""
        place = self._object(step)
        try:
            with (
                os_errors(place),
                SequentialFile(place) as source,
                tarfile.open(fileobj=source, mode="r|") as tar,
            ):
                for member in tar:
                    _extract(tar, member, folder)
        except tarfile.TarError as error:
            text = f"expected a tar with a model, got an error: {error}"
            raise OSError(errno.EINVAL, text, str(place)) from error

    def remove(self, step: int) -> None:
        """Remove a model."""
        with os_errors(self._object(step)):
            self._object(step).remove()

    def _object(self, step: int) -> Location:
        return self.place / f"step-{step:08d}.tar"


def _tar_blocks(folder: Path, files: list[Path]) -> Iterator[bytes]:
    """The content of a tar, without a copy on the disk."""
    for path in files:
        info = tarfile.TarInfo(path.relative_to(folder).as_posix())
        info.size = path.stat().st_size
        yield info.tobuf()
        yield from location(path).iter_chunks()
        yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a file below a folder. `TarFile.extractall` has no safe filter before Python 3.11.4."""
    path, source = folder / member.name, tar.extractfile(member)
    if not member.isfile() or source is None or not path.resolve().is_relative_to(folder.resolve()):
        raise tarfile.ExtractError(f"{member.name} is not a file below the folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)
