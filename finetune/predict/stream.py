"""Prediction of streams: one window after another, with a bounded latency.

If windows arrive faster than the model predicts them, a camera or network stream skips all but the newest
one. So the latency is at most two forward passes. A pipe or a file waits instead.
"""

import json
import math
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.config import require
from kinemae.data_tools.index import NO_LABEL
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.live import STANDARD_INPUT, is_camera_or_network, open_live
from kinemae.data_tools.stream.views import centre_square
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips
from kinemae.finetune.evaluation.inference import compute_outputs
from kinemae.finetune.inference.video_model import VideoModel
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.predict.scores import Segment, score_video
from kinemae.pretrain.model.tokens import COLOURS

_SLACK_S = 1e-6


class Window(NamedTuple):
    """A window of a stream: one clip, the times of its frames, and when it was complete."""

    pixels: Pixels
    time_1T: Tensor
    complete_s: float


@dataclass(frozen=True, kw_only=True)
class WindowPrediction:
    """The prediction for one window of a stream.

    Attributes:
        start_s, end_s: its time in seconds since the first frame.
        scores: by name, see `VideoPrediction.columns`.
        predicted: see `VideoPrediction`.
        segments: detected events in the window, for tasks over time.
        latency_s: seconds from the window's last frame to this prediction.
        skipped: number of windows since the last prediction that were skipped.
    """

    start_s: float
    end_s: float
    predicted: Any
    scores: dict[str, float]
    segments: list[Segment] | None = None
    latency_s: float = 0.0
    skipped: int = 0

    def to_json(self) -> str:
        """Format as one line of JSON."""
        content = dict(vars(self))
        if self.segments is None:
            del content["segments"]
        else:
            content["segments"] = [each._asdict() for each in self.segments]
        return json.dumps(content, ensure_ascii=False)


def is_stream(source: str, config: PredictConfig) -> bool:
    """Check whether a source is read as a stream."""
    return bool(config.live) or source == STANDARD_INPUT or is_camera_or_network(source)


def predict_frames(
    model: VideoModel, frames: Iterable[np.ndarray | Tensor], *, fps: float, config: PredictConfig
) -> Iterator[WindowPrediction]:
    """Predict a stream of frames, a window as soon as its last frame has arrived.

    Args:
        frames: uint8 RGB of shape (H, W, 3).
        fps: frames per second.

    Raises:
        ValueError: a model without a head, or whose clip is a whole video; frames of another shape or type;
            settings of videos.
    """
    require(0 < fps < math.inf, "stream_fps", "be above 0", fps)
    model.with_head()
    clip = _window(model, config)
    windows = windows_of(_clips(frames, fps, clip.size), clip, hop=frames_between(clip, config, fps))
    return (predict_window(model, window, config) for window in windows)


def _window(model: VideoModel, config: PredictConfig) -> ClipConfig:
    """Return the window of a stream; refuse settings that only videos have."""
    require(config.overlay is not True, "overlay", "be omitted for a stream", config.overlay)
    require(config.temporal_clips is None, "temporal_clips", "be omitted for a stream", config.temporal_clips)
    require(config.spatial_crops == 1, "spatial_crops", "be 1 for a stream", config.spatial_crops)
    return config.window(model.clip)


def _clips(frames: Iterable[np.ndarray | Tensor], fps: float, size: int) -> Iterator[tuple[float, Pixels]]:
    """Convert each frame to a clip of one frame with its time."""
    for number, frame in enumerate(frames):
        pixels_HWC = frame.cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
        if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != COLOURS or pixels_HWC.dtype != np.uint8:
            raise ValueError(
                f"frame {number}: expected uint8 RGB of shape (H, W, {COLOURS}), got {pixels_HWC.dtype} of "
                f"shape {pixels_HWC.shape}; fix: convert the frames"
            )
        square_HWC = torch.from_numpy(centre_square(pixels_HWC, size))
        yield number / fps, square_HWC.permute(2, 0, 1)[None, :, None]


def predict_live(model: VideoModel, source: str, out: Path, config: PredictConfig) -> int:
    """Predict a camera, a network stream, standard input or a file, and append each window to a log.

    Args:
        out: folder of `stream.jsonl`.

    Returns:
        The number of predicted windows.

    Raises:
        DataError: the stream cannot be opened, or ends with an error; the log has all windows before.
        ValueError: see `predict_frames`.
    """
    clip, count, file = _window(model, config), 0, out / "stream.jsonl"
    frames_between(clip, config, None if config.step_s is None else 1.0)  # its errors come before the camera
    keeps_all = not (is_camera_or_network(source) if config.live is None else config.live)
    windows = newest(_live_windows(source, clip, config), keeps_all=keeps_all)
    with writing_to(out), file.open("a", encoding="utf-8") as lines:
        try:
            for window, skipped in windows:
                found = predict_window(model, window, config, skipped=skipped)
                if config.seconds is not None and found.end_s > config.seconds:
                    break
                lines.write(found.to_json() + "\n")
                lines.flush()
                count += 1
                log.info("%.1f - %.1f s: %s", found.start_s, found.end_s, described(found))
        finally:
            log.info("%d windows predicted: %s", count, file)
    if not count:
        raise DataError(f"{source}: expected at least the frames of one window, got a shorter stream")
    return count


def _live_windows(source: str, clip: ClipConfig, config: PredictConfig) -> Generator[Window, None, None]:
    """Open a stream and cut it; the thread that iterates also closes it."""
    with open_live(source, size=clip.size) as stream:
        yield from windows_of(stream.frames, clip, hop=frames_between(clip, config, stream.fps))


