"""Full decodes: properties and defects of a video, and exact RGB frames at given timestamps.

Training decodes planes instead, see `yuv_planes`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from kinemae.data_tools.curation.frame_stats import FrameStats
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.stream.container import (
    BadVideo,
    OpenedVideo,
    ffmpeg_errors,
    nominal_frame_s,
    open_video,
)
from kinemae.data_tools.stream.frame_decoder import frames_at
from kinemae.data_tools.stream.geometry import fitted_size, pixel_aspect, rotation, square_size
from kinemae.data_tools.stream.sequential import error_text


def probe(
    source: bytes | Path,
    *,
    full: bool = True,
    notes: list[str] | None = None,
    stats: FrameStats | None = None,
) -> VideoInfo:
    """Measure the properties of a video by decoding it.

    The last frame gets the average duration of a frame; the end stated by the container is ignored. Frame i
    of a video with a constant rate is therefore on screen at (i + 0.5) * duration_s / frames.

    Args:
        source: the video's bytes or its file.
        full: decode every frame; otherwise only the first, and trust the container for the rest.
        notes: gets a line for each defect that does not reject the video.
        stats: gets every decoded frame.

    Raises:
        BadVideo: the video cannot be opened, has no video stream, or is damaged. If a video ends earlier
            than its container states, the decoded frames count.
    """
    with open_video(source) as opened:
        frame_notes = FrameNotes(opened)
        if full:
            intact = IntactFrames(frame_notes.observe(chain([opened.first], opened.rest)), opened)
            last_s = max(_observed_s(opened, intact, stats))
            frames = intact.count
            duration_s = last_s * frames / (frames - 1) if frames > 1 else nominal_frame_s(opened)
            missing = intact.missing()
        else:
            frames, duration_s = _claimed_length(opened)
            missing = []
            list(frame_notes.observe(iter([opened.first])))
        height, width = _display_size(opened)
        codec = opened.stream.codec_context.name
    if notes is not None:
        notes.extend([*missing, *frame_notes.lines()])
    return VideoInfo(frames=frames, duration_s=duration_s, width=width, height=height, codec=codec)


def _observed_s(
    opened: OpenedVideo, frames: Iterable[VideoFrame], stats: FrameStats | None
) -> Iterator[float]:
    """The start of each frame in seconds."""
    for frame in frames:
        start_s = opened.start_s(frame)
        if stats is not None:
            stats.add(frame, start_s)
        yield start_s


def decode_at(
    video: bytes | Path, timestamps_s: Sequence[float], *, last_frame_s: float | None = None
) -> Tensor:
    """Decode the frames on screen at the given timestamps to RGB.

    Colours are those of PyAV's rgb24 conversion: alpha is dropped, more than 8 bits are reduced, no tone
    mapping. Pixels are made square and frames upright. A frame of another size than the first is fitted into
    the first's with black borders.

    Args:
        timestamps_s, last_frame_s: see `frames_at`.

    Returns:
        frames_TCHW, uint8 RGB; a view of memory in (T, H, W, C) order.

    Raises:
        BadVideo: the video cannot be read, or it ends before `last_frame_s`.
    """
    frames_THWC, turn, reformatter = np.empty(0, np.uint8), None, VideoReformatter()
    with ffmpeg_errors():
        for frame, places, stream in frames_at(video, timestamps_s, last_frame_s=last_frame_s):
            if turn is None:
                turn, aspect = rotation(frame), pixel_aspect(stream)
                size = square_size(frame.width, frame.height, aspect)
                frames_THWC = np.zeros((len(timestamps_s), *size[::-1], 3), np.uint8)
            width, height = fitted_size(*square_size(frame.width, frame.height, aspect), size)
            # More than one thread costs 40 microseconds a frame, twenty times the work at 48 x 48.
            rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
            plane = rgb.planes[0]  # rows may be padded
            rows = np.frombuffer(memoryview(plane), np.uint8)[: height * plane.line_size].reshape(height, -1)
            left, top = (size[0] - width) // 2, (size[1] - height) // 2
            pixels_HWC = rows[:, : width * 3].reshape(height, width, 3)
            frames_THWC[places, top : top + height, left : left + width] = pixels_HWC
    assert turn is not None
    upright_THWC = turn.apply(frames_THWC.transpose(1, 2, 0, 3)).transpose(2, 0, 1, 3)
    return torch.from_numpy(np.ascontiguousarray(upright_THWC)).permute(0, 3, 1, 2)


def rgb_frames(source: bytes | Path, *, longest: int) -> Iterator[tuple[float, np.ndarray]]:
    """Decode all frames of a video in order, up to a damaged end, for viewing.

    Args:
        longest: frames are reduced to this many pixels along their longer side.

    Returns:
        Times in seconds from the first frame, and frame_HWC: uint8 RGB, upright, with even sides.

    Raises:
        BadVideo: the video cannot be read.
    """
    reformatter = VideoReformatter()
    with open_video(source) as opened:
        turn, aspect = rotation(opened.first), pixel_aspect(opened.stream)
        width, height = square_size(opened.first.width, opened.first.height, aspect)
        scale = min(1.0, longest / max(width, height))
        width, height = (max(round(side * scale / 2) * 2, 2) for side in (width, height))
        for frame in IntactFrames(chain([opened.first], opened.rest), opened):
            rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
            yield opened.start_s(frame), turn.apply(rgb.to_ndarray())


class IntactFrames:
    """The frames before the first damage, counted.

    Damage at the end of a video, as in a truncated file or a stopped capture, ends the frames; `note` states
    it. Damage that intact frames follow raises BadVideo, as does a damaged first frame.

    Args:
        frames: those of `opened`, or some of them.

    Attributes:
        count: number of frames so far.
        note: a line about the damaged end; empty for none.
    """

    def __init__(self, frames: Iterator[VideoFrame], opened: OpenedVideo):
        self.count = 0
        self.note = ""
        self._frames = frames
        self._opened = opened

    def __iter__(self) -> Iterator[VideoFrame]:
        try:
            for frame in self._frames:
                if frame.is_corrupt:
                    self._check_end()
                    return
                self.count += 1
                yield frame
        except av.FFmpegError as error:
            reason = f"FFmpeg cannot read it after {self.count}{self._claimed()} frames: {error_text(error)}"
            raise BadVideo(reason) from error
        if self._opened.decoding.error is not None:
            self._set_note(error_text(self._opened.decoding.error))

    def _check_end(self) -> None:
        """Check whether the damaged frame is at the end of the video."""
        depth = max(self._opened.stream.codec_context.reorder_depth, 1)
        later = sum(not frame.is_corrupt for frame in islice(self._frames, 2 * depth + 1))
        if self.count == 0 or later > depth:
            raise BadVideo(f"frame {self.count} is damaged")
        self._set_note("the frame after them is damaged")

    def _set_note(self, reason: str) -> None:
        self.note = f"its end is damaged: {self.count}{self._claimed()} frames are whole ({reason})"

    def missing(self) -> list[str]:
        """Zero or one note on missing frames: damaged end, corrupt packets, fewer frames than claimed."""
        claimed, corrupt = self._opened.stream.frames, self._opened.decoding.corrupt
        if self.note:
            return [self.note]
        if corrupt:
            return [f"{corrupt} packets are marked as corrupt: frames near them may be missing or wrong"]
        return [f"{self.count} of {claimed} frames"] if self.count < claimed else []

    def _claimed(self) -> str:
        claimed = self._opened.stream.frames
        return f" of {claimed}" if claimed else ""


class FrameNotes:
    """Collects defects of frames that are not encoded again: interlacing, pixel aspect, several sizes."""

    def __init__(self, opened: OpenedVideo):
        self._opened = opened
        self._frames = self._interlaced = 0
        self._sizes: dict[tuple[int, int], None] = {}

    def observe(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Pass frames through unchanged."""
        for frame in frames:
            self._frames += 1
            self._interlaced += frame.interlaced_frame
            self._sizes[frame.width, frame.height] = None
            yield frame

    def lines(self) -> list[str]:
        """The notes on the frames so far."""
        lines, aspect = [], pixel_aspect(self._opened.stream)
        if self._interlaced:
            what = f"{self._interlaced} of {self._frames} frames are interlaced"
            lines.append(f"{what}: read combed; a layout of `shard` that encodes deinterlaces")
        if aspect != 1:
            lines.append(f"pixels of {aspect} are made square when it is read")
        if len(self._sizes) > 1:
            sizes = ", ".join(f"{width}x{height}" for width, height in self._sizes)
            lines.append(f"its size changes within the video ({sizes}): clips get black borders")
        return lines


def _claimed_length(opened: OpenedVideo) -> tuple[int, float]:
    """Frames and seconds as the container states them, at least one frame."""
    stream, frame_s = opened.stream, nominal_frame_s(opened)
    if stream.duration:
        duration_s = stream.duration * opened.tick_s
    else:
        duration_s = (opened.container.duration or 0) / av.time_base
    frames = stream.frames or max(round(duration_s / frame_s), 1)
    return frames, max(duration_s, frame_s)


def _display_size(opened: OpenedVideo) -> tuple[int, int]:
    """Height and width on screen: upright, in square pixels."""
    first, aspect = opened.first, pixel_aspect(opened.stream)
    if rotation(first).transpose:
        width, height = square_size(first.height, first.width, 1 / aspect)
    else:
        width, height = square_size(first.width, first.height, aspect)
    return height, width
