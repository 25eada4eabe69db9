"""One clip of a video file, by time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import NO_LABEL, Sample
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.stream.frame_sampling import (
    ClipConfig,
    clip_span_s,
    clip_with,
    evaluation_timestamps_s,
    timestamps_from_s,
)
from kinemae.data_tools.stream.views import crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips


def read_clip(
    path_or_url: str | Path,
    clip: ClipConfig | None = None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    **settings: Any,
) -> Tensor:
    """Read one clip of a video: the frames on screen at its times, whatever the codec and the key frames.

    Args:
        path_or_url: a video file, or its URL; a remote file is read into memory.
        clip: frames, stride or frame rate, and size, such as `model.clip`; None: 16 frames in their own size.
        start_s: time of the first frame, in seconds from the start of the video.
        end_s: end of the time span of a clip with `sampling="uniform"`; None: the end of the video.
        settings: fields of `ClipConfig` that replace those of `clip`: frames, stride, fps, size, ...

    Returns:
        clip_CTHW, uint8 RGB. With a size it is the largest square in the centre, as in evaluation.

    Raises:
        DataError: the video is missing or cannot be read.
        ValueError: the clip is not inside the video, or wrong settings.
    """
    is_square = clip is not None or settings.get("size") is not None
    config = clip_with(clip, **settings)
    place = location(path_or_url)
    video = place.read() if place.path is None else place.path
    try:
        sample = _describe(video, place.name)
        timestamps_s = _timestamps_s(sample, config, start_s, end_s, name=str(place))
        return _square(video, timestamps_s, config) if is_square else _whole(video, timestamps_s)
    except BadVideo as error:
        raise DataError(
            f"{place}: expected a video, got an unreadable one: {error}; fix: choose another file"
        ) from error


def _describe(video: bytes | Path, name: str) -> Sample:
    """Describe a video as a sample, from its container."""
    info = probe(video, full=False)
    return Sample(
        key=name, shard=0, offset=0, length=0, crc32=0, label=NO_LABEL, name=name,
        frames=info.frames, duration_s=info.duration_s, width=info.width, height=info.height,
        codec=info.codec,
    )  # fmt: skip


def _timestamps_s(
    sample: Sample, clip: ClipConfig, start_s: float, end_s: float | None, *, name: str
) -> list[float]:
    duration_s = sample.duration_s
    end_s, is_uniform = duration_s if end_s is None else end_s, clip.sampling == "uniform"
    if not 0 <= start_s < end_s <= duration_s:
        raise ValueError(
            f"start_s, end_s: expected a time span in {name}, which has {duration_s:.3f} s, got "
            f"{start_s:g} to {end_s:g}; fix: choose times within it"
        )
    if is_uniform:
        return evaluation_timestamps_s(replace(sample, window_s=(start_s, end_s)), clip, temporal_clips=1)[0]
    if end_s != duration_s:
        raise ValueError(
            f"end_s: expected none for a clip with a stride or a frame rate, got {end_s:g}; fix: remove it, "
            'or set sampling="uniform"'
        )
    span_s = clip_span_s(sample, clip)
    if start_s and start_s + span_s > duration_s:
        raise ValueError(
            f"start_s: expected at most {max(duration_s - span_s, 0):.3f}, so that a clip of {span_s:.3f} s "
            f"ends in {name}, which has {duration_s:.3f} s, got {start_s:g}; fix: lower it"
        )
    if span_s > duration_s:
        what = "its last frame is repeated" if clip.short_video == "hold" else "it is repeated"
        log.warning("%s has %.3f s, a clip %.3f s: %s", name, duration_s, span_s, what)
    return timestamps_from_s(sample, clip, start_s)


def _square(video: bytes | Path, timestamps_s: list[float], clip: ClipConfig) -> Tensor:
    planes = YuvClips.empty(1, clip.frames, clip.size)
    crop_views(
        yuv_frames_at(video, timestamps_s), lambda height, width: evaluation_views(height, width, 1), planes
    )
    return planes.rgb()[0]


def _whole(video: bytes | Path, timestamps_s: list[float]) -> Tensor:
    return decode_at(video, timestamps_s).transpose(0, 1).contiguous()
