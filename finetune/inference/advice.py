"""Advice on the windows of videos: their length, their step, and keys that change them."""

from typing import Protocol

import numpy as np

from kinemae.data_tools.command import log
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.frame_sampling import ClipConfig

_SPREAD = 1.1  # ratio of frame rates that gets advice


class WindowKeys(Protocol):
    """The keys of a config that place the windows."""

    @property
    def overlap(self) -> float: ...

    @property
    def step_s(self) -> float | None: ...

    @property
    def temporal_clips(self) -> int | None: ...

    @property
    def short_video(self) -> str: ...


def advise(index: ShardIndex, clip: ClipConfig, windows: WindowKeys) -> None:
    """Log the length of the windows in these videos, and keys that change it."""
    if clip.sampling == "uniform":
        return
    duration_s = np.asarray(index.column("duration_s"))
    fps_R = index.column("frames") / duration_s
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
