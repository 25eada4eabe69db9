"""Open videos safely: allowed containers, frame size limit, frame times, detection of damage.

Time is in seconds from the first frame on screen; a frame is on screen from its time stamp until that of the
next frame.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, dropwhile
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from kinemae.data_tools.command import DataError
from kinemae.data_tools.files import require_regular_file
from kinemae.data_tools.storage.retries import raise_if_outage
from kinemae.data_tools.stream.random_access import correct_stamps, is_random_access_point
from kinemae.data_tools.stream.sequential import DecodeState, error_text, frames_in_order, packets_of

MAX_PIXELS = 1 << 25  # an 8K frame (7680 x 4320) still fits
SLACK_S = 1e-6  # timestamps that were stored as decimal seconds are rounded

# Containers only: playlists and session descriptions (hls, concat, sdp) open other files or the network.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
_OPTIONS = {
    "format_whitelist": CONTAINERS,
    "threads": "1",  # also holds while the container is opened, which is then a quarter faster
}
# When it opens a container, FFmpeg decodes some frames to confirm the index of an mp4 file. Without a decoder
# it skips that, which saves 0.6 of 0.8 ms, and with a sound track 2.8 of 3.
_OPTIONS_BY_INDEX = {**_OPTIONS, "codec_whitelist": "none", "probesize": "32"}
_BLIND_SEEK_S = 1.0  # without an index, decoding a shorter distance is cheaper than a seek
# Exceptions of PyAV and FFmpeg that a file causes; PyAV also raises internal errors for unusual values.
_FILE_ERRORS = (
    *(av.FFmpegError, OSError, EOFError, ValueError, LookupError, ArithmeticError),
    *(MemoryError, BufferError, TypeError, RuntimeError),
)


class BadVideo(DataError):
    """A video that cannot be read completely; the message is one line without the video's name."""


@dataclass(frozen=True, kw_only=True)
class OpenedVideo:
    """A video opened up to its first frame: the stream, that frame and the following frames.

    The `pts` of each frame is its presentation time in ticks, strictly increasing; see `timestamps`.
    """

    container: InputContainer
    stream: VideoStream
    first: VideoFrame
    rest: Iterator[VideoFrame]
    tick_s: float
    decoding: DecodeState = field(default_factory=DecodeState)

    def start_s(self, frame: VideoFrame) -> float:
        """Time at which a frame comes on screen, from the first frame."""
        return (_ticks(frame) - _ticks(self.first)) * self.tick_s


@contextmanager
def open_video(source: bytes | Path) -> Iterator[OpenedVideo]:
    """Open a video up to its first frame; convert every error of FFmpeg in the block to BadVideo."""
    with open_container(source) as (container, stream):
        decoding = DecodeState()
        frames = frames_in_order(packets_of(container, stream, decoding), stream, decoding)
        first = next(frames, None)
        if first is None:
            why = f": {error_text(decoding.error)}" if decoding.error else ""
            raise BadVideo(f"no frame of it can be decoded{why}")
        tick_s = float(stream.time_base or first.time_base or 1)
        yield OpenedVideo(
            container=container, stream=stream, first=first, rest=frames, tick_s=tick_s, decoding=decoding
        )


