"""Extract the features of a data set, in units of consecutive videos, on any number of processes.

    OUT.partial/provenance.json           encoder, data, windows; a repeated command must have the same
    OUT.partial/units/000012.parquet      the rows of the unit's videos; complete or absent
    OUT.partial/units/000012.json         the unreadable videos of the unit; written last

A forward pass has windows of one unit only, and units do not depend on the number of processes. So features
do not depend on it, and a killed command continues at the first missing unit.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kinemae.data_tools.command import log
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.index import NO_LABEL, Sample, ShardIndex
from kinemae.data_tools.progress import progress
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, split_in_time, to_rgb
from kinemae.finetune.features.config import FeatureConfig
from kinemae.finetune.features.files import KEY, THUMBNAIL, Rows, Schema, write_parquet
from kinemae.finetune.probe.encode import LayerEncoder, encoded
from kinemae.pretrain.runtime.processes import Processes

_BYTES_AT_ONCE = 64 << 20  # of features, per write
_QUALITY = 80

Row = tuple[np.ndarray, dict[str, Any]]  # features and columns


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window of a video.

    Attributes:
        number: in its video, from 0.
        time_T: timestamps of its frames.
        values: the encoder's output: statistics_X, or tokens_ND.
        pixels: one clip.
    """

    number: int
    time_T: Tensor
    values: Tensor
    pixels: Pixels


