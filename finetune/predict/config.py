"""Config of `kinemae finetune predict`: windows, batches, devices, and what is written."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from kinemae.data_tools.command import log
from kinemae.data_tools.config import require
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.config import EvaluateConfig
from kinemae.pretrain.runtime.settings import BatchConfig, EngineConfig

DENSE_THRESHOLD, DETECTION_THRESHOLD = 0.5, 0.1  # default of `threshold`


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of a prediction.

    Attributes:
        overlap: of sliding windows: fraction of a window that the next one shows again.
        step_s: of sliding windows: seconds from one window to the next; replaces `overlap`.
        temporal_clips: this many evenly spaced windows per video instead of sliding ones.
        spatial_crops: 1 (the centre) or 3 (both ends and the centre of the longer side).
        stride, fps: selection of the frames of a window, see `ClipConfig`; null: those of the model.
        short_video: padding of a video shorter than a window: "hold" (last frame) or "loop".
        threshold: lowest probability of a segment: of a class that may overlap others in time, 0.5 by
            default; of a detection, 0.1 by default.
        overlay: write an mp4 of each video with its scores; null: if the source is one video.
        live: read SOURCE as a stream; null: if it is a camera, "-", rtsp://, rtmp://, udp://, tcp:// or srt://.
        seconds: end of a stream; null: until it ends or is interrupted.
        clips_per_device: windows in one forward pass.
        num_workers: loader processes for short videos; -1 uses the remaining cores.
        timeout_s: limit without progress; then a loader process is replaced and its video skipped.
        outage_s: longest wait for a storage that is down.
        device, precision, cpu_threads: see `EngineConfig`.
    """

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("overlap", "step_s", "temporal_clips")

    overlap: float = 0.0
    step_s: float | None = None
    temporal_clips: int | None = None
    spatial_crops: int = 1
    stride: int | None = None
    fps: float | None = None
    short_video: Literal["hold", "loop"] = "hold"
    threshold: float | None = None
    overlay: bool | None = None
    live: bool | None = None
    seconds: float | None = None
    clips_per_device: int = 32
    num_workers: int = -1
    timeout_s: float = 120.0
    outage_s: float = 300.0
    device: str = "auto"
    precision: str = "auto"
    cpu_threads: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.overlap < 1, "overlap", "lie in [0, 1)", self.overlap)
        if self.step_s is not None:
            require(0 < self.step_s < math.inf, "step_s", "be null or above 0", self.step_s)
            require(self.overlap == 0, "overlap", "be omitted with step_s", self.overlap)
        if self.temporal_clips is not None:
            require(self.temporal_clips >= 1, "temporal_clips", "be null or at least 1", self.temporal_clips)
            is_alone = self.overlap == 0 and self.step_s is None
            require(is_alone, "temporal_clips", "be omitted with overlap or step_s", self.temporal_clips)
        require(self.spatial_crops in (1, 3), "spatial_crops", "be 1 or 3", self.spatial_crops)
        require(self.stride is None or self.stride >= 1, "stride", "be null or at least 1", self.stride)
        if self.fps is not None:
            require(self.fps > 0, "fps", "be null or above 0", self.fps)
            require(self.stride is None, "stride", "be omitted with fps", self.stride)
        require(self.short_video in ("hold", "loop"), "short_video", "be hold or loop", self.short_video)
        is_probability = self.threshold is None or 0 <= self.threshold < 1
        require(is_probability, "threshold", "be null or lie in [0, 1)", self.threshold)
        require(self.seconds is None or self.seconds > 0, "seconds", "be null or above 0", self.seconds)
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
    def batch(self) -> BatchConfig:
        """Size of forward passes."""
        return BatchConfig(clips_per_device=self.clips_per_device)

    def views(self, clip: ClipConfig) -> EvaluateConfig:
        """Return the views of a video, as `finetune evaluate` takes them.

        Raises:
            ValueError: sliding windows of clips that are sampled from the whole video.
        """
        if self.temporal_clips is None and clip.sampling == "uniform":
            is_unset = self.overlap == 0 and self.step_s is None
            why = "be omitted for a model whose clip is the whole video; fix: fps=FPS or stride=STRIDE"
            require(is_unset, "overlap" if self.overlap else "step_s", why, self.overlap or self.step_s)
            log.info("a clip of the model is a whole video, so each video has one window")
            return EvaluateConfig(temporal_clips=1, spatial_crops=self.spatial_crops)
        if self.temporal_clips is not None:
            return EvaluateConfig(temporal_clips=self.temporal_clips, spatial_crops=self.spatial_crops)
        return EvaluateConfig(
            sliding=True, overlap=self.overlap, step_s=self.step_s, spatial_crops=self.spatial_crops
        )

    def window(self, clip: ClipConfig) -> ClipConfig:
        """Return the clip of the model with the configured selection of frames."""
        clip = replace(clip, short_video=self.short_video)
        if self.fps is not None:
            return replace(clip, fps=self.fps, stride=ClipConfig().stride, sampling="dense")
        if self.stride is not None:
            return replace(clip, stride=self.stride, fps=None, sampling="dense")
        return clip
