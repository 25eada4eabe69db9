"""Config of `kinemae finetune features`."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from kinemae.data_tools.config import require
from kinemae.data_tools.stream.frame_sampling import SlidingClips
from kinemae.finetune.config import FinetuneClip
from kinemae.finetune.features.files import SUFFIXES
from kinemae.pretrain.runtime.settings import EngineConfig, StreamConfig, TimeoutsConfig

Format = Literal["npz", "parquet", "actionformer"]


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """The windows of a video: clips of the encoder.

    Attributes:
        overlap: fraction of a window that the next one shows again.
        step_s: seconds from one window to the next; replaces `overlap`.
        count: number of evenly spaced windows instead of windows that cover the video; null: cover it.
    """

    overlap: float = 0.0
    step_s: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        require(0 <= self.overlap < 1, "window.overlap", "lie in [0, 1)", self.overlap)
        if self.step_s is not None:
            require(0 < self.step_s < math.inf, "window.step_s", "be null or above 0", self.step_s)
            require(self.overlap == 0, "window.overlap", "be omitted with window.step_s", self.overlap)
        if self.count is not None:
            require(self.count >= 1, "window.count", "be null or at least 1", self.count)
            is_alone = self.overlap == 0 and self.step_s is None
            require(is_alone, "window.count", "be null with window.overlap or window.step_s", self.count)

    @property
    def clips(self) -> int | SlidingClips:
        """Clips per video, or how they slide."""
        return self.count or SlidingClips(overlap=self.overlap, step_s=self.step_s)


@dataclass(frozen=True, kw_only=True)
class FeatureData(StreamConfig):
    """Reading of the videos.

    Attributes:
        segments: column of the shards with labelled segments, for the annotations of `format=actionformer`.
    """

    segments: str | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Everything that features depend on, besides encoder and source.

    Attributes:
        kind: "clip": one vector per window; "slices": one per time slice of a window; "tokens": all tokens of
            a window; "pooled": one vector per video, the mean over its windows.
        pool: "mean" of the tokens, or "statistics": their mean and standard deviation.
        layer: block whose output is taken, from 0, or from -1 at the end; the final norm is applied.
        dtype: of the stored values.
        format: null: by the suffix of OUT; a folder is in the layout of ActionFormer and OpenTAD.
        subset: name of the subset in the annotations of ActionFormer.
        thumbnails: height and width of the stored thumbnails in pixels; 0 for none.
        clips_per_device: windows per forward pass.
        rebuild: replace features of another encoder, source or config.
    """

    kind: Literal["clip", "slices", "tokens", "pooled"] = "clip"
    pool: Literal["mean", "statistics"] = "mean"
    layer: int = -1
    dtype: Literal["float32", "float16"] = "float32"
    format: Format | None = None
    subset: str = "training"
    thumbnails: int = 64
    clips_per_device: int = 16
    rebuild: bool = False
    window: WindowConfig = field(default_factory=WindowConfig)
    clip: FinetuneClip = field(default_factory=FinetuneClip)
    data: FeatureData = field(default_factory=FeatureData)
    engine: EngineConfig = field(default_factory=EngineConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)

    def __post_init__(self) -> None:
        require(0 <= self.thumbnails <= 256, "thumbnails", "lie between 0 and 256", self.thumbnails)
        require(self.clips_per_device >= 1, "clips_per_device", "be at least 1", self.clips_per_device)
        is_vector = self.kind in ("clip", "pooled") or self.pool == "mean"
        require(is_vector, "pool", f"be mean with kind={self.kind}", self.pool)
        require(self.clip.chunks == 1, "clip.chunks", "be 1: windows cover the video", self.clip.chunks)
        views = self.data.views_per_video
        require(views == 1, "data.views_per_video", "be 1: windows cover the video", views)

    def format_of(self, out: Path) -> Format:
        """The format of a file or folder.

        Raises:
            ValueError: the format does not fit the name or the kind.
        """
        by_name: Format = {".npz": "npz", ".parquet": "parquet"}.get(out.suffix, "actionformer")  # type: ignore[assignment]
        found = self.format or by_name
        if found != by_name:
            expected = "the name of a folder" if found == "actionformer" else f"a name that ends in .{found}"
            raise ValueError(
                f"OUT {out}: expected {expected} with format={found}; fix: rename OUT, or omit format"
            )
        if found == "actionformer":
            fix = f"fix: set kind=clip, or give OUT a suffix: {' or '.join(SUFFIXES)}"
            if self.kind not in ("clip", "slices"):
                raise ValueError(
                    f"kind: expected clip or slices in a folder of ActionFormer, got {self.kind}; {fix}"
                )
            if self.window.count is not None:
                raise ValueError(
                    "window.count: expected null in a folder of ActionFormer, whose vectors have equal "
                    f"steps, got {self.window.count}; {fix}"
                )
        return found

    def settings(self) -> dict[str, object]:
        """The keys that determine the features, for the provenance."""
        names = ("kind", "pool", "layer", "dtype", "thumbnails", "clips_per_device")
        return {**{name: getattr(self, name) for name in names}, "window": asdict(self.window)}
