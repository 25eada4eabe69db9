"""Feature store: memory-mapped arrays of one encoder and one data set, with provenance.

    FOLDER/train/store.json        provenance, versions, unreadable samples; marks a complete store
    FOLDER/train/layer-11.npy      features_SVX: samples in the order of the index, views, values
    FOLDER/train/time.npy          time_SVT: timestamps of the frames in seconds
    FOLDER/train/samples.parquet   key, label, group and readable of each sample
    FOLDER/train.partial/          a store in progress: the arrays, provenance.json, and done/CHUNK.json

Any number of processes write to one store, each its chunks of samples. A chunk counts after its marker in
`done/` is written, so a killed command continues with the missing chunks. numpy has no bfloat16: such arrays
hold the bits as uint16.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.files import Descriptor, atomic_write_text, write_at
from kinemae.data_tools.index import ShardIndex

FORMAT = 1
STORE, PROVENANCE, DONE, SAMPLES, TIME = (
    "store.json",
    "provenance.json",
    "done",
    "samples.parquet",
    "time.npy",
)
_DTYPES: dict[str, tuple[torch.dtype, Any]] = {
    "float32": (torch.float32, np.float32),
    "float16": (torch.float16, np.float16),
    "bfloat16": (torch.bfloat16, np.uint16),
}
_CHUNKS, _CHUNK_SAMPLES = 256, (16, 64)
_EPSILON = 1e-6  # of variances, as in `pool_tokens`
_PACKAGES = ("kinemae", "torch", "av")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Properties that determine the features. A store with other values is an error.

    Attributes:
        encoder: digest of the encoder's architecture and weights.
        data: fingerprint of the data set.
        kind: "statistics", "slices" or "tokens".
        layers: numbers of the blocks, from 0.
        clip: frames, stride, fps, sampling, size, short_video.
        views: fixed temporal clips and spatial crops, or the number, seed and augmentation of random views.
        dtype: of the stored values.
        precision: of the forward pass, fp32 or bf16.
    """

    encoder: str
    data: str
    kind: str
    layers: list[int]
    clip: dict[str, Any]
    views: dict[str, Any]
    dtype: str
    precision: str
    format: int = FORMAT

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """Describe how a stored provenance differs; more layers than needed are no difference."""
        layers = stored.get("layers")
        if isinstance(layers, list) and set(self.layers) <= set(layers):
            stored = {**stored, "layers": self.layers}
        return differences(asdict(self), {name: stored.get(name) for name in asdict(self)})


