"""Exact frames of a video at given instants, and nothing else of it in memory.

This is the only reading file that knows PyAV. Time is in seconds from the first frame shown; a frame is on
screen from its time stamp until that of the next. Colours are those of PyAV's rgb24 conversion (alpha is
dropped, more than 8 bits are reduced, no tone mapping); pixels are taken as square; frames are upright.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from data_tools.command import DataError
from data_tools.index import VideoInfo

MAX_PIXELS = 1 << 25  # an 8K frame (7680 x 4320) still fits

# Containers only: play lists and session descriptions (hls, concat, sdp) open other files or the network.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
_OPTIONS = {
    "format_whitelist": _CONTAINERS,
    "threads": "1",  # given here it also holds while the container is opened, which it makes a quarter faster
}
_SLACK_S = 1e-6  # instants that were written down as decimal seconds are rounded
_BLIND_SEEK_S = 1.0  # without an index, decoding on is cheaper than a search for nearer instants


class BadVideo(DataError):
    """A video that cannot be read as it should; the message is one line without the video's name."""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    container: InputContainer
    stream: VideoStream
    first: VideoFrame
    rest: Iterator[VideoFrame]
    tick_s: float

    def start_s(self, frame: VideoFrame) -> float:
        """When a frame comes on screen, counted from the first frame shown."""
        return (_ticks(frame) - _ticks(self.first)) * self.tick_s


def probe(source: bytes | Path, *, full: bool = True) -> VideoInfo:
    """Find out what a video is by decoding it.

    The last frame is taken to last as long as the average one, so frame i of a video with a constant
    rate is on screen around (i + 0.5) * duration_s / frames whatever the container says about its end.

    Args:
        source: the video itself, or its file.
        full: decode every frame; otherwise only the first, and believe the container about the rest.

    Raises:
        BadVideo: it cannot be opened, holds no video stream, or is damaged. A video that merely ends
            earlier than its container says is taken for what can be decoded.
    """
    with _open(source) as opened:
        frames, last_s = 1, 0.0
        if full:
            for frame in opened.rest:
                if frame.is_corrupt:
                    raise BadVideo(f"frame {frames} is damaged")
                frames, last_s = frames + 1, opened.start_s(frame)
            duration_s = last_s * frames / (frames - 1) if frames > 1 else _claimed_frame_s(opened)
        else:
            frames, duration_s = _claimed_length(opened)
        height, width = _upright_size(opened.first)
        codec = opened.stream.codec_context.name
    return VideoInfo(frames=frames, duration_s=duration_s, width=width, height=height, codec=codec)


def decode_at(video: bytes, instants_s: Sequence[float], *, last_frame_s: float | None = None) -> Tensor:
    """The frames on screen at the given instants.

    Decoding starts at the key frame before the first instant and stops after the last; only the frames
    asked for are converted to RGB.

    Args:
        instants_s: seconds from the first frame shown, in any order, repeats allowed.
        last_frame_s: when the last frame comes on screen according to the index.

    Returns:
        frames_TCHW, uint8 RGB; a view of memory in (T, H, W, C) order.

    Raises:
        BadVideo: it cannot be read, or it ends before `last_frame_s`.
    """
    order = sorted(range(len(instants_s)), key=instants_s.__getitem__)
    wanted_s = [instants_s[position] for position in order]
    sorted_THWC = _decode_sorted(video, wanted_s, last_frame_s, seek=True)
    if sorted_THWC is None:
        sorted_THWC = _decode_sorted(video, wanted_s, last_frame_s, seek=False)
    assert sorted_THWC is not None
    if order != list(range(len(order))):
        sorted_THWC = sorted_THWC[torch.tensor(order).argsort()]
    return sorted_THWC.permute(0, 3, 1, 2)


def _decode_sorted(
    video: bytes, wanted_s: list[float], last_frame_s: float | None, *, seek: bool
) -> Tensor | None:
    """Frames at ascending instants, (T, H, W, C); None where a seek led past the first of them."""
    with _open(video) as opened:
        frames: Iterator[VideoFrame] | None = chain([opened.first], opened.rest)
        if seek and _worth_seeking(opened, wanted_s[0]):
            frames = _frames_after_seek(opened, wanted_s[0])
        if frames is None:
            return None
        canvas = _Canvas(opened.first, len(wanted_s))
        shown = next(frames)
        for frame in frames:
            canvas.fill(shown, wanted_s, until_s=opened.start_s(frame) - _SLACK_S)
            shown = frame
            if canvas.filled == len(wanted_s):
                break
        else:
            _check_end(opened.start_s(shown), wanted_s[-1], last_frame_s)
            canvas.fill(shown, wanted_s, until_s=float("inf"))
        return _upright(canvas.frames_THWC, opened.first)


