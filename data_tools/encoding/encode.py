"""Encode frames to video files. With one thread and no dates, equal frames give equal bytes."""

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.encoding.encoders import ENCODERS, FAST, MIN_HEIGHT, MIN_WIDTH, X264, pixel_format
from kinemae.data_tools.files import fsync_path, replaced_file
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.stream.container import BadVideo

# `bitexact` leaves out the library's version and the date.
_CONTAINER = {"fflags": "+bitexact"}
_X264 = {
    "preset": FAST,
    "bf": "0",
    # With mbtree, x264 gave different bytes for equal small frames in about one of a hundred videos.
    "x264-params": "mbtree=0",
}
_ANY_TYPE = PictureType(0)


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Settings of the H.264 encoder.

    Attributes:
        fps: frames per second.
        crf: x264's constant quality, 0 (lossless) to 51.
        gop: frames from one key frame to the next.
    """

    fps: int = 8
    crf: int = 18
    gop: int = 12

    def __post_init__(self) -> None:
        require(self.fps >= 1, "encode.fps", "be at least 1", self.fps)
        require(0 <= self.crf <= 51, "encode.crf", "lie in [0, 51]", self.crf)
        require(self.gop >= 1, "encode.gop", "be at least 1", self.gop)


def write_video(path: Path, frames_THWC: Tensor, settings: EncodeConfig) -> None:
    """Write frames as an H.264 mp4 (yuv420p, no sound); equal frames give equal bytes.

    Args:
        path: the file; it is complete or absent.
        frames_THWC: uint8 RGB with an even height and width.

    Raises:
        ValueError: the height or width is odd, which yuv420p cannot hold.
    """
    _, height, width, _ = frames_THWC.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"a video of {height}x{width} pixels cannot be encoded as yuv420p: both sides must be even"
        )
    with (
        replaced_file(path) as partial,
        av.open(str(partial), "w", format="mp4", options=_CONTAINER) as container,
    ):
        stream = container.add_stream(X264, rate=Fraction(settings.fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = settings.gop
        stream.thread_count = 1
        stream.options = {**_X264, "crf": str(settings.crf), "flags": "+bitexact"}
        for frame_HWC in frames_THWC.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Settings of an encoder.

    Attributes:
        codec: FFmpeg's name of the encoder.
        options: of the encoder.
        gop: frames from one key frame to the next at most.
    """

    codec: str
    options: dict[str, str]
    gop: int

    @property
    def is_hardware(self) -> bool:
        """Whether the encoder is a device, which may fail for reasons outside of the frames."""
        return self.codec in ENCODERS and self.codec != X264


_VIEWED = EncoderSettings(codec=X264, options={**_X264, "crf": "22"}, gop=250)
_DEVICE_ERRORS = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOMEM)
_TICK = Fraction(1, 90_000)


def write_frames(
    path: Path, frames: Iterable[VideoFrame], rate: Fraction, encoder: EncoderSettings
) -> VideoInfo:
    """Write frames as an mp4 at a constant rate, one at a time in memory; the file is complete or absent.

    Returns:
        The same as `probe` of the file.

    Raises:
        DataError: the file cannot be written.
        BadVideo: the encoder rejects the frames.
    """
    rest = iter(frames)
    first = next(rest)
    is_small = first.width < MIN_WIDTH or first.height < MIN_HEIGHT
    if encoder.is_hardware and is_small:
        raise BadVideo(
            f"frames of {first.width}x{first.height} are smaller than {MIN_WIDTH}x{MIN_HEIGHT}, the minimum "
            f"of {encoder.codec}"
        )
    with _atomic_mp4(path) as container:
        with _writing(path, encoder):
            stream = _add_stream(container, first, rate, encoder)
        for number, frame in enumerate(chain([first], rest)):
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, 1 / rate
            frame.pict_type = _ANY_TYPE  # not that of the decoded frame
            with _writing(path, encoder):
                container.mux(stream.encode(frame))
        with _writing(path, encoder):
            container.mux(stream.encode())
    return VideoInfo(
        frames=number + 1,
        duration_s=float((number + 1) / rate),
        width=first.width,
        height=first.height,
        codec=stream.codec_context.codec.canonical_name,
    )