class WindowRows:
    """Convert the windows of videos to rows of a file.

    Args:
        layer: number of the encoder's block.
        slices: time slices of its tokens.
    """

    def __init__(self, index: ShardIndex, config: FeatureConfig, *, layer: int, slices: int):
        self.index, self.config, self.layer, self.slices = index, config, layer, slices
        self._extra = {name: index.arrow_column(name) for name in index.extra}

    def of_video(self, position: int, windows: Iterable[Window]) -> Iterator[Row]:
        """Features and columns of each row of a video."""
        sample = self.index.sample(position)
        fixed = self._columns(position, sample)
        if self.config.kind == "pooled":
            yield self._pooled(sample, fixed, windows)
            return
        for window in windows:
            values = self._values(window.values)
            if self.config.kind != "slices":
                name = f"{sample.key}#{window.number:04d}"
                yield values, {**fixed, KEY: name, **self._place(sample, window, window.time_T)}
                continue
            for number, time_T in enumerate(window.time_T.chunk(self.slices)):
                name = f"{sample.key}#{window.number:04d}.{number}"
                yield values[number], {**fixed, KEY: name, **self._place(sample, window, time_T)}

    def _pooled(self, sample: Sample, fixed: dict[str, Any], windows: Iterable[Window]) -> Row:
        """The mean over the windows of a video, with the thumbnail of the middle one."""
        found = [(self._values(each.values), self._place(sample, each, each.time_T)) for each in windows]
        mean_D = np.stack([values for values, _ in found]).mean(axis=0, dtype=np.float64)
        place = {
            **found[len(found) // 2][1],
            "start_s": found[0][1]["start_s"],
            "end_s": found[-1][1]["end_s"],
        }
        return mean_D.astype(np.float32), {**fixed, KEY: sample.key, **place, "window": 0}

    def _values(self, values: Tensor) -> np.ndarray:
        """The features of one window: a vector, one vector per slice, or all tokens."""
        if self.config.kind == "slices":
            return values.unflatten(0, (self.slices, -1)).mean(dim=1).numpy()
        if self.config.kind != "tokens" and self.config.pool == "mean":
            return values[: len(values) // 2].numpy()
        return values.numpy()

    def _columns(self, position: int, sample: Sample) -> dict[str, Any]:
        """The columns that all rows of a video share."""
        is_window = self.config.kind != "pooled"
        label = None if sample.label == NO_LABEL else self.index.classes[sample.label]
        # Windows of one video must never be in both parts of a split by groups.
        group = sample.group or (sample.key if is_window else "")
        extra = {name: column[position].as_py() for name, column in self._extra.items()}
        return {**extra, "video": sample.key, "label": label, "group": group}

    def _place(self, sample: Sample, window: Window, time_T: Tensor) -> dict[str, Any]:
        """Number, start and end in the video, and thumbnail of a row with these frames."""
        half_s = sample.duration_s / sample.frames / 2
        start_s, end_s = float(time_T[0]) - half_s, float(time_T[-1]) + half_s
        found: dict[str, Any] = {
            "window": window.number,
            "start_s": round(start_s, 6),
            "end_s": round(end_s, 6),
        }
        if self.config.thumbnails:
            middle_s = float(time_T[len(time_T) // 2])
            frame = int(torch.argmin((window.time_T - middle_s).abs()))
            found[THUMBNAIL] = thumbnail(window.pixels, frame, self.config.thumbnails)
        return found


def thumbnail(pixels: Pixels, frame: int, size: int) -> bytes:
    """A frame of a clip as JPEG with the given height and width."""
    frames = pixels.shape[2] if isinstance(pixels, Tensor) else pixels.luma_BTHW.shape[1]
    [frame_CTHW] = to_rgb(split_in_time(pixels, frames)[frame : frame + 1])
    picture = Image.fromarray(frame_CTHW[:, 0].permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    picture.resize((size, size), Image.Resampling.BOX).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def unit_file(partial: Path, unit: int) -> Path:
    """The file of a unit; its record has the suffix .json."""
    return partial / "units" / f"{unit:06d}.parquet"


def extract(  # noqa: PLR0913 - what to read, encode and write
    partial: Path,
    units: Sequence[Sequence[int]],
    items: Iterator[EvaluationItem],
    rows: WindowRows,
    columns: Schema,
    encode_clips: LayerEncoder,
    processes: Processes,
) -> None:
    """Write the missing units of this process.

    Args:
        units: positions of the videos of every unit.
        items: the windows of the videos of `own_units`, in order.
    """
    own = own_units(partial, units, processes)
    shown: Iterable[int] = own
    if processes.is_first and own:
        shown = progress(own, total=len(own), what=f"features {partial.stem}", unit="unit")
    for unit in shown:
        skipped: dict[str, str] = {}
        of_unit = _readable(_of_videos(items, len(units[unit])), skipped)
        windows = _windows(of_unit, encode_clips, rows.layer, processes.device)
        found = (
            row
            for position, of_video in groupby(windows, key=lambda pair: pair[0])
            for row in rows.of_video(position, (window for _, window in of_video))
        )
        file = unit_file(partial, unit)
        write_parquet(file, _in_parts(found, rows.config.dtype), columns)
        atomic_write_text(file.with_suffix(".json"), json.dumps(skipped, ensure_ascii=False))


def own_units(partial: Path, units: Sequence[Sequence[int]], processes: Processes) -> list[int]:
    """The units that this process has to write; the same for all processes at one time."""
    records = [unit_file(partial, unit).with_suffix(".json") for unit in range(len(units))]
    missing = [unit for unit, record in enumerate(records) if not record.exists()]
    return missing[processes.rank :: processes.world]


def skipped_videos(partial: Path, units: int) -> dict[str, str]:
    """The unreadable videos of all units with the reasons."""
    found: dict[str, str] = {}
    for unit in range(units):
        found |= json.loads(unit_file(partial, unit).with_suffix(".json").read_text(encoding="utf-8"))
    return found


def _of_videos(items: Iterator[EvaluationItem], count: int) -> Iterator[EvaluationItem]:
    """Take all items of the next `count` videos."""
    while count:
        item = next(items)
        count -= item.part == item.parts - 1
        yield item


def _readable(items: Iterable[EvaluationItem], skipped: dict[str, str]) -> Iterator[EvaluationItem]:
    """The readable items; of the others, their video is added to `skipped`."""
    for item in items:
        if item.skipped is None:
            yield item
        elif item.key not in skipped:
            log.warning("%s has no features: %s", item.key, item.skipped.reason)
            skipped[item.key] = item.skipped.reason


def _windows(
    items: Iterable[EvaluationItem], encode_clips: LayerEncoder, layer: int, device: torch.device
) -> Iterator[tuple[int, Window]]:
    """Encode the windows of videos; yield the position of the video with each."""
    before, number = -1, 0
    for item, view, layers in encoded(items, encode_clips, device):
        number = 0 if item.position != before else number + 1
        before = item.position
        pixels, time_T = item.pixels[view : view + 1], item.time_VT[view]
        yield item.position, Window(number=number, time_T=time_T, values=layers[layer], pixels=pixels)


def _in_parts(rows: Iterable[Row], dtype: str) -> Iterator[Rows]:
    """Collect rows to parts of about 64 MB."""
    waiting: list[Row] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) * row[0].nbytes >= _BYTES_AT_ONCE:
            yield _join(waiting, dtype)
            waiting = []
    if waiting:
        yield _join(waiting, dtype)


def _join(rows: list[Row], dtype: str) -> Rows:
    columns = {name: [row[name] for _, row in rows] for name in rows[0][1]}
    return Rows(np.stack([values for values, _ in rows]).astype(dtype), columns)