def described(found: WindowPrediction) -> str:
    """Describe a prediction in a few words."""
    best = sorted(found.scores.items(), key=lambda pair: -pair[1])[:3]
    text = ", ".join(f"{name} {score:.2f}" for name, score in best)
    text += f"; latency {found.latency_s:.2f} s"
    return text + (f", {found.skipped} windows skipped" if found.skipped else "")


def frames_between(clip: ClipConfig, config: PredictConfig, fps: float | None) -> int:
    """Number of frames of the clip from one window to the next.

    Args:
        fps: frames per second of the stream.

    Raises:
        ValueError: the clip is a whole video, or `step_s` needs a frame rate that the stream does not state.
    """
    fix = "be dense for a stream; fix: fps=FPS or stride=STRIDE"
    require(clip.sampling == "dense", "the model's clip.sampling", fix, clip.sampling)
    if config.step_s is None:
        return max(round(clip.frames * (1 - config.overlap)), 1)
    rate = clip.fps or (fps and fps / clip.stride)
    if not rate:
        raise ValueError("step_s: expected a stream that states its frame rate, got none; fix: overlap=0.5")
    return max(round(config.step_s * rate), 1)


def windows_of(frames: Iterable[tuple[float, Pixels]], clip: ClipConfig, *, hop: int) -> Iterator[Window]:
    """Cut a stream into windows. A window at the end that is not complete is dropped."""
    held: deque[tuple[float, Pixels]] = deque(maxlen=clip.frames)
    for number, entry in enumerate(_sampled(frames, clip)):
        held.append(entry)
        if number >= clip.frames - 1 and (number - clip.frames + 1) % hop == 0:
            times = torch.tensor([[time_s for time_s, _ in held]], dtype=torch.float64)
            yield Window(_in_time([pixels for _, pixels in held]), times, time.monotonic())


def _sampled(frames: Iterable[tuple[float, Pixels]], clip: ClipConfig) -> Iterator[tuple[float, Pixels]]:
    """Choose every stride-th frame, or the frame on screen at each multiple of 1 / fps seconds."""
    shown: Pixels | None = None
    due = 0
    for number, (time_s, pixels) in enumerate(frames):
        if clip.fps is None:
            if number % clip.stride == 0:
                yield time_s, pixels
            continue
        while shown is not None and due / clip.fps < time_s - _SLACK_S:
            yield due / clip.fps, shown
            due += 1
        shown = pixels


def _in_time(parts: Sequence[Pixels]) -> Pixels:
    """Join clips of one frame to one clip."""
    planes = [part for part in parts if isinstance(part, YuvClips)]
    if not planes:
        return torch.cat([part for part in parts if isinstance(part, Tensor)], dim=2)
    return YuvClips(
        luma_BTHW=torch.cat([part.luma_BTHW for part in planes], dim=1),
        chroma_BCTHW=torch.cat([part.chroma_BCTHW for part in planes], dim=2),
        colour_BX=planes[0].colour_BX,
    )


def predict_window(
    model: VideoModel, window: Window, config: PredictConfig, *, skipped: int = 0
) -> WindowPrediction:
    """Predict one window, by the path of `finetune evaluate`.

    Raises:
        DataError: the model's output is not finite.
    """
    task_model = model.with_head()
    item = EvaluationItem(pixels=window.pixels, time_VT=window.time_1T, label=NO_LABEL, key="", position=0)
    [output] = compute_outputs(task_model, [item], config, model.device)
    if output.output_V is None:
        raise DataError("the model: expected finite outputs, got NaN or infinity; fix: use another model")
    found = score_video(task_model.task, output.output_V, window.time_1T, crops=1, threshold=config.threshold)
    return WindowPrediction(
        start_s=float(found["start_R"].min()),
        end_s=float(found["end_R"].max()),
        predicted=found["predicted"],
        scores=dict(zip(found["columns"], found["summary_X"].tolist(), strict=True)),
        segments=found["segments"],
        latency_s=time.monotonic() - window.complete_s,
        skipped=skipped,
    )


def newest(windows: Generator[Window, None, None], *, keeps_all: bool) -> Iterator[tuple[Window, int]]:
    """Read windows in a thread; yield the newest one and how many were skipped before it.

    Args:
        keeps_all: wait for the caller instead of skipping windows.
    """
    slot = _Slot(keeps_all=keeps_all)
    threading.Thread(target=slot.fill, args=(windows,), daemon=True).start()
    try:
        while (found := slot.take()) is not None:
            yield found
    finally:
        slot.close()


@dataclass
class _Slot:
    """One window, shared by the thread that reads a stream and the thread that predicts it."""

    keeps_all: bool
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _window: Window | None = None
    _skipped: int = 0
    _is_over: bool = False
    _error: BaseException | None = None

    def fill(self, windows: Generator[Window, None, None]) -> None:
        """Put windows until the stream ends or `close` is called."""
        try:
            for window in windows:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_over or not (self.keeps_all and self._window))
                    if self._is_over:
                        return
                    self._skipped += self._window is not None
                    self._window = window
                    self._changed.notify_all()
        except BaseException as error:  # raised again in the thread that predicts
            self._error = error
        finally:
            windows.close()
            self.close()

    def take(self) -> tuple[Window, int] | None:
        """Wait for a window; None at the end of the stream."""
        with self._changed:
            self._changed.wait_for(lambda: self._window is not None or self._is_over)
            window, skipped = self._window, self._skipped
            self._window, self._skipped = None, 0
            self._changed.notify_all()
        if window is None and self._error is not None:
            raise self._error
        return None if window is None else (window, skipped)

    def close(self) -> None:
        """End the stream."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
