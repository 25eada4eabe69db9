"""Live streams: cameras, network streams and standard input, as frames of a clip's size with their times."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

import av
from av.container import InputContainer

from kinemae.data_tools.command import DataError
from kinemae.data_tools.files import open_regular
from kinemae.data_tools.stream.container import (
    CONTAINERS,
    BadVideo,
    best_stream,
    ffmpeg_errors,
    limit_decoder,
)
from kinemae.data_tools.stream.sequential import DecodeState, error_text, frames_in_order, packets_of
from kinemae.data_tools.stream.views import crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_planes import yuv_frames
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips

STANDARD_INPUT = "-"
_CAMERA = re.compile(r"camera:(\d+)")
_NETWORK = ("rtsp://", "rtmp://", "udp://", "tcp://", "srt://")
_WEB = ("http://", "https://")
_TIMEOUT_S = 10.0  # of a connection, and of a read
# Not the protocol "file": a playlist could name any file of this machine.
_OPTIONS = {
    "format_whitelist": f"{CONTAINERS},rtsp,rtp,sdp,h264,hevc,mjpeg,mpjpeg",
    "protocol_whitelist": "rtsp,rtsps,rtmp,rtp,udp,tcp,srt,http,https,tls,crypto",
    "threads": "1",
}


@dataclass(frozen=True, kw_only=True)
class LiveStream:
    """An opened stream.

    Attributes:
        frames: seconds since the first frame, and the frame as a clip of one frame.
        fps: nominal frames per second; None if the stream does not state it.
    """

    frames: Iterator[tuple[float, YuvClips]]
    fps: float | None


def is_camera_or_network(source: str) -> bool:
    """Check whether a source is a camera or a network stream, whose frames do not wait for the reader."""
    return _CAMERA.fullmatch(source) is not None or source.startswith(_NETWORK)


@contextmanager
def open_live(source: str, *, size: int) -> Iterator[LiveStream]:
    """Open camera:NUMBER, standard input (-), a URL or a file for one pass.

    Args:
        size: height and width of the frames: the largest square in the centre is resized to it.

    Raises:
        DataError: the stream cannot be opened, has no video, or ends with an error, also while iterating.
    """
    with _named_errors(source), _open(source) as container:
        stream = best_stream(container)
        limit_decoder(stream)
        decoding = DecodeState()
        frames = frames_in_order(packets_of(container, stream, decoding), stream, decoding)
        first = next(frames, None)
        if first is None:
            raise BadVideo("no frame of it can be decoded")
        tick_s, begin = float(stream.time_base or 1), first.pts or 0
        stamped = ((frame, [(frame.pts or 0) - begin], stream) for frame in chain([first], frames))

        def clips() -> Iterator[tuple[float, YuvClips]]:
            with _named_errors(source):
                for frame, [ticks] in yuv_frames(stamped):
                    clip = YuvClips.empty(1, 1, size)
                    crop_views([(frame, [0])], lambda height, width: evaluation_views(height, width, 1), clip)
                    yield ticks * tick_s, clip
                if decoding.error is not None:
                    raise BadVideo(f"it ended with an error: {error_text(decoding.error)}")

        rate = stream.average_rate or stream.base_rate
        yield LiveStream(frames=clips(), fps=float(rate) if rate else None)


@contextmanager
def _named_errors(source: str) -> Iterator[None]:
    """Add the source to errors of the stream."""
    try:
        with ffmpeg_errors():
            yield
    except BadVideo as error:
        raise DataError(f"{source}: expected a video stream, got an error: {error}") from error


def _open(source: str) -> InputContainer:
    camera = _CAMERA.fullmatch(source)
    if camera:
        device = Path(f"/dev/video{camera[1]}")
        if not device.exists():
            there = ", ".join(f"camera:{path.name[5:]}" for path in sorted(device.parent.glob("video[0-9]*")))
            raise DataError(
                f"{source}: expected a camera at {device}, got none; fix: connect it"
                + (f", or use {there}" if there else ", or pass the device to the container")
            )
        return av.open(str(device), "r", format="v4l2")
    if source == STANDARD_INPUT:
        return av.open(_Pipe(sys.stdin.buffer), "r", options=dict(_OPTIONS))
    if source.startswith((*_NETWORK, *_WEB)):
        return av.open(source, "r", options=dict(_OPTIONS), timeout=_TIMEOUT_S)
    if not Path(source).is_file():
        raise DataError(
            f"{source}: expected camera:NUMBER, -, a file, or a URL that begins with "
            f"{', '.join((*_NETWORK, *_WEB))}, got none of them; fix: correct it"
        )
    return av.open(_Pipe(open_regular(Path(source))), "r", options=dict(_OPTIONS))


class _Pipe(io.RawIOBase):
    """A file that is read once from its beginning, without seeking."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Read what is there, at least one byte, up to `size`."""
        content: bytes = getattr(self._file, "read1", self._file.read)(size)
        return content
