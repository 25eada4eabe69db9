"""Random access points: packets at which decoding can begin and give every later frame exactly.

A container's key frame flag is not enough: H.264 streams with intra refresh or open groups of pictures flag
recovery points, whose later frames may refer to earlier ones. So the NAL units of H.264 and HEVC are parsed.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from av.packet import Packet
from av.video.stream import VideoStream

_H264_SLICES, _H264_IDR = range(1, 6), 5
_HEVC_SLICES, _HEVC_IRAP = range(32), range(16, 22)  # IRAP: IDR, BLA, CRA; leading pictures are dropped


def is_random_access_point(packet: Packet, stream: VideoStream) -> bool:
    """Check whether no frame shown after this packet's frame refers to a frame before it."""
    if not packet.is_keyframe:
        return False
    codec = stream.codec_context.name
    if codec == "h264":
        return _first_slice(packet, stream)[0] == _H264_IDR
    if codec == "hevc":
        return _first_slice(packet, stream)[0] in _HEVC_IRAP
    return True


def has_b_slices(packet: Packet, stream: VideoStream) -> bool:
    """Check whether an H.264 packet holds a picture that may be shown before a picture decoded earlier."""
    kind, begin = _first_slice(packet, stream)
    if kind in (-1, _H264_IDR) or not begin:
        return False
    # Two numbers in Exp-Golomb code: the first macroblock, 0 as the bit 1, and the type: 010 or 00111 for B.
    return not begin[0] & 128 or begin[0] >> 4 & 7 == 0b010 or begin[0] >> 2 & 31 == 0b00111


def correct_stamps(packets: Iterable[Packet], reorder_depth: int) -> set[tuple[int | None, int | None, int]]:
    """Stamps and sizes of all packets, if the time of each frame is its own time stamp.

    Empty if stamps are missing, equal or decreasing, or may be in decoding order.
    """
    seen: dict[int, None] = {}
    found: set[tuple[int | None, int | None, int]] = set()
    latest: int | None = None
    for packet in packets:
        if not packet.size:
            continue
        pts, dts = packet.pts, packet.dts
        if pts is None or pts in seen or (dts is not None and latest is not None and dts <= latest):
            return set()
        seen[pts] = None
        latest = latest if dts is None else dts
        found.add((pts, dts, packet.size))
    return set() if reorder_depth and is_increasing(seen) and len(seen) > 1 else found


def is_increasing(stamps: Iterable[int]) -> bool:
    """Check whether stamps increase from packet to packet, which means that no packet is reordered."""
    return all(one < other for one, other in pairwise(stamps))


def _first_slice(packet: Packet, stream: VideoStream) -> tuple[int, bytes]:
    """Type of the first NAL unit that is part of a picture (-1 for none), and the first byte of its data."""
    is_h264 = stream.codec_context.name == "h264"
    header = 1 if is_h264 else 2
    data = memoryview(packet)
    for at in _nal_offsets(data, stream.codec_context.extradata or b"", is_h264=is_h264):
        if at >= len(data):
            break
        kind = data[at] & 31 if is_h264 else data[at] >> 1 & 63
        if kind in (_H264_SLICES if is_h264 else _HEVC_SLICES):
            return kind, bytes(data[at + header : at + header + 1])
    return -1, b""


def _nal_offsets(data: memoryview, extradata: bytes, *, is_h264: bool) -> Iterator[int]:
    """Offsets of the NAL units of a packet, found by length prefixes (mp4) or by start codes."""
    if extradata[:1] != b"\x01":
        content, at = bytes(data), 0
        while (at := content.find(b"\x00\x00\x01", at)) >= 0:
            at += 3
            yield at
        return
    at, size = 0, (extradata[slice(4, 5) if is_h264 else slice(21, 22)] or b"\x03")[0] & 3
    while at + size + 1 < len(data):
        yield at + size + 1
        at += size + 1 + int.from_bytes(data[at : at + size + 1], "big")
