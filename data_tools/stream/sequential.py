"""Decode a stream sequentially: each frame once, in presentation order, with its time, up to damage."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from kinemae.data_tools import heartbeat
from kinemae.data_tools.stream.timestamps import FrameClock

_MOST_UNREADABLE = 2  # packets at the end of a file that was cut


@dataclass(kw_only=True)
class DecodeState:
    """The state of a decode.

    Attributes:
        began: whether a frame has been given.
        error: the fault of an undecodable end of the video. Damage before intact packets is raised instead.
        is_repaired: whether a frame has another time than its own time stamp.
        unreadable: how many packets the decoder could not read.
        corrupt: how many packets the demuxer marks as corrupt, as where transport packets were lost.
    """

    began: bool = False
    error: av.FFmpegError | None = None
    is_repaired: bool = False
    unreadable: int = 0
    corrupt: int = 0


def frames_in_order(
    packets: Iterable[Packet | None], stream: VideoStream, decoding: DecodeState
) -> Iterator[VideoFrame]:
    """All frames in presentation order, each with its time; the packets end with None."""
    clock: FrameClock[VideoFrame] = FrameClock(nominal_ticks(stream))
    for packet in packets:
        if packet is not None and not packet.is_discard:
            clock.sent(packet, stream.codec_context.reorder_depth)
        for frame in _frames_of(packet, stream, decoding):
            for timed in clock.timed(frame):
                decoding.is_repaired |= clock.is_repaired
                yield timed
    for timed in clock.rest():
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


def _frames_of(packet: Packet | None, stream: VideoStream, decoding: DecodeState) -> list[VideoFrame]:
    """The frames that the decoder gives for a packet; for an unreadable packet none, and `error` is set.

    Raises:
        av.FFmpegError: the decoder could not read an earlier packet, and this one is whole.
    """
    try:
        frames = stream.codec_context.decode(packet)
    except av.InvalidDataError as error:
        if not decoding.began and packet is not None and not packet.is_keyframe:
            return []  # recorded from the middle of a group of pictures
        decoding.error = decoding.error or error
        decoding.unreadable += 1
        if decoding.unreadable > _MOST_UNREADABLE:
            raise
        return []
    if decoding.error is not None and packet is not None:
        raise decoding.error
    decoding.began = decoding.began or bool(frames)
    return frames


def nominal_ticks(stream: VideoStream) -> int:
    """Duration of a frame in ticks, as the container states it."""
    rate = stream.average_rate or stream.base_rate
    return max(round(1 / (rate * stream.time_base)), 1) if rate and stream.time_base else 1


def error_text(error: BaseException) -> str:
    """An error in one line: FFmpeg's own words, or the kind of the exception with its message."""
    words = getattr(error, "strerror", None)
    return " ".join(str(words or f"{type(error).__name__}: {error}").split())