@contextmanager
def open_container(
    source: bytes | Path, *, by_index: bool = False
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a container and its best video stream without decoding; convert FFmpeg's errors to BadVideo.

    Args:
        by_index: trust the container's description of the stream; enough for a single H.264 stream in mp4.
    """
    options = _OPTIONS_BY_INDEX if by_index else _OPTIONS
    # FFmpeg never gets a path: a name like "concat:..." would select a protocol.
    with (
        ffmpeg_errors(),
        _as_file(source) as file,
        _outages_of(file),
        av.open(file, "r", options=dict(options), metadata_errors="replace") as container,
    ):
        stream = best_stream(container)
        limit_decoder(stream)
        yield container, stream
        if isinstance(file, _File) and file.error is not None:
            raise file.error


@contextmanager
def ffmpeg_errors() -> Iterator[None]:
    """Convert errors of FFmpeg or PyAV, and of unreadable files, to BadVideo.

    Raises:
        StorageUnavailable: a file cannot be read now.
    """
    try:
        yield
    except DataError:
        raise
    except _FILE_ERRORS as error:
        if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
            raise_if_outage(error, "the video cannot be read")
        raise BadVideo(f"FFmpeg cannot read it: {error_text(error)}") from error


class _File(io.FileIO):
    """A file that stores read errors: PyAV may drop an error, and the video would seem to end there."""

    error: OSError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(-1 if size is None else size) or b""
        except OSError as error:
            self.error = error
            raise


def _as_file(source: bytes | Path) -> io.BytesIO | _File:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    require_regular_file(source)
    return _File(source)


@contextmanager
def _outages_of(file: io.BytesIO | _File) -> Iterator[None]:
    """Raise StorageUnavailable if the file's read error means an outage, even if PyAV dropped it."""
    try:
        yield
    finally:
        if isinstance(file, _File) and file.error is not None:
            raise_if_outage(file.error, f"cannot read {str(file.name)!r}")


def best_stream(container: InputContainer) -> VideoStream:
    """The best video stream of a container, which is no still picture.

    Raises:
        BadVideo: there is none, or FFmpeg has no decoder for it.
    """
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        raise BadVideo("it holds no video stream")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise BadVideo("FFmpeg has no decoder for its codec")
    best = container.streams.best("video")
    if best in streams:
        return best
    return max(streams, key=lambda stream: stream.codec_context.width * stream.codec_context.height)


def limit_decoder(stream: VideoStream) -> None:
    """Limit decoding to one thread and frames to MAX_PIXELS, also if the size changes within the video."""
    codec = stream.codec_context
    if codec.width * codec.height > MAX_PIXELS:
        raise BadVideo(f"frames of {codec.width}x{codec.height} are larger than {MAX_PIXELS} pixels")
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # options of the container do not reach the decoder
    codec.thread_count = 1
    codec.thread_type = "NONE"


def _ticks(frame: VideoFrame) -> int:
    assert frame.pts is not None  # set by FrameClock
    return frame.pts


def should_seek(opened: OpenedVideo, timestamp_s: float) -> bool:
    """Check whether a key frame may lie between the first frame and the timestamp."""
    return key_frame_may_precede(opened.stream, _target(opened, timestamp_s), timestamp_s)


def key_frame_may_precede(stream: VideoStream, target: int, timestamp_s: float) -> bool:
    """Check whether a key frame may lie before a timestamp, given in ticks and in seconds."""
    entries = stream.index_entries
    if len(entries) and entries[len(entries) - 1].timestamp >= target:
        return entries.search_timestamp(target) > 0
    return timestamp_s > _BLIND_SEEK_S


def frames_after_seek(opened: OpenedVideo, timestamp_s: float) -> Iterator[VideoFrame] | None:
    """Decode from a random access point before the timestamp.

    Returns:
        None if there is no reliable random access point, or if time stamps are wrong anywhere in the video:
        then a frame's time may depend on all frames before it. If wrong stamps appear later,
        `opened.decoding.is_repaired` is set.
    """
    container, stream, target = opened.container, opened.stream, _target(opened, timestamp_s)
    depth = stream.codec_context.reorder_depth
    if opened.decoding.is_repaired or (depth and container.format.name == "avi"):  # its stamps are not times
        return None
    with suppress(av.FFmpegError):
        container.seek(0 if stream.start_time is None else stream.start_time, stream=stream)
        known = correct_stamps(container.demux(stream), depth)
        if not known:
            return None
        container.seek(target, stream=stream)
        frames = frames_in_order(_packets_after_seek(opened, known), stream, opened.decoding)
        # Leading pictures of an open GOP refer to frames that were not decoded.
        entry = next((frame for frame in frames if frame.key_frame), None)
        if entry is not None and _ticks(entry) <= target and not opened.decoding.is_repaired:
            return chain([entry], frames)
    return None


def _packets_after_seek(
    opened: OpenedVideo, known: set[tuple[int | None, int | None, int]]
) -> Iterator[Packet | None]:
    """Packets from a random access point on, while their stamps equal those of a sequential read.

    FFmpeg fills in missing stamps from earlier packets, which a seek skips.
    """
    packets = packets_of(opened.container, opened.stream, opened.decoding)
    for packet in dropwhile(lambda one: one and not is_random_access_point(one, opened.stream), packets):
        if packet is not None and (packet.pts, packet.dts, packet.size) not in known:
            opened.decoding.is_repaired = True
            return
        yield packet


def _target(opened: OpenedVideo, timestamp_s: float) -> int:
    return _ticks(opened.first) + int((timestamp_s + SLACK_S) / opened.tick_s)


def nominal_frame_s(opened: OpenedVideo) -> float:
    """Duration of the first frame as the container states it."""
    if opened.first.duration:
        return opened.first.duration * opened.tick_s
    rate = opened.stream.average_rate
    return 1.0 / float(rate) if rate else 0.04