def differences(own: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Describe how a stored provenance differs from the expected one."""
    found = []
    for name in {**own, **stored}:
        here, other = own.get(name), stored.get(name)
        if isinstance(here, dict) and isinstance(other, dict):
            keys = [key for key in here | other if here.get(key) != other.get(key)]
            found += [f"{name}.{key}: store {other.get(key)}, here {here.get(key)}" for key in keys]
        elif here != other:
            found.append(f"{name}: store {_short(other)}, here {_short(here)}")
    return found


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class StoreShape:
    """Sizes of a store: S samples, V views, T frames per view, and the values of one view in each layer."""

    samples: int
    views: int
    frames: int
    values: tuple[int, ...]

    @property
    def chunk_samples(self) -> int:
        """Samples per chunk. It depends on the data only, so that forward passes are the same everywhere."""
        low, high = _CHUNK_SAMPLES
        return min(max(self.samples // _CHUNKS, low), high)


def layer_file(layer: int) -> str:
    """The name of a layer's array."""
    return f"layer-{layer:02d}.npy"


class StoreWriter:
    """A store in progress. Every process of a command opens it.

    Args:
        folder: the final folder of the store.
    """

    def __init__(self, folder: Path, provenance: Provenance, shape: StoreShape):
        self.folder = folder
        self.partial = partial_folder(folder)
        self.provenance = provenance
        self.shape = shape
        self._files: dict[str, tuple[Descriptor, int, int]] = {}

    def create(self) -> None:
        """Create the arrays unless an interrupted command has left them. Only for the first process."""
        if (self.partial / PROVENANCE).exists():
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        (self.partial / DONE).mkdir(parents=True)
        sizes = (self.shape.samples, self.shape.views)
        dtype = _DTYPES[self.provenance.dtype][1]
        for layer in self.provenance.layers:
            self._allocate(layer_file(layer), (*sizes, *self.shape.values), dtype)
        self._allocate(TIME, (*sizes, self.shape.frames), np.float64)
        atomic_write_text(self.partial / PROVENANCE, json.dumps(asdict(self.provenance), indent=1))

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        np.lib.format.open_memmap(self.partial / name, mode="w+", dtype=dtype, shape=shape).flush()

    def is_done(self, chunk: int) -> bool:
        """Check whether a chunk is complete."""
        return self._marker(chunk).exists()

    def write(self, sample: int, view: int, layer_X: Mapping[int, Tensor], time_T: Tensor) -> None:
        """Write one view of a sample.

        Args:
            layer_X: by layer, its features.
        """
        row = sample * self.shape.views + view
        for layer, values_X in layer_X.items():
            stored = values_X.detach().to("cpu", _DTYPES[self.provenance.dtype][0]).contiguous()
            self._write_row(layer_file(layer), row, stored.view(torch.uint8).numpy())
        self._write_row(TIME, row, time_T.contiguous().view(torch.uint8).numpy())

    def finish_chunk(self, chunk: int, skipped: Mapping[int, str], seconds: float) -> None:
        """Mark a chunk as complete, after its bytes are on the disk.

        Args:
            skipped: by position, the reason why a sample could not be read.
            seconds: time that this process needed for the chunk.
        """
        for descriptor, _, _ in self._files.values():
            os.fsync(descriptor.number)
        content = {"skipped": {str(position): reason for position, reason in skipped.items()}}
        atomic_write_text(self._marker(chunk), json.dumps({**content, "seconds": seconds}))

    def commit(self, index: ShardIndex, chunks: int) -> None:
        """Complete the store. Only for the first process, after all chunks are done."""
        markers = [json.loads(self._marker(chunk).read_text(encoding="utf-8")) for chunk in range(chunks)]
        skipped = {position: reason for marker in markers for position, reason in marker["skipped"].items()}
        _write_samples(self.partial / SAMPLES, index, {int(position) for position in skipped})
        content = {
            **asdict(self.provenance),
            "skipped": dict(sorted(skipped.items(), key=lambda entry: int(entry[0]))),
            "seconds": round(sum(marker["seconds"] for marker in markers), 3),
            "versions": {name: version(name) for name in _PACKAGES},
        }
        atomic_write_text(self.partial / STORE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        shutil.rmtree(self.partial / DONE)
        (self.partial / PROVENANCE).unlink()
        self.partial.rename(self.folder)

    def _marker(self, chunk: int) -> Path:
        return self.partial / DONE / f"{chunk:06d}.json"

    def _write_row(self, name: str, row: int, content: np.ndarray) -> None:
        if name not in self._files:
            array = np.load(self.partial / name, mmap_mode="r")
            row_bytes = array[0, 0].nbytes
            self._files[name] = (Descriptor(str(self.partial / name), os.O_RDWR), array.offset, row_bytes)
        descriptor, offset, row_bytes = self._files[name]
        assert content.nbytes == row_bytes, f"{name}: {content.nbytes} bytes instead of {row_bytes}"
        write_at(descriptor.number, offset + row * row_bytes, memoryview(content.data).cast("B"))


def _write_samples(path: Path, index: ShardIndex, skipped: set[int]) -> None:
    names = {"key": index.column("key"), "label": index.column("label"), "group": index.column("group")}
    readable = [position not in skipped for position in range(len(index))]
    pq.write_table(pa.table({**names, "readable": readable}), path)


def partial_folder(folder: Path) -> Path:
    """The folder of a store in progress."""
    return folder.with_name(f"{folder.name}.partial")


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of one data set.

    Attributes:
        layers: by layer, features_SVX, memory-mapped or in memory; pooled statistics are mean and deviation,
            of all tokens or of each slice (features_SVtX).
        kind: "statistics", "slices", "tokens", or "vectors" of unknown origin.
        time_SVT: timestamps of the frames; NaN for skipped samples and features of other software.
        readable: positions of the samples with features.
        skipped: by position, the reason why a sample could not be read.
        seconds: time of reading and encoding, summed over processes.
    """

    layers: dict[int, np.ndarray]
    kind: str
    dtype: str
    time_SVT: np.ndarray
    readable: np.ndarray
    skipped: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def views(self) -> int:
        return self.time_SVT.shape[1]

    @property
    def slices(self) -> int:
        """Number of time slices of features of the kind "slices", else 0."""
        return next(iter(self.layers.values())).shape[2] if self.kind == "slices" else 0

    def tokens(self, layer: int, sample_B: np.ndarray, view_B: np.ndarray) -> Tensor:
        """Stored values of some views, as float32: tokens_BND or pooled_BX."""
        return self._as_float(self.layers[layer][sample_B, view_B])

    def pooled(self, layer: int, pool: str, sample_B: np.ndarray) -> Tensor:
        """Pool the tokens of all views of some samples.

        Args:
            pool: "mean", "statistics", or "slices" for the means of the slices, concatenated; the last one
                needs features of the kind "slices".

        Returns:
            pooled_BVX, float32
        """
        width = self.layers[layer].shape[-1]
        parts = [self._pooled(layer, pool, part_B) for part_B in _parts(sample_B, self.layers[layer])]
        return torch.cat(parts) if parts else torch.empty(0, self.views, width)

    def _pooled(self, layer: int, pool: str, sample_B: np.ndarray) -> Tensor:
        values = self._as_float(self.layers[layer][sample_B])
        if self.kind == "tokens":
            variance_BVD, mean_BVD = torch.var_mean(values, dim=2, unbiased=False)
            values = mean_BVD if pool == "mean" else statistics(mean_BVD, variance_BVD)
        elif self.kind == "slices":
            values = _pooled_slices(values, pool)
        elif self.kind == "statistics" and pool == "mean":
            values = values[..., : values.shape[-1] // 2]
        return values.contiguous()

    def _as_float(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return (tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor).float()


def slice_statistics(tokens_BND: Tensor, slices: int) -> Tensor:
    """Mean and standard deviation of the tokens of each slice, as statistics_BtX."""
    tokens_BtSD = tokens_BND.unflatten(1, (slices, -1))
    variance_BtD, mean_BtD = torch.var_mean(tokens_BtSD, dim=2, unbiased=False)
    return statistics(mean_BtD, variance_BtD)


def _pooled_slices(statistics_BVtX: Tensor, pool: str) -> Tensor:
    """Pool the mean and standard deviation of slices of equal size, see `Features.pooled`."""
    mean_BVtD, deviation_BVtD = statistics_BVtX.chunk(2, dim=-1)
    if pool == "slices":
        return mean_BVtD.flatten(2)
    mean_BVD = mean_BVtD.mean(dim=2)
    if pool == "mean":
        return mean_BVD
    within_BVD = (deviation_BVtD.square() - _EPSILON).mean(dim=2)
    between_BVD = mean_BVtD.var(dim=2, unbiased=False)
    return statistics(mean_BVD, within_BVD + between_BVD)


def statistics(mean_BD: Tensor, variance_BD: Tensor) -> Tensor:
    """Mean and standard deviation of tokens, concatenated as in `LinearHead`."""
    return torch.cat([mean_BD, (variance_BD + _EPSILON).sqrt()], dim=-1)


def _parts(sample_B: np.ndarray, array: np.ndarray) -> Iterator[np.ndarray]:
    """Split samples into parts of at most 256 MB of stored values."""
    at_once = max(1, (1 << 28) // max(1, array[0].nbytes)) if len(array) else 1
    for first in range(0, len(sample_B), at_once):
        yield sample_B[first : first + at_once]


def check_store(folder: Path, provenance: Provenance, *, key: str) -> str:
    """Compare a store, complete or in progress, with what the config needs.

    Args:
        key: config key of the data set, for the message.

    Returns:
        "complete", "partial" or "absent".

    Raises:
        ValueError: the store has another provenance; names the differences.
        DataError: its description cannot be read.
    """
    for place, name, state in ((folder, STORE, "complete"), (partial_folder(folder), PROVENANCE, "partial")):
        path = place / name
        if not path.exists():
            continue
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: expected JSON, got an error: {error}; fix: remove {place}") from error
        differences = provenance.differences(stored)
        if state == "partial" and not differences and stored["layers"] != provenance.layers:
            differences = [f"layers: store {stored['layers']}, here {provenance.layers}"]
        if differences:
            raise ValueError(
                f"{place}: expected features of this encoder, data set and views ({key}), got others "
                f"({'; '.join(differences)}); fix: choose another run_dir or features.folder, or set "
                "features.rebuild=true to replace them"
            )
        return state
    return "absent"


def remove_store(folder: Path) -> None:
    """Remove a store, complete or in progress."""
    for place in (folder, partial_folder(folder)):
        if place.exists():
            log.info("features.rebuild: removing %s", place)
            shutil.rmtree(place)


def open_store(folder: Path, layers: Sequence[int]) -> Features:
    """Open a complete store; arrays are memory-mapped.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        stored = json.loads((folder / STORE).read_text(encoding="utf-8"))
        arrays = {layer: np.load(folder / layer_file(layer), mmap_mode="r") for layer in layers}
        time_SVT = np.load(folder / TIME, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: expected a feature store, got an error: {error}; fix: set features.rebuild=true"
        ) from error
    skipped = {int(position): reason for position, reason in stored["skipped"].items()}
    readable = np.array([position for position in range(len(time_SVT)) if position not in skipped], np.int64)
    return Features(
        layers=arrays,
        kind=stored["kind"],
        dtype=stored["dtype"],
        time_SVT=time_SVT,
        readable=readable,
        skipped=skipped,
        seconds=stored["seconds"],
    )
