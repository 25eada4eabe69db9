"""Small videos for tests of reading, and a sequential decode by PyAV as reference."""

import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from kinemae.data_tools.stream.decode import probe

SHIPPED = Path(__file__).parent / "data" / "videos"  # made by tests/data/make_videos.py
REAL = Path(__file__).resolve().parents[2] / "shared" / "videos"  # more files; not part of the project
FORMATS = REAL / "formats"
VIDEO_ENDINGS = {".mp4", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".ts"}
# x264 options of which other frames reference only every fourth frame.
ALIGNED = {
    "g": "32",
    "x264-params": "bframes=3:b-adapt=0:b-pyramid=none:scenecut=0:cabac=0:no-deblock=1:weightp=0:open-gop=0",
}


def video_files(folder: Path = FORMATS, *, most: int | None = None) -> list:
    """List the shipped videos, and the first videos of another folder if it exists."""
    shipped, others = (
        sorted(path for path in place.glob("*") if path.suffix in VIDEO_ENDINGS)
        for place in (SHIPPED, folder)
    )
    return [
        *(pytest.param(path, id=path.name) for path in shipped),
        *(pytest.param(path, id=path.name, marks=pytest.mark.slow) for path in others[:most]),
    ]


def number_of(frame_CHW: Tensor) -> int:
    """Read the number of a frame of a shipped video from its six blocks."""
    height, width = frame_CHW.shape[-2:]
    rows = slice(height // 16, 3 * height // 16)
    middles = [slice(int((n + 0.25) * width / 6), int((n + 0.75) * width / 6)) for n in range(6)]
    is_white = [frame_CHW[:, rows, columns].float().mean() > 127 for columns in middles]
    return sum(1 << bit for bit, white in enumerate(is_white) if white)


def scene(frames: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Make noise that moves one pixel per frame, down and to the right."""
    texture = np.random.default_rng(0).integers(0, 256, (height * 2, width * 2, 3), dtype=np.uint8)
    return [
        np.ascontiguousarray(texture[n % height : n % height + height, n % width : n % width + width])
        for n in range(frames)
    ]


def encoded(
    pictures: Sequence[np.ndarray],
    *,
    ticks: Sequence[int] | None = None,
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    **options: str,
) -> bytes:
    """Encode RGB pictures as H.264; `ticks` are their time stamps in 1/25 s."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        stream.codec_context.time_base = Fraction(1, 25)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number if ticks is None else ticks[number], Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def turned(video: bytes, angle: int, *, mirrored: bool) -> bytes:
    """Add a display matrix to a video."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as given, av.open(file, "w", format="mp4") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        stream.set_display_rotation(angle, hflip=mirrored)
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def middle_s(video: bytes, *frames: int) -> list[float]:
    """Return timestamps in the middle of frames at a constant rate."""
    info = probe(video)
    return [(frame + 0.5) * info.duration_s / info.frames for frame in frames]


def sequential(video: bytes) -> tuple[list[float], Tensor]:
    """Decode all frames sequentially with PyAV; return their times and frames_TCHW."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.best("video")
        frames = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        times = _on_screen_s([ticks for ticks, _ in frames], stream)
    return times, torch.from_numpy(np.stack([pixels for _, pixels in frames])).permute(0, 3, 1, 2)


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    """Copy the pixels of a frame's planes."""
    return [
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].copy()
        for plane in frame.planes
    ]


def all_planes(video: bytes) -> tuple[list[float], list[list[np.ndarray]]]:
    """Return times and planes of all frames of a full decode."""
    stamps, pixels = [], []
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.best("video")
        for frame in container.decode(stream):
            stamps.append(frame.pts)
            pixels.append(planes_of(frame))
        return _on_screen_s(stamps, stream), pixels


def _on_screen_s(stamps: Sequence[int], stream: av.VideoStream) -> list[float]:
    """Return times from the first frame; for stamps in decoding order, those of a constant rate."""
    if any(one >= other for one, other in pairwise(stamps)):
        return [number / float(stream.average_rate) for number in range(len(stamps))]
    return [float((ticks - stamps[0]) * stream.time_base) for ticks in stamps]


def same_planes(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    """Compare two frames bit for bit."""
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))
