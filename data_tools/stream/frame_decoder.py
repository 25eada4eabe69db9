"""Exact frame decoding at given timestamps, one frame at a time, equal to a full sequential decode.

Most videos are H.264 in an mp4 file. Their packets give a plan before any decoding: which frame is on screen
at a timestamp, and from which key frame it can be decoded. Then

- decoding begins at the key frame before, and ends with the last needed packet;
- closed groups of pictures without a requested frame are skipped;
- a packet that is not requested is sent to the decoder with permission to skip it if no other frame refers to
  it (`skip_frame=NONREF`). In the layout h264 these are all frames between the requested ones, in
  other files the plain B frames.

Other videos, and other codecs, are decoded in order from the key frame before the first timestamp, or from
the beginning if the container gives no reliable key frame.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from kinemae.data_tools.files import open_regular
from kinemae.data_tools.stream.container import (
    SLACK_S,
    BadVideo,
    ffmpeg_errors,
    frames_after_seek,
    key_frame_may_precede,
    open_container,
    open_video,
    should_seek,
)
from kinemae.data_tools.stream.random_access import has_b_slices, is_increasing, is_random_access_point

_SEEK_GAP_S = 1.0  # between requested frames; over a shorter gap, decoding is cheaper than a seek
_MP4 = b"ftyp"  # at byte 4 of an mp4 file
_BASELINE = b"\x42"  # the profile of H.264 without B frames

# A frame, the positions (in the ascending timestamps) at which it is on screen, and its stream.
_Decoded = Iterator[tuple[VideoFrame, Sequence[int], VideoStream]]


class _NotApplicable(Exception):
    """The method cannot decode the frames reliably; the next one is tried."""


def frames_at(
    video: bytes | Path, timestamps_s: Sequence[float], *, last_frame_s: float | None = None
) -> Iterator[tuple[VideoFrame, list[int], VideoStream]]:
    """Decode each frame that is on screen at a timestamp, with the positions of those timestamps.

    Every position is yielded, some more than once: then its last frame counts. The third value is the frame's
    stream.

    Args:
        video: its bytes or its file.
        timestamps_s: seconds from the first frame on screen, in any order, repeats allowed.
        last_frame_s: time of the last frame according to the index.

    Raises:
        BadVideo: the video cannot be read, a requested frame is damaged, or it ends before `last_frame_s`.
    """
    order = sorted(range(len(timestamps_s)), key=timestamps_s.__getitem__)
    ascending_s = [timestamps_s[place] for place in order]
    for method in (_by_packets, _after_seek, _from_start):
        try:
            for frame, positions, stream in method(video, ascending_s, last_frame_s):
                if frame.is_corrupt:
                    raise _NotApplicable
                yield frame, [order[position] for position in positions], stream
            return
        except _NotApplicable:
            continue
        except BadVideo:
            if method is _from_start:
                raise
    raise BadVideo("a frame of it is damaged")


def frames_in_sequence(
    video: bytes | Path, ascending_s: Sequence[float], *, last_frame_s: float | None = None
) -> Iterator[tuple[VideoFrame, Sequence[int], VideoStream]]:
    """Decode a video once from its beginning; see `frames_at`. Each position is yielded once, in order.

    Args:
        ascending_s: timestamps in ascending order.
    """
    for frame, positions, stream in _from_start(video, list(ascending_s), last_frame_s):
        if frame.is_corrupt:
            raise BadVideo("a frame of it is damaged")
        yield frame, positions, stream


def _by_packets(video: bytes | Path, times_s: list[float], last_frame_s: float | None) -> _Decoded:
    """Decode by a plan made from the packets of an mp4 file."""
    if _head(video)[4:] != _MP4:
        raise _NotApplicable
    with open_container(video, by_index=True) as (container, stream):
        packets = container.demux(stream)
        head = next(packets)
        is_single = len(container.streams.video) == 1  # the best of several streams is found by decoding
        if not (is_single and _is_h264(stream) and _is_first_frame(head, stream)):
            raise _NotApplicable
        origin, tick_s = head.pts or 0, float(stream.time_base or 1)
        targets = [origin + int((time_s + SLACK_S) / tick_s) for time_s in times_s]
        for begin, end in _runs(times_s):
            if begin or key_frame_may_precede(stream, targets[begin], times_s[begin]):
                found, following = _packets_after_seek(container, stream, targets[begin], targets[end - 1])
            else:
                found, following = _packets_until(chain([head], packets), targets[end - 1])
            places, last = _on_screen(found, targets, range(begin, end))
            if _may_be_in_decoding_order(found, following, stream, places):
                raise _NotApplicable
            if following is None:
                _check_end((last - origin) * tick_s, times_s[end - 1], last_frame_s)
            yield from _decode_packets(stream, found, places)


def _after_seek(video: bytes | Path, times_s: list[float], last_frame_s: float | None) -> _Decoded:
    return _in_order(video, times_s, last_frame_s, seek=True)


def _from_start(video: bytes | Path, times_s: list[float], last_frame_s: float | None) -> _Decoded:
    return _in_order(video, times_s, last_frame_s, seek=False)


def _in_order(
    video: bytes | Path, times_s: list[float], last_frame_s: float | None, *, seek: bool
) -> _Decoded:
    """Decode every frame in order; a frame is on screen until the next one."""
    with open_video(video) as opened:
        frames: Iterator[VideoFrame] | None = chain([opened.first], opened.rest)
        if seek and should_seek(opened, times_s[0]):
            frames = frames_after_seek(opened, times_s[0])
        if frames is None:
            raise _NotApplicable
        shown, done = next(frames), 0
        for frame in frames:
            if seek and opened.decoding.is_repaired:
                raise _NotApplicable
            begin, until_s = done, opened.start_s(frame) - SLACK_S
            while done < len(times_s) and times_s[done] < until_s:
                done += 1
            if done > begin:
                yield shown, range(begin, done), opened.stream
            if done == len(times_s):
                return
            shown = frame
        if seek and opened.decoding.is_repaired:
            raise _NotApplicable
        _check_end(opened.start_s(shown), times_s[-1], last_frame_s)
        yield shown, range(done, len(times_s)), opened.stream


def _head(video: bytes | Path) -> bytes:
    if isinstance(video, bytes):
        return video[:8]
    with ffmpeg_errors(), open_regular(video) as file:
        return file.read(8)


def _is_h264(stream: VideoStream) -> bool:
    """Check whether the stream is H.264 with length prefixes, as in mp4 files."""
    codec = stream.codec_context
    return codec.name == "h264" and (codec.extradata or b"")[:1] == b"\x01"


def _is_first_frame(head: Packet, stream: VideoStream) -> bool:
    """Check whether the first packet is certainly the first frame on screen."""
    is_first = head.pts is not None and head.pts == stream.start_time
    return is_first and head.is_keyframe and not head.is_discard and is_random_access_point(head, stream)


def _runs(times_s: list[float]) -> Iterator[tuple[int, int]]:
    """(begin, end) of the runs of timestamps without a gap that justifies a seek."""
    begin = 0
    for end in range(1, len(times_s) + 1):
        if end == len(times_s) or times_s[end] - times_s[end - 1] > _SEEK_GAP_S:
            yield begin, end
            begin = end


def _packets_after_seek(
    container: InputContainer, stream: VideoStream, target: int, until: int
) -> tuple[list[Packet], Packet | None]:
    """Packets from a random access point at or before the target, and the packet that follows them."""
    for start in (target, stream.start_time or 0):
        try:
            container.seek(start, stream=stream)
            found, following = _packets_until(container.demux(stream), until)
        except av.FFmpegError as error:
            raise _NotApplicable from error
        # A container may flag recovery points. From the beginning, `_needed` finds the last IDR.
        if not found or is_random_access_point(found[0], stream):
            break
    if found and not is_random_access_point(found[0], stream):
        raise _NotApplicable
    return found, following


def _packets_until(packets: Iterable[Packet], until: int) -> tuple[list[Packet], Packet | None]:
    """All packets of frames that come on screen until then, by decoding time; and the packet after them."""
    found: list[Packet] = []
    for packet in packets:
        dts, pts = packet.dts, packet.pts
        if dts is None and packet.size == 0:  # PyAV's end of the stream
            break
        if dts is None or pts is None or pts < dts:
            raise _NotApplicable
        if dts > until:
            return found, packet
        found.append(packet)
    return found, None


def _on_screen(found: list[Packet], targets: list[int], run: range) -> tuple[dict[int, list[int]], int]:
    """The positions at which each packet is on screen, by its time stamp; and the last time stamp of all."""
    stamps = sorted(packet.pts or 0 for packet in found if not packet.is_discard)
    if not stamps or len(set(stamps)) < len(stamps) or stamps[0] > targets[run[0]]:
        raise _NotApplicable
    places: dict[int, list[int]] = {}
    for position in run:
        places.setdefault(stamps[bisect_right(stamps, targets[position]) - 1], []).append(position)
    return places, stamps[-1]


def _may_be_in_decoding_order(
    found: list[Packet], following: Packet | None, stream: VideoStream, places: dict[int, list[int]]
) -> bool:
    """Check whether time stamps are in decoding order although the stream has B frames.

    Then B frames, and frames that B frames follow in decoding order, have wrong stamps.
    """
    if not is_increasing(packet.pts or 0 for packet in found):
        return False
    if (stream.codec_context.extradata or b"")[1:2] == _BASELINE:
        return False
    return any(
        has_b_slices(packet, stream) or (later is not None and has_b_slices(later, stream))
        for packet, later in pairwise([*found, following])
        if packet is not None and packet.pts in places
    )


def _decode_packets(stream: VideoStream, found: list[Packet], places: dict[int, list[int]]) -> _Decoded:
    """Decode the packets and yield the requested frames."""
    codec, missing, was_requested = stream.codec_context, set(places), None
    latest: int | None = None
    for packet in chain(_needed(found, stream, places), [None]):
        is_requested = packet is None or packet.pts in places
        if is_requested != was_requested:
            codec.skip_frame = "DEFAULT" if is_requested else "NONREF"
            was_requested = is_requested
        for frame in codec.decode(packet):
            if frame.pts is None or (latest is not None and frame.pts <= latest):
                raise _NotApplicable  # the stamps do not give the order on screen
            latest = frame.pts
            if frame.pts in missing:
                missing.remove(frame.pts)
                yield frame, places[frame.pts], stream
    if missing:  # FFmpeg drops frames whose references it has not decoded, as in an open group
        raise _NotApplicable


def _needed(found: list[Packet], stream: VideoStream, places: dict[int, list[int]]) -> Iterator[Packet]:
    """Of each closed group of pictures, all packets up to the last requested one."""
    waiting: list[Packet] = []
    for packet in found:
        if packet.is_keyframe and is_random_access_point(packet, stream):
            waiting = []
        waiting.append(packet)
        if packet.pts in places:
            yield from waiting
            waiting = []


def _check_end(last_s: float, requested_s: float, last_frame_s: float | None) -> None:
    expected_s = last_frame_s if last_frame_s is not None else 0.0
    if last_s < min(expected_s, requested_s) - 1e-3:
        raise BadVideo(f"its last frame is at {last_s:.3f} s, the index has one at {expected_s:.3f} s")