@contextmanager
def open_timed_mp4(path: Path, rate: Fraction) -> Iterator[Callable[[float, np.ndarray], None]]:
    """Open an H.264 mp4 for frames with times; the file is complete or absent. Equal frames give equal bytes.

    Args:
        rate: nominal frames per second.

    Yields:
        A function that writes the time in seconds, ascending, and frame_HWC, uint8 RGB of one size. An odd
        side gets a white line.

    Raises:
        DataError: the file cannot be written.
    """
    stream: VideoStream | None = None
    with _atomic_mp4(path) as container:

        def write(time_s: float, frame_HWC: np.ndarray) -> None:
            nonlocal stream
            height, width = frame_HWC.shape[:2]
            even_HWC = np.pad(frame_HWC, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
            frame = av.VideoFrame.from_ndarray(even_HWC, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time_s / _TICK), _TICK
            with _writing(path):
                if stream is None:
                    stream = _add_stream(container, frame, rate, _VIEWED)
                    stream.time_base = stream.codec_context.time_base = _TICK
                container.mux(stream.encode(frame))

        yield write
        with _writing(path):
            container.mux(stream.encode() if stream is not None else [])


def write_timed_video(path: Path, frames: Iterable[tuple[float, np.ndarray]], rate: Fraction) -> None:
    """Write frames, each after its time in seconds; see `open_timed_mp4`."""
    with open_timed_mp4(path, rate) as write:
        for time_s, frame_HWC in frames:
            write(time_s, frame_HWC)


def mux_jpegs(path: Path, files: Iterable[Path], rate: Fraction, like: VideoFrame) -> None:
    """Copy JPEG files unchanged into an mp4 at a constant rate.

    Raises:
        DataError: the file cannot be written, or an image cannot be read.
    """
    with _atomic_mp4(path) as container, _writing(path):
        stream = _add_stream(container, like, rate, EncoderSettings(codec="mjpeg", options={}, gop=1))
        for number, file in enumerate(files):
            packet = av.Packet(file.read_bytes())
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)


@contextmanager
def _writing(path: Path, encoder: EncoderSettings | None = None) -> Iterator[None]:
    """Convert a full disk or a failing device to DataError, and frames that are rejected to BadVideo."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:  # an error of FFmpeg may be both
        is_disk = isinstance(error, OSError) and error.errno not in _DEVICE_ERRORS
        if encoder is not None and encoder.is_hardware and not is_disk:
            raise DataError(
                f"layout.args.encoder={encoder.codec}: expected a device that encodes, got {error}; fix: set "
                f"fewer workers, because devices limit the number of videos at a time, or use {X264}"
            ) from error
        if isinstance(error, OSError):
            raise DataError(
                f"cannot write to {path.parent}: {error.strerror or error}; fix that and run the same "
                "command again"
            ) from error
        raise BadVideo(f"it cannot be encoded: {error.strerror or error}") from error


@contextmanager
def _atomic_mp4(path: Path) -> Iterator[OutputContainer]:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _writing(path):
            container = av.open(str(partial), "w", format="mp4", options=_CONTAINER)
        yield container
        with _writing(path):
            container.close()
            fsync_path(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _add_stream(
    container: OutputContainer, like: VideoFrame, rate: Fraction, encoder: EncoderSettings
) -> VideoStream:
    stream = cast(VideoStream, container.add_stream(encoder.codec, rate=rate))
    stream.width, stream.height = like.width, like.height
    stream.pix_fmt = pixel_format(encoder.codec, like.format.name)
    stream.gop_size = encoder.gop
    codec = stream.codec_context
    codec.color_range, codec.colorspace = like.color_range, like.colorspace
    codec.color_primaries, codec.color_trc = like.color_primaries, like.color_trc
    codec.thread_count = 1
    stream.options = {**encoder.options, "flags": "+bitexact"}
    return stream
