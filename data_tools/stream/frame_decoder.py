"""The frames on screen at given instants, decoded one at a time and exactly as a full decode gives them.

Most videos are H.264 in an mp4 file, whose packets tell the whole plan before anything is decoded: which
frame is on screen at an instant, and where a key frame leads to it. Then

- decoding begins at the key frame before, and ends with the last packet that is wanted;
- closed groups of pictures in which nothing is wanted are passed over;
- a packet that is not wanted is given to the decoder with the leave to skip it if no other frame refers to
  it. In the stride-aligned layout those are all frames between the wanted ones, in other files the plain B
  frames. What is decoded, is decoded as ever.

Whatever does not fit that, and every other codec, is decoded in order from the key frame before the first
instant, or from the beginning where the container leads elsewhere.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from kinemae.data_tools.stream.container import (
    SLACK_S,
    BadVideo,
    OpenedVideo,
    frames_after_seek,
    key_frame_may_precede,
    open_container,
    open_video,
    should_seek,
)
from kinemae.data_tools.stream.random_access import has_b_slices, in_order, is_random_access_point

_SEEK_GAP_S = 1.0  # between wanted frames; over a shorter one it is cheaper to read on
_MP4 = b"ftyp"  # what such files begin with, after a length
_BASELINE = b"\x42"  # the profile of H.264 without B frames

# A frame, the positions (of the ascending instants) at which it is on screen, and its stream.
_Picked = Iterator[tuple[VideoFrame, Sequence[int], VideoStream]]


class _OtherWay(Exception):
    """The frames cannot be had in this way for certain."""


def frames_at(
    video: bytes, timestamps_s: Sequence[float], *, last_frame_s: float | None = None
) -> Iterator[tuple[VideoFrame, list[int], VideoStream]]:
    """Each frame that is on screen at one of the instants, with the places of those instants in the list.

    Every position is yielded, sometimes more than once: then its last frame counts. The third value is the
    frame's stream.

    Args:
        timestamps_s: seconds from the first frame shown, in any order, repeats allowed.
        last_frame_s: when the last frame comes on screen according to the index.

    Raises:
        BadVideo: it cannot be read, a frame asked for is damaged, or it ends before `last_frame_s`.
    """
    order = sorted(range(len(timestamps_s)), key=timestamps_s.__getitem__)
    wanted_s = [timestamps_s[place] for place in order]
    for way in (_planned, _after_seek, _from_start):
        try:
            for frame, positions, stream in way(video, wanted_s, last_frame_s):
                if frame.is_corrupt:
                    raise _OtherWay
                yield frame, [order[position] for position in positions], stream
            return
        except _OtherWay:
            continue
        except BadVideo:
            if way is _from_start:
                raise
    raise BadVideo("a frame of it is damaged")


def _planned(video: bytes, wanted_s: list[float], last_frame_s: float | None) -> _Picked:
    """By the packets, where they can be trusted."""
    if video[4:8] != _MP4:
        raise _OtherWay
    with open_container(video, by_index=True) as (container, stream):
        packets = container.demux(stream)
        head = next(packets)
        is_single = len(container.streams.video) == 1  # which of several is best, FFmpeg tells by looking
        if not (is_single and _is_h264(stream) and _opens_the_video(head, stream)):
            raise _OtherWay
        origin, tick_s = head.pts or 0, float(stream.time_base or 1)
        targets = [origin + int((timestamp_s + SLACK_S) / tick_s) for timestamp_s in wanted_s]
        for begin, end in _runs(wanted_s):
            if begin or key_frame_may_precede(stream, targets[begin], wanted_s[begin]):
                found, following = _packets_after_seek(container, stream, targets[begin], targets[end - 1])
            else:
                found, following = _packets_until(chain([head], packets), targets[end - 1])
            places, last = _on_screen(found, targets, range(begin, end))
            if _may_be_in_decoding_order(found, following, stream, places):
                raise _OtherWay
            if following is None:
                _check_end((last - origin) * tick_s, wanted_s[end - 1], last_frame_s)
            yield from _decoded(stream, found, places)


def _after_seek(video: bytes, wanted_s: list[float], last_frame_s: float | None) -> _Picked:
    with open_video(video) as opened:
        yield from _in_order(opened, wanted_s, last_frame_s, seek=True)


def _from_start(video: bytes, wanted_s: list[float], last_frame_s: float | None) -> _Picked:
    with open_video(video) as opened:
        yield from _in_order(opened, wanted_s, last_frame_s, seek=False)


def _in_order(
    opened: OpenedVideo, wanted_s: list[float], last_frame_s: float | None, *, seek: bool
) -> _Picked:
    """Every frame is decoded; one is on screen until the next one is."""
    frames: Iterator[VideoFrame] | None = chain([opened.first], opened.rest)
    if seek and should_seek(opened, wanted_s[0]):
        frames = frames_after_seek(opened, wanted_s[0])
    if frames is None:
        raise _OtherWay
    shown, given = next(frames), 0
    for frame in frames:
        if seek and opened.decoding.is_repaired:
            raise _OtherWay
        begin, until_s = given, opened.start_s(frame) - SLACK_S
        while given < len(wanted_s) and wanted_s[given] < until_s:
            given += 1
        if given > begin:
            yield shown, range(begin, given), opened.stream
        if given == len(wanted_s):
            return
        shown = frame
    if seek and opened.decoding.is_repaired:
        raise _OtherWay
    _check_end(opened.start_s(shown), wanted_s[-1], last_frame_s)
    yield shown, range(given, len(wanted_s)), opened.stream


def _is_h264(stream: VideoStream) -> bool:
    """Whether units can be told apart by the lengths before them, as they stand in mp4 files."""
    codec = stream.codec_context
    return codec.name == "h264" and (codec.extradata or b"")[:1] == b"\x01"


def _opens_the_video(head: Packet, stream: VideoStream) -> bool:
    """Whether the first packet is certainly the first frame shown."""
    is_first = head.pts is not None and head.pts == stream.start_time
    return is_first and head.is_keyframe and not head.is_discard and is_random_access_point(head, stream)


def _runs(wanted_s: list[float]) -> Iterator[tuple[int, int]]:
    """(begin, end) of the stretches of instants without a gap worth a seek."""
    begin = 0
    for end in range(1, len(wanted_s) + 1):
        if end == len(wanted_s) or wanted_s[end] - wanted_s[end - 1] > _SEEK_GAP_S:
            yield begin, end
            begin = end


def _packets_after_seek(
    container: InputContainer, stream: VideoStream, target: int, until: int
) -> tuple[list[Packet], Packet | None]:
    """Packets from a random access point at or before the target on, and the packet that follows them."""
    found, following = _packets_after(container, stream, target, until)
    if found and not is_random_access_point(found[0], stream):
        # The container flags recovery points as well: from the beginning, `_needed` finds the last IDR.
        found, following = _packets_after(container, stream, stream.start_time or 0, until)
        if not (found and is_random_access_point(found[0], stream)):
            raise _OtherWay
    return found, following


def _packets_after(
    container: InputContainer, stream: VideoStream, target: int, until: int
) -> tuple[list[Packet], Packet | None]:
    try:
        container.seek(target, stream=stream)
        return _packets_until(container.demux(stream), until)
    except av.FFmpegError as error:
        raise _OtherWay from error


def _packets_until(packets: Iterable[Packet], until: int) -> tuple[list[Packet], Packet | None]:
    """All packets of frames that come on screen up to then, by decoding time; and the one after them."""
    found: list[Packet] = []
    for packet in packets:
        decoded, shown = packet.dts, packet.pts
        if decoded is None and packet.size == 0:  # how PyAV says that there are no more
            break
        if decoded is None or shown is None or shown < decoded:
            raise _OtherWay
        if decoded > until:
            return found, packet
        found.append(packet)
    return found, None


def _on_screen(found: list[Packet], targets: list[int], run: range) -> tuple[dict[int, list[int]], int]:
    """The positions at which each packet is on screen, by its time stamp; and the last time stamp of all."""
    stamps = sorted(packet.pts or 0 for packet in found if not packet.is_discard)
    if not stamps or len(set(stamps)) < len(stamps) or stamps[0] > targets[run[0]]:
        raise _OtherWay
    places: dict[int, list[int]] = {}
    for position in run:
        places.setdefault(stamps[bisect_right(stamps, targets[position]) - 1], []).append(position)
    return places, stamps[-1]


def _may_be_in_decoding_order(
    found: list[Packet], following: Packet | None, stream: VideoStream, places: dict[int, list[int]]
) -> bool:
    """Whether time stamps are in decoding order although the stream has B frames.

    Then B frames, and frames that B frames follow in decoding order, have wrong stamps.
    """
    if not in_order(packet.pts or 0 for packet in found):
        return False
    if (stream.codec_context.extradata or b"")[1:2] == _BASELINE:
        return False
    return any(
        has_b_slices(packet, stream) or (later is not None and has_b_slices(later, stream))
        for packet, later in pairwise([*found, following])
        if packet is not None and packet.pts in places
    )


def _decoded(stream: VideoStream, found: list[Packet], places: dict[int, list[int]]) -> _Picked:
    """Decode the packets and give those that are wanted."""
    codec, missing, was_wanted = stream.codec_context, set(places), None
    latest: int | None = None
    for packet in chain(_needed(found, stream, places), [None]):
        is_wanted = packet is None or packet.pts in places
        if is_wanted != was_wanted:
            codec.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            was_wanted = is_wanted
        for frame in codec.decode(packet):
            if frame.pts is None or (latest is not None and frame.pts <= latest):
                raise _OtherWay  # the stamps do not give the order on screen
            latest = frame.pts
            if frame.pts in missing:
                missing.remove(frame.pts)
                yield frame, places[frame.pts], stream
    if missing:  # FFmpeg keeps back what refers to frames that it has not seen, as in an open group
        raise _OtherWay


def _needed(found: list[Packet], stream: VideoStream, places: dict[int, list[int]]) -> Iterator[Packet]:
    """Closed group by closed group, everything up to the last packet that is wanted of it."""
    waiting: list[Packet] = []
    for packet in found:
        if packet.is_keyframe and is_random_access_point(packet, stream):
            waiting = []
        waiting.append(packet)
        if packet.pts in places:
            yield from waiting
            waiting = []


def _check_end(last_s: float, wanted_s: float, last_frame_s: float | None) -> None:
    promised_s = last_frame_s if last_frame_s is not None else 0.0
    if last_s < min(promised_s, wanted_s) - 1e-3:
        raise BadVideo(
            f"its last frame comes at {last_s:.3f} s, the index promises one at {promised_s:.3f} s"
        )
