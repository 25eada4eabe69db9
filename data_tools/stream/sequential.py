"""Sequential decoding: each frame once, in presentation order, with its time, up to the first damage."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from kinemae.data_tools import heartbeat
from kinemae.data_tools.stream.timestamps import FrameClock

_MAX_UNREADABLE = 2  # packets at the end of a truncated file


@dataclass(kw_only=True)
class DecodeState:
    """The state of a decode.

    Attributes:
        has_begun: whether a frame has been decoded.
        error: error of an undecodable end of the video. Damage before intact packets is raised instead.
        is_repaired: whether a frame's time differs from its own time stamp.
        unreadable: number of packets that the decoder could not read.
        corrupt: number of packets that the demuxer marks as corrupt, such as after lost transport packets.
    """

    has_begun: bool = False
    error: av.FFmpegError | None = None
    is_repaired: bool = False
    unreadable: int = 0
    corrupt: int = 0


def frames_in_order(
    packets: Iterable[Packet | None], stream: VideoStream, decoding: DecodeState
) -> Iterator[VideoFrame]:
    """Decode packets, which end with None, to frames in presentation order, each with its time."""
    clock: FrameClock[VideoFrame] = FrameClock(nominal_ticks(stream))
    for packet in packets:
        if packet is not None and not packet.is_discard:
            clock.send(packet, stream.codec_context.reorder_depth)
        for frame in _decode(packet, stream, decoding):
            for timed in clock.receive(frame):
                decoding.is_repaired |= clock.is_repaired
                yield timed
    for timed in clock.flush():
        decoding.is_repaired |= clock.is_repaired
        yield timed


def packets_of(
    container: InputContainer, stream: VideoStream, decoding: DecodeState
) -> Iterator[Packet | None]:
    """The packets of a stream, then None; an unreadable end is stored in `error`."""
    try:
        for packet in container.demux(stream):
            heartbeat.progress()
            decoding.corrupt += packet.is_corrupt
            if packet.size:  # empty packets in AVI files repeat the previous frame
                yield packet
    except av.InvalidDataError as error:
        decoding.error = decoding.error or error
    yield None


def _decode(packet: Packet | None, stream: VideoStream, decoding: DecodeState) -> list[VideoFrame]:
    """Decode a packet; an unreadable packet gives no frame and sets `error`.

    Raises:
        av.FFmpegError: the decoder could not read an earlier packet, and this one is intact.
    """
    try:
        frames = stream.codec_context.decode(packet)
    except av.InvalidDataError as error:
        if not decoding.has_begun and packet is not None and not packet.is_keyframe:
            return []  # the recording starts inside a group of pictures
        decoding.error = decoding.error or error
        decoding.unreadable += 1
        if decoding.unreadable > _MAX_UNREADABLE:
            raise
        return []
    if decoding.error is not None and packet is not None:
        raise decoding.error
    decoding.has_begun = decoding.has_begun or bool(frames)
    return frames


def nominal_ticks(stream: VideoStream) -> int:
    """Duration of a frame in ticks, as the container states it."""
    rate = stream.average_rate or stream.base_rate
    return max(round(1 / (rate * stream.time_base)), 1) if rate and stream.time_base else 1


def error_text(error: BaseException) -> str:
    """An error as one line: FFmpeg's text, or the type of the exception and its message."""
    text = getattr(error, "strerror", None)
    return " ".join(str(text or f"{type(error).__name__}: {error}").split())
