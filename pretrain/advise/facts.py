"""Facts about a data set on which the advice depends: index columns, and measurements of decoded videos."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from kinemae.data_tools.index import ShardIndex
from kinemae.pretrain.advise.clip_statistics import ClipStatistics
from kinemae.pretrain.advise.floors import Floors
from kinemae.pretrain.advise.overview import Overview

PERCENTILES = (5, 50, 95)


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """A data set and the machine that trains on it.

    Attributes:
        frames_R, seconds_R, width_R, height_R: of each video, with the frames of its source.
        groups: number of groups; 0 if the index has none.
        classes: names of the classes.
        exact_duplicates: fraction of the videos that repeat another one byte for byte.
        device: "cpu" or "cuda".
        memory_gb: memory of the device; None if it does not matter.
        hours: time for the training; None for no limit.
        by_stride: correlation of the frames at some strides; see `correlations_by_stride`.
        overview: of a sample of videos, over their whole length.
        clip: of clips as the model gets them; None if they are not measured yet, or none can be read.
        smaller: a size of the encoder below the one for this number of videos, if the hours demand it.
        floors: scores of the labels without learning; None without labels.
    """

    frames_R: np.ndarray
    seconds_R: np.ndarray
    width_R: np.ndarray
    height_R: np.ndarray
    groups: int = 0
    classes: tuple[str, ...] = ()
    exact_duplicates: float = 0.0
    device: str = "cpu"
    memory_gb: float | None = None
    hours: float | None = None
    by_stride: Mapping[int, float] = field(default_factory=dict)
    overview: Overview = field(default_factory=Overview)
    clip: ClipStatistics | None = None
    floors: Floors | None = None
    smaller: str | None = None

    @property
    def videos(self) -> int:
        """Number of videos."""
        return len(self.frames_R)

    @property
    def fps_R(self) -> np.ndarray:
        """Frame rates."""
        rates: np.ndarray = self.frames_R / np.maximum(self.seconds_R, 1e-6)
        return rates

    @property
    def short_side_R(self) -> np.ndarray:
        """Shorter sides in pixels."""
        return np.minimum(self.width_R, self.height_R)

    def percentiles(self, values_R: np.ndarray) -> tuple[float, float, float]:
        """The values at `PERCENTILES`."""
        low, middle, high = np.percentile(values_R, PERCENTILES)
        return float(low), float(middle), float(high)

    def summary(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        columns = {"frames": self.frames_R, "seconds": self.seconds_R, "fps": self.fps_R}
        columns |= {"width": self.width_R, "height": self.height_R}
        names = [f"p{percentile}" for percentile in PERCENTILES]
        return {
            "videos": self.videos,
            "hours": round(float(self.seconds_R.sum()) / 3600, 4),
            "groups": self.groups,
            "classes": len(self.classes),
            **{
                name: dict(zip(names, (round(value, 3) for value in self.percentiles(column)), strict=True))
                for name, column in columns.items()
            },
            "exact_duplicates": round(self.exact_duplicates, 4),
            "correlation_by_stride": {stride: round(value, 4) for stride, value in self.by_stride.items()},
            "overview": _as_json(self.overview),
            "clip": None if self.clip is None else _as_json(self.clip),
            "floors": None if self.floors is None else self.floors.summary(),
            "device": self.device,
            "memory_gb": self.memory_gb,
            "hours_given": self.hours,
        }


def _as_json(measured: Any) -> dict[str, Any]:
    """The numbers of a dataclass, rounded."""
    return {entry.name: round(getattr(measured, entry.name), 4) for entry in fields(measured)}


def index_columns(index: ShardIndex) -> dict[str, Any]:
    """The facts that the index knows."""
    origins = zip(index.column("content").tolist(), index.column("start_s").tolist(), strict=True)
    known = [origin for origin in origins if origin[0]]
    copies = len(known) - len(set(known))
    return {
        "frames_R": index.column("frames") * index.column("frame_step"),
        "seconds_R": index.column("duration_s"),
        "width_R": index.column("width"),
        "height_R": index.column("height"),
        "groups": len(set(index.column("group").tolist()) - {""}),
        "classes": index.classes if (index.column("label") >= 0).any() else (),
        "exact_duplicates": copies / len(index),
    }
