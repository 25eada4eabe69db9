"""The list of all videos of a collection in a file, so that many parts of `shard` list it only once.

The file is an Arrow file with a row per video, which holds its fields as JSON. A part maps the file and reads
its own rows, chosen by the column `hash`. The metadata holds what the videos have in common.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.parts import Part, name_hash
from kinemae.data_tools.storage.location import Location

EXTENSION = ".arrow"
_META_KEY, _FORMAT = b"kinemae_list", 1
_ROWS = [("hash", pa.uint64()), ("key", pa.string()), ("split", pa.string()), ("video", pa.string())]
_ROWS_AT_ONCE = 65_536
_TYPES: dict[str, type] = {"int": int, "float": float, "str": str}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Videos of a collection, and what `shard` derives from all of them.

    Attributes:
        source: name of the collection.
        settings: the keys of the config on which the listing depends, as dataset.json holds them.
        classes: in the order of their numbers.
        columns: types of the additional columns: int, float or str.
        fingerprint: of the metadata of all videos.
        ignored: number of other files.
        total: number of videos of the collection.
        videos, keys, splits: of all videos, or of one part.
    """

    source: str
    settings: Mapping[str, Any]
    classes: tuple[str, ...]
    columns: Mapping[str, type]
    fingerprint: str
    ignored: int
    total: int
    videos: Sequence[SourceVideo]
    keys: Sequence[str]
    splits: Sequence[str]

    def of_part(self, part: Part) -> "Listing":
        """The videos of one part."""
        own = [number for number, video in enumerate(self.videos) if part.holds(video.name)]
        lists = (self.videos, self.keys, self.splits)
        videos, keys, splits = (tuple(values[number] for number in own) for values in lists)
        return Listing(**{**vars(self), "videos": videos, "keys": keys, "splits": splits})


def is_list(root: Location) -> bool:
    """Check whether SOURCE is a list of videos in a file."""
    return root.name.endswith(EXTENSION)


def write_list(listing: Listing, out: Location) -> None:
    """Write all videos to a file, which is complete or absent."""
    meta = {name: value for name, value in vars(listing).items() if name not in ("videos", "keys", "splits")}
    meta |= {"format": _FORMAT, "columns": {name: kind.__name__ for name, kind in listing.columns.items()}}
    schema = pa.schema(_ROWS, metadata={_META_KEY: json.dumps(meta).encode()})
    folder = None if out.path is None else out.path.parent
    with tempfile.TemporaryDirectory(dir=folder, prefix=".list.") as scratch:
        file = Path(scratch, out.name)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for begin in range(0, len(listing.videos), _ROWS_AT_ONCE):
                rows = slice(begin, begin + _ROWS_AT_ONCE)
                videos = listing.videos[rows]
                columns: list[Any] = [[name_hash(video.name) for video in videos]]
                columns += [listing.keys[rows], listing.splits[rows], [_as_json(video) for video in videos]]
                arrays = [pa.array(values, kind) for values, (_, kind) in zip(columns, _ROWS, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        out.upload(file)


def read_list(root: Location, part: Part) -> Listing:
    """Read the videos of one part.

    Raises:
        DataError: the file is no list of videos, or damaged.
    """
    with _local(root) as file, _errors_of(root), pa.memory_map(str(file)) as source:
        opened = pa.ipc.open_file(source)
        meta = json.loads((opened.schema.metadata or {}).get(_META_KEY, b"{}"))
        if meta.pop("format", None) != _FORMAT:
            raise DataError(
                f"SOURCE {root}: expected a list of `kinemae data list`, got another file; fix: list again"
            )
        rows: list[tuple[SourceVideo, str, str]] = []
        for number in range(opened.num_record_batches):
            batch = opened.get_batch(number)
            own = np.flatnonzero(batch.column("hash").to_numpy() % part.count == part.number)
            texts = (batch.column(name).take(pa.array(own)).to_pylist() for name in ("video", "key", "split"))
            rows += [(_from_json(video), key, split) for video, key, split in zip(*texts, strict=True)]
    meta |= {"classes": tuple(meta["classes"])}
    meta |= {"columns": {name: _TYPES[kind] for name, kind in meta["columns"].items()}}
    videos, keys, splits = zip(*rows, strict=True) if rows else ((), (), ())
    return Listing(**meta, videos=videos, keys=keys, splits=splits)


def _as_json(video: SourceVideo) -> str:
    defaults = {field.name: field.default for field in fields(video)}
    found = {name: value for name, value in asdict(video).items() if value != defaults[name] and value != {}}
    return json.dumps({**found, "path": str(video.path) if video.url else os.path.abspath(video.path)})


def _from_json(text: str) -> SourceVideo:
    found = json.loads(text)
    found |= {name: tuple(found[name]) for name in ("frames", "member") if name in found}
    return SourceVideo(**{**found, "path": Path(found["path"])})


@contextmanager
def _local(root: Location) -> Iterator[Path]:
    """The file on this machine, downloaded if it is remote."""
    if root.path is not None:
        if not root.path.is_file():
            raise DataError(f"SOURCE {root}: expected a list of videos, got no file; fix: check the path")
        yield root.path
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, f"list{EXTENSION}")
        root.download(file)
        yield file


@contextmanager
def _errors_of(root: Location) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"SOURCE {root}: expected a list of `kinemae data list`, got a damaged or another file "
            f"({reason}); fix: list again"
        ) from error
