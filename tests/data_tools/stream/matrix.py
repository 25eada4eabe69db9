"""Generated videos of unusual containers and codecs; each frame shows its number."""

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from tests.filming import encoded, turned

FRAMES = 60
HEIGHT, WIDTH = 64, 96
_BLOCKS = 8  # white for 1, from the lowest bit on
Video = Callable[[], bytes]

X264 = {
    "plain": {"g": "12", "bf": "0"},
    "b_frames": {"g": "12", "bf": "2"},
    "pyramid": {"g": "24", "x264-params": "bframes=5:b-pyramid=normal:b-adapt=0"},
    "open_groups": {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"},
    "intra_refresh": {"x264-params": "intra-refresh=1:keyint=12:bframes=0"},
    "one_group": {"g": "250", "bf": "3"},
    "interlaced": {"g": "12", "bf": "2", "flags": "+ildct+ilme", "x264-params": "interlaced=1"},
}
_X265 = "keyint=12:log-level=none:pools=none:frame-threads=1"
OTHERS = {
    "hevc_closed": ("libx265", {"x265-params": f"{_X265}:open-gop=0"}),
    "hevc_cra": ("libx265", {"x265-params": f"{_X265}:open-gop=1"}),
    "mpeg4": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg4_plain": ("mpeg4", {"g": "12"}),
    "mpeg2": ("mpeg2video", {"g": "12", "bf": "2"}),
    "mpeg1": ("mpeg1video", {"g": "12", "bf": "2"}),
    "mjpeg": ("mjpeg", {}),
    "ffv1": ("ffv1", {}),
    "vp8": ("libvpx", {"g": "12", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "vp9": ("libvpx-vp9", {"g": "12", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "av1": ("libsvtav1", {"g": "12", "preset": "12", "svtav1-params": "lp=1"}),
    "flv1": ("flv", {"g": "12"}),
    "wmv2": ("wmv2", {"g": "12"}),
}
# The codecs that each container holds.
CONTAINERS = {
    "mp4": "hevc_closed hevc_cra mpeg4 mpeg2 vp9 av1 mjpeg",
    "mov": "hevc_cra mpeg4 mjpeg",
    "matroska": "hevc_cra mpeg4 mpeg2 mjpeg ffv1 vp8 vp9 av1",
    "webm": "vp8 vp9 av1",
    "avi": "mpeg4 mpeg4_plain mjpeg ffv1 flv1 wmv2",
    "flv": "flv1",
    "mpegts": "hevc_closed hevc_cra mpeg4 mpeg2 mpeg1",
    "mpeg": "mpeg1 mpeg2",
    "ogg": "vp8",
    "asf": "wmv2 mpeg4",
}
OF_H264 = ("mp4", "mov", "matroska", "avi", "flv", "mpegts")


def numbered(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Images with moving noise whose upper third shows their number in blocks."""
    noise = np.random.default_rng(0).integers(60, 190, (height, width + frames, 3), dtype=np.uint8)
    pictures = []
    for number in range(frames):
        picture = np.ascontiguousarray(noise[:, number : number + width])
        for bit in range(_BLOCKS):
            block = slice(bit * width // _BLOCKS, (bit + 1) * width // _BLOCKS)
            picture[: height // 3, block] = 235 if number >> bit & 1 else 20
        pictures.append(picture)
    return pictures


def number_of(luma_HW: np.ndarray) -> int:
    """The number that a frame shows."""
    height, width = luma_HW.shape
    rows = luma_HW[height // 12 : height // 4]
    side = width / _BLOCKS
    blocks = [rows[:, int((bit + 0.25) * side) : int((bit + 0.75) * side)] for bit in range(_BLOCKS)]
    return sum(int(block.mean() > 127) << bit for bit, block in enumerate(blocks))


def remuxed(
    video: bytes,
    container: str,
    change: Callable[[int, av.Packet], None] | None = None,
    **options: str,
) -> bytes:
    """The same packets in another container, their stamps changed; `change` gets their numbers."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as given, av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(packet for packet in given.demux(video=0) if packet.size):
            packet.stream = stream
            if change is not None:
                change(number, packet)
            output.mux(packet)
    return file.getvalue()


def _h264(kind: str, container: str = "mp4", **more: str) -> bytes:
    return encoded(numbered(), container=container, **{**X264[kind], **more})


def _other(kind: str, container: str) -> bytes:
    codec, options = OTHERS[kind]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return encoded(numbered(), container=container, codec=codec, pix_fmt=pix_fmt, **options)


def _gif() -> bytes:
    return encoded(numbered(20), container="gif", codec="gif", pix_fmt="rgb8")


def _without_reordering(container: str) -> bytes:
    """B frames whose presentation stamps are their decoding stamps."""

    def change(number: int, packet: av.Packet) -> None:
        assert packet.dts is not None
        packet.pts = packet.dts = packet.dts + 2 * packet.duration

    return remuxed(_h264("b_frames"), container, change)


def _equal_stamps(container: str) -> bytes:
    """Every seventh frame has the presentation stamp of the one before."""

    def change(number: int, packet: av.Packet) -> None:
        assert packet.dts is not None
        packet.pts = packet.dts + (0 if number % 7 == 6 else packet.duration)

    return remuxed(_h264("plain"), container, change)


def _equal_stamps_of_both_kinds() -> bytes:
    """Every seventh frame has both stamps of the one before."""

    def change(number: int, packet: av.Packet) -> None:
        if number % 7 == 6 and packet.dts is not None:
            packet.pts = packet.dts = packet.dts - packet.duration

    return remuxed(_h264("plain"), "flv", change)


def _moved(container: str, seconds: float) -> bytes:
    """All stamps later or earlier."""

    def change(number: int, packet: av.Packet) -> None:
        ticks = round(seconds / packet.time_base)
        packet.pts, packet.dts = (packet.pts or 0) + ticks, (packet.dts or 0) + ticks

    return remuxed(_h264("b_frames"), container, change, avoid_negative_ts="disabled")


def collapsed_stamps() -> bytes:
    """From the middle on the stamps count packets, as after a muxer that repairs decreasing stamps."""
    given: list[int] = []

    def change(number: int, packet: av.Packet) -> None:
        if number > FRAMES // 2:
            packet.pts = packet.dts = given[-1] + 1
        given.append(packet.dts or 0)

    return remuxed(_h264("pyramid"), "mp4", change)


def _joined() -> bytes:
    """Two captures one after the other: stamps go back."""
    return _h264("plain", "mpegts") + remuxed(encoded(numbered(FRAMES)[30:], g="12", bf="0"), "mpegts")


def _fragments() -> bytes:
    return remuxed(_h264("b_frames"), "mp4", movflags="frag_keyframe+empty_moov")


def _index_first() -> bytes:
    """An mp4 file whose index comes before the frames; FFmpeg moves it only in a file of its own."""
    with (
        TemporaryDirectory() as folder,
        av.open(io.BytesIO(_h264("b_frames"))) as given,
    ):
        file = Path(folder) / "video.mp4"
        with av.open(str(file), "w", format="mp4", options={"movflags": "faststart"}) as output:
            stream = output.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
        return file.read_bytes()


def _varying(container: str) -> bytes:
    ticks = [3 * number + number % 3 + 20 * (number // 25) for number in range(FRAMES)]
    return encoded(numbered(), container=container, ticks=ticks, g="12", bf="2")


def _cut(make: Video, share: float) -> bytes:
    video = make()
    return video[: int(len(video) * share)]


def _resized() -> bytes:
    """The size changes within the video."""
    parts = [
        encoded(numbered(FRAMES, height, width)[begin : begin + 20], container="h264", g="10", bf="0")
        for begin, height, width in ((0, 64, 96), (20, 128, 192), (40, 96, 64))
    ]
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(b"".join(parts)), format="h264") as given,
        av.open(file, "w", format="mpegts") as output,
    ):
        stream = output.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(packet for packet in given.demux(video=0) if packet.size):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            output.mux(packet)
    return file.getvalue()


def videos() -> Iterator[tuple[str, Video]]:
    """Names and makers of all videos."""
    for container in OF_H264:
        for kind in X264:
            yield f"{container}/h264_{kind}", partial(_h264, kind, container)
        if container != "avi":  # which holds no presentation stamps
            yield f"{container}/equal_stamps", partial(_equal_stamps, container)
            yield f"{container}/stamps_in_decoding_order", partial(_without_reordering, container)
    for container, kinds in CONTAINERS.items():
        for kind in kinds.split():
            yield f"{container}/{kind}", partial(_other, kind, container)
    for container in ("mp4", "matroska", "mpegts"):
        yield f"{container}/varying_rate", partial(_varying, container)
    yield "flv/equal_stamps_of_both_kinds", _equal_stamps_of_both_kinds
    yield "gif/gif", _gif
    yield "mp4/fragments", _fragments
    yield "mp4/edit_list", partial(_moved, "mp4", 0.5)
    yield "mp4/negative_stamps", partial(_moved, "mp4", -0.12)
    yield "mpegts/wrapped_stamps", partial(_moved, "mpegts", (1 << 33) / 90000 - 2.5)
    yield "mpegts/joined", _joined
    yield "mpegts/resized", _resized
    yield "mp4/rotated", lambda: turned(_h264("b_frames"), 90, mirrored=False)
    yield "mp4/anamorphic", partial(_h264, "b_frames", aspect="16:9")
    for share in (0.45, 0.7, 0.93):
        yield f"mp4/index_first_cut_at_{share}", partial(_cut, _index_first, share)
        yield f"mpegts/cut_at_{share}", partial(_cut, partial(_h264, "b_frames", "mpegts"), share)
        yield f"matroska/cut_at_{share}", partial(_cut, partial(_h264, "plain", "matroska"), share)
        yield f"mp4/fragments_cut_at_{share}", partial(_cut, _fragments, share)