class _Canvas:
    """Where the picked frames go, one conversion and one copy each."""

    def __init__(self, first: VideoFrame, frames: int):
        self.frames_THWC = torch.empty((frames, first.height, first.width, 3), dtype=torch.uint8)
        self.filled = 0
        self._rows_THX = self.frames_THWC.numpy().reshape(frames, first.height, first.width * 3)
        self._reformatter = VideoReformatter()

    def fill(self, shown: VideoFrame, wanted_s: list[float], *, until_s: float) -> None:
        """Copy the frame to every place whose instant comes before the next frame does."""
        begin = self.filled
        while self.filled < len(wanted_s) and wanted_s[self.filled] < until_s:
            self.filled += 1
        if self.filled > begin:
            self._rows_THX[begin : self.filled] = self._rgb_rows(shown)

    def _rgb_rows(self, frame: VideoFrame) -> np.ndarray:
        _, height, row = self._rows_THX.shape
        # More than one thread here costs 40 microseconds a frame, twenty times the work at 48 x 48.
        rgb = self._reformatter.reformat(frame, width=row // 3, height=height, format="rgb24", threads=1)
        plane = rgb.planes[0]  # rows may be padded
        return np.frombuffer(memoryview(plane), np.uint8)[: height * plane.line_size].reshape(height, -1)[
            :, :row
        ]


@contextmanager
def _open(source: bytes | Path) -> Iterator[_Opened]:
    """Open a video up to its first frame; every error of FFmpeg in the block becomes BadVideo."""
    try:
        # Never a path for FFmpeg: a name like "concat:..." would choose a protocol.
        with (
            _as_file(source) as file,
            av.open(file, "r", options=dict(_OPTIONS), metadata_errors="replace") as container,
        ):
            stream = _best_stream(container)
            _limit(stream)
            frames = _shown(container, stream)
            first = next(frames, None)
            if first is None:
                raise BadVideo("no frame of it can be decoded")
            tick_s = float(stream.time_base or first.time_base or 1)
            yield _Opened(container=container, stream=stream, first=first, rest=frames, tick_s=tick_s)
    except (av.FFmpegError, OSError) as error:
        raise BadVideo(f"FFmpeg cannot read it: {error.strerror or error}") from error


def _as_file(source: bytes | Path) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _best_stream(container: InputContainer) -> VideoStream:
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    films = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not films:
        raise BadVideo("it holds no video stream")
    best = container.streams.best("video")
    if best in films:
        return best
    return max(films, key=lambda stream: stream.codec_context.width * stream.codec_context.height)


def _limit(stream: VideoStream) -> None:
    """One thread, and no frame of more than MAX_PIXELS, not even where the size changes on the way."""
    codec = stream.codec_context
    if codec.width * codec.height > MAX_PIXELS:
        raise BadVideo(f"frames of {codec.width}x{codec.height} are larger than {MAX_PIXELS} pixels")
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # options of the container do not reach the decoder
    codec.thread_count = 1
    codec.thread_type = "NONE"


def _shown(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames in the order of the screen; one that is not later than the one before is never seen."""
    latest = None
    for frame in container.decode(stream):
        ticks = _ticks(frame)
        if latest is None or ticks > latest:
            latest = ticks
            yield frame


def _ticks(frame: VideoFrame) -> int:
    if frame.pts is None:
        raise BadVideo("a frame has no time stamp: encode the video anew")
    return frame.pts


def _worth_seeking(opened: _Opened, instant_s: float) -> bool:
    """Whether a key frame may lie between the first frame and the instant."""
    target = _target(opened, instant_s)
    entries = opened.stream.index_entries
    if len(entries) and entries[len(entries) - 1].timestamp >= target:
        return entries.search_timestamp(target) > 0
    return instant_s > _BLIND_SEEK_S


def _frames_after_seek(opened: _Opened, instant_s: float) -> Iterator[VideoFrame] | None:
    """Frames from the key frame before the instant on, None where the container led elsewhere."""
    target = _target(opened, instant_s)
    with suppress(av.FFmpegError):
        opened.container.seek(target, stream=opened.stream)
        frames = _shown(opened.container, opened.stream)
        # What an open group of pictures puts before its key frame refers to frames we have not seen.
        entry = next((frame for frame in frames if frame.key_frame), None)
        if entry is not None and _ticks(entry) <= target:
            return chain([entry], frames)
    return None


def _target(opened: _Opened, instant_s: float) -> int:
    return _ticks(opened.first) + int((instant_s + _SLACK_S) / opened.tick_s)


def _check_end(last_s: float, wanted_s: float, last_frame_s: float | None) -> None:
    promised_s = last_frame_s if last_frame_s is not None else 0.0
    if last_s < min(promised_s, wanted_s) - 1e-3:
        raise BadVideo(
            f"its last frame comes at {last_s:.3f} s, the index promises one at {promised_s:.3f} s"
        )


def _claimed_frame_s(opened: _Opened) -> float:
    if opened.first.duration:
        return opened.first.duration * opened.tick_s
    rate = opened.stream.average_rate
    return 1.0 / float(rate) if rate else 0.04


def _claimed_length(opened: _Opened) -> tuple[int, float]:
    """Frames and seconds as the container has them, at least one frame."""
    stream, frame_s = opened.stream, _claimed_frame_s(opened)
    if stream.duration:
        duration_s = stream.duration * opened.tick_s
    else:
        duration_s = (opened.container.duration or 0) / av.time_base
    frames = stream.frames or max(round(duration_s / frame_s), 1)
    return frames, max(duration_s, frame_s)


def _turns(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(exchange rows and columns, then flip rows, then flip columns) that the display matrix asks for."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # A pixel (x, y) is shown at (a x + c y, b x + d y); angles that are no quarter turns go to the nearest.
    a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _upright(frames_THWC: Tensor, first: VideoFrame) -> Tensor:
    exchange, flip_rows, flip_columns = _turns(first)
    if exchange:
        frames_THWC = frames_THWC.transpose(1, 2)
    flipped = [dim for dim, flip in ((1, flip_rows), (2, flip_columns)) if flip]
    return frames_THWC.flip(flipped) if flipped else frames_THWC


def _upright_size(first: VideoFrame) -> tuple[int, int]:
    """Height and width as shown."""
    return (first.width, first.height) if _turns(first)[0] else (first.height, first.width)
