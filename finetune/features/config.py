"""Config of `kinemae finetune features`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from kinemae.data_tools.config import require
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips
from kinemae.finetune.features.files import SUFFIXES
from kinemae.pretrain.exported_model import EncoderDescription
from kinemae.pretrain.runtime.settings import EngineConfig


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Everything that features depend on, besides encoder and source.

    Attributes:
        kind: "clip": one vector per window; "slices": one per time slice of a window; "tokens": all tokens of
            a window; "pooled": one vector per video, the mean over its windows.
        pool: "mean" of the tokens, or "statistics": their mean and standard deviation.
        layer: block whose output is taken, from 0, or from -1 at the end; the final norm is applied.
        overlap: of sliding windows: fraction of a window that the next one shows again.
        step_s: of sliding windows: seconds from one window to the next; replaces `overlap`.
        temporal_clips: this many evenly spaced windows per video instead of sliding ones.
        frames, stride, fps, size: of a window, see `ClipConfig`; null: those of the encoder.
        short_video: padding of a video shorter than a window: "hold" (last frame) or "loop".
        dtype: of the stored values.
        thumbnails: height and width of the stored thumbnails in pixels; 0 for none.
        subset: name of the subset in the annotations of a folder for ActionFormer.
        segments: column of the shards with labelled segments, for these annotations.
        rebuild: replace features of another encoder, source or config.
        max_bad_fraction: largest fraction of unreadable videos.
        clips_per_device: windows in one forward pass.
        num_workers: loader processes for short videos; -1 uses the remaining cores.
        timeout_s: limit without progress; then a loader process is replaced and its video skipped.
        outage_s: longest wait for a storage that is down.
        device, precision, cpu_threads: see `EngineConfig`.
    """

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("overlap", "step_s", "temporal_clips")

    kind: Literal["clip", "slices", "tokens", "pooled"] = "clip"
    pool: Literal["mean", "statistics"] = "mean"
    layer: int = -1
    overlap: float = 0.0
    step_s: float | None = None
    temporal_clips: int | None = None
    frames: int | None = None
    stride: int | None = None
    fps: float | None = None
    size: int | None = None
    short_video: Literal["hold", "loop"] = "hold"
    dtype: Literal["float32", "float16"] = "float32"
    thumbnails: int = 64
    subset: str = "training"
    segments: str | None = None
    rebuild: bool = False
    max_bad_fraction: float = 0.1
    clips_per_device: int = 32
    num_workers: int = -1
    timeout_s: float = 120.0
    outage_s: float = 300.0
    device: str = "auto"
    precision: str = "auto"
    cpu_threads: int = 0

    def __post_init__(self) -> None:
        is_vector = self.kind in ("clip", "pooled") or self.pool == "mean"
        require(is_vector, "pool", f"be mean with kind={self.kind}", self.pool)
        require(0 <= self.overlap < 1, "overlap", "lie in [0, 1)", self.overlap)
        if self.step_s is not None:
            require(0 < self.step_s < math.inf, "step_s", "be null or above 0", self.step_s)
            require(self.overlap == 0, "overlap", "be omitted with step_s", self.overlap)
        if self.temporal_clips is not None:
            require(self.temporal_clips >= 1, "temporal_clips", "be null or at least 1", self.temporal_clips)
            is_alone = self.overlap == 0 and self.step_s is None
            require(is_alone, "temporal_clips", "be omitted with overlap or step_s", self.temporal_clips)
        if self.fps is not None:
            require(self.stride is None, "stride", "be omitted with fps", self.stride)
        require(0 <= self.thumbnails <= 256, "thumbnails", "lie between 0 and 256", self.thumbnails)
        is_fraction = 0 <= self.max_bad_fraction <= 1
        require(is_fraction, "max_bad_fraction", "lie between 0 and 1", self.max_bad_fraction)
        require(self.clips_per_device >= 1, "clips_per_device", "be at least 1", self.clips_per_device)
        require(self.num_workers >= -1, "num_workers", "be 0 or more, or -1 (automatic)", self.num_workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)
        require(self.outage_s >= 0, "outage_s", "be 0 or more", self.outage_s)
        assert self.engine  # checks its own keys

    @property
    def engine(self) -> EngineConfig:
        """Device and precision of forward passes."""
        return EngineConfig(device=self.device, precision=self.precision, cpu_threads=self.cpu_threads)

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of an encoder's description that the config replaces."""
        if self.stride is None and self.fps is None:
            return {}
        return {"stride": self.stride or ClipConfig().stride, "fps": self.fps, "sampling": "dense"}

    def clip(self, description: EncoderDescription) -> ClipConfig:
        """The windows of an encoder."""
        return ClipConfig(
            frames=description.frames,
            stride=description.stride,
            fps=description.fps,
            sampling=description.sampling,
            size=description.size,
            short_video=self.short_video,
        )

    def windows(self, clip: ClipConfig) -> int | SlidingClips:
        """Number of windows per video, or how they slide.

        Raises:
            ValueError: sliding windows of clips that are sampled from the whole video.
        """
        if self.temporal_clips is None and clip.sampling == "uniform":
            is_unset = self.overlap == 0 and self.step_s is None
            why = "be omitted for an encoder whose clip is the whole video; fix: fps=FPS or stride=STRIDE"
            require(is_unset, "overlap" if self.overlap else "step_s", why, self.overlap or self.step_s)
            return 1
        return self.temporal_clips or SlidingClips(overlap=self.overlap, step_s=self.step_s)

    def check_out(self, out: Path) -> bool:
        """Return whether OUT is a folder for ActionFormer and not a file.

        Raises:
            ValueError: its vectors would not have equal steps, or OUT has an unknown suffix.
        """
        if out.suffix in SUFFIXES:
            return False
        fix = "fix: give OUT the suffix .parquet or .npz"
        if out.suffix and not out.is_dir():
            raise ValueError(
                f"OUT {out}: expected a name that ends in .parquet or .npz, or a folder without a suffix for "
                f"ActionFormer, got the suffix {out.suffix}; {fix}"
            )
        if self.kind not in ("clip", "slices"):
            raise ValueError(
                f"kind: expected clip or slices for a folder of ActionFormer, got {self.kind}; fix: set "
                f"kind=clip, or {fix.removeprefix('fix: ')}"
            )
        return True

    def settings(self) -> dict[str, Any]:
        """The keys that determine the features, for the provenance."""
        names = ("kind", "pool", "layer", "dtype", "thumbnails", "clips_per_device")
        window = {name: getattr(self, name) for name in self.ALTERNATIVES}
        return {**{name: getattr(self, name) for name in names}, "window": window}
