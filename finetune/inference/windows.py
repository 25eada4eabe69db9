"""Windows of videos for predictions and features: their keys, and advice on them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips, clip_with
from kinemae.data_tools.stream.video_files import data_set_in, open_video_files
from kinemae.data_tools.unread import check_is_read
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import EngineConfig

_SPREAD = 1.1  # ratio of frame rates that gets advice


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Windows of videos, and how they are read and encoded.

    Attributes:
        overlap: of sliding windows: fraction of a window that the next one shows again.
        step_s: of sliding windows: seconds from one window to the next; replaces `overlap`.
        temporal_clips: this many evenly spaced windows per video instead of sliding ones.
        stride, fps: selection of the frames of a window, see `ClipConfig`; null: those of the model.
        short_video: padding of a video shorter than a window: "hold" (last frame) or "loop".
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
    stride: int | None = None
    fps: float | None = None
    short_video: Literal["hold", "loop"] = "hold"
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
        require(self.stride is None or self.stride >= 1, "stride", "be null or at least 1", self.stride)
        if self.fps is not None:
            require(self.fps > 0, "fps", "be null or above 0", self.fps)
            require(self.stride is None, "stride", "be omitted with fps", self.stride)
        require(self.short_video in ("hold", "loop"), "short_video", "be hold or loop", self.short_video)
        require(self.clips_per_device >= 1, "clips_per_device", "be at least 1", self.clips_per_device)
        require(self.num_workers >= -1, "num_workers", "be 0 or more, or -1 (automatic)", self.num_workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)
        require(self.outage_s >= 0, "outage_s", "be 0 or more", self.outage_s)
        assert self.engine  # checks its own keys

    @property
    def engine(self) -> EngineConfig:
        """Device and precision of forward passes."""
        return EngineConfig(device=self.device, precision=self.precision, cpu_threads=self.cpu_threads)

    def window(self, clip: ClipConfig) -> ClipConfig:
        """Return the clip of a model with the configured selection of frames."""
        return clip_with(clip, stride=self.stride, fps=self.fps, short_video=self.short_video)

    def windows(self, clip: ClipConfig) -> int | SlidingClips:
        """Number of windows per video, or how they slide.

        Raises:
            ValueError: sliding windows of clips that are sampled from the whole video.
        """
        if self.temporal_clips is None and clip.sampling == "uniform":
            is_unset = self.overlap == 0 and self.step_s is None
            why = "be omitted for a model whose clip is the whole video; fix: fps=FPS or stride=STRIDE"
            require(is_unset, "overlap" if self.overlap else "step_s", why, self.overlap or self.step_s)
            return 1
        return self.temporal_clips or SlidingClips(overlap=self.overlap, step_s=self.step_s)

    def placement(self) -> dict[str, float | None]:
        """The keys that place the windows in a video."""
        return {name: getattr(self, name) for name in self.ALTERNATIVES}


def open_source(
    source: str | Path,
    folder: Path,
    windows: WindowConfig,
    processes: Processes,
    *,
    workers: int,
    out: Path | None = None,
) -> tuple[ShardIndex, dict[str, str]]:
    """Collective. Open a folder of shards, or index the video files of a source.

    Args:
        folder: where the index of video files is written.
        out: see `open_video_files`.
        workers: processes of this machine that decode.

    Returns:
        The data set, and the reason for each unreadable file.

    Raises:
        DataError: there is no readable video.
        ValueError: `out` is the source.
    """
    data_set = data_set_in(source)

    def index_files() -> dict[str, str]:
        limits = {"timeout_s": windows.timeout_s, "outage_s": windows.outage_s}
        with writing_to(folder):
            return open_video_files(source, folder, out=out, workers=max(workers, 1), **limits).failed

    failed = processes.on_first(index_files) if data_set is None else {}
    index = open_index(data_set or folder, outage_s=windows.outage_s)
    check_is_read(index, "inference")
    return index, failed


def advise(index: ShardIndex, clip: ClipConfig, windows: WindowConfig) -> None:
    """Log the length of the windows in these videos, and keys that change it."""
    if clip.sampling == "uniform":
        if windows.temporal_clips is None:
            log.info("a clip of the model is a whole video, so each video has one window")
        return
    duration_s = np.asarray(index.column("duration_s"))
    fps_R = index.column("frames") * index.column("frame_step") / duration_s  # of the sources
    length_R = np.full(len(index), clip.frames / clip.fps) if clip.fps else clip.frames * clip.stride / fps_R
    fps, length_s = float(np.median(fps_R)), float(np.median(length_R))
    rate = f"{clip.fps:g} per second" if clip.fps else f"stride {clip.stride}"
    log.info("a window has %d frames, %s: %.2f s of a video with %.4g fps", clip.frames, rate, length_s, fps)
    if windows.temporal_clips is None:
        step_s = windows.step_s or length_s * (1 - windows.overlap)
        finer = "" if windows.step_s or windows.overlap else "; for a finer time line: overlap=0.5"
        log.info("a new window begins every %.2f s%s", step_s, finer)
    if not clip.fps and fps_R.max() > _SPREAD * fps_R.min():
        log.info(
            "frame rates are %.4g to %.4g fps, so windows last %.2f to %.2f s; for windows of equal length: "
            "fps=%.4g", fps_R.min(), fps_R.max(), length_R.min(), length_R.max(), fps / clip.stride,
        )  # fmt: skip
    short = int((duration_s < length_R * (1 - 1 / clip.frames)).sum())
    if short:
        log.warning(
            "%d of %d videos are shorter than a window: short_video=%s pads them; for shorter windows: "
            "fps=N or stride=N", short, len(index), windows.short_video,
        )  # fmt: skip
