"""Stored frames look as in a player: without combing, with square pixels, in the original aspect ratio."""

import io
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from kinemae.data_tools.encoding.deinterlace import deinterlaced
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout
from kinemae.data_tools.layouts.h264 import H264
from kinemae.data_tools.layouts.jpegs import Jpegs
from kinemae.data_tools.manifest.videos import SourceVideo
from tests.filming import turned
from tests.sharding import encoded, number_of, numbered, numbers_in

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
NOTE = "interlaced frames were deinterlaced"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases at {CASES}")


def encode(video: bytes | Path, folder: Path, layout: Layout) -> tuple[EncodedSample, list[str]]:
    path = video if isinstance(video, Path) else folder / "original"
    if isinstance(video, bytes):
        path.write_bytes(video)
    job = Job(video=SourceVideo(path=path, name=path.name), key="key", folder=folder)
    [only] = layout.encode(job)
    return only, job.notes


def with_fields(frames: int, height: int = 64, width: int = 96) -> Iterator[np.ndarray]:
    """Numbered pictures with a bar that moves 4 pixels from field to field."""
    for picture, number in zip(numbered(range(frames)), range(frames), strict=True):
        for field in range(2):
            left = (8 * number + 4 * field) % (width - 16)
            picture[24 + field : 60 : 2, left : left + 16] = 230
        yield picture


def h264(pictures: Iterator[np.ndarray] | list[np.ndarray], params: str, flags: int = 0) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "8", "x264-params": params})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.flags |= flags
        for number, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


INTERLACED = 1 << 18 | 1 << 29  # AV_CODEC_FLAG_INTERLACED_DCT and _ME


def frames_of(video: bytes | Path) -> list[VideoFrame]:
    with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video)) as container:
        return list(container.decode(video=0))


def combing(file: Path) -> float:
    """Mean distance of each row of the lower part from the mean of its neighbours."""
    rows = np.stack([frame.to_ndarray(format="gray") for frame in frames_of(file)]).astype(float)[:, 26:58]
    return float(np.abs(rows[:, 1:-1] - (rows[:, :-2] + rows[:, 2:]) / 2).mean())


def test_interlaced_video_is_deinterlaced_frame_by_frame(tmp_path: Path):
    video = h264(with_fields(20), "tff=1", INTERLACED)
    assert all(frame.interlaced_frame for frame in frames_of(video))
    (tmp_path / "in.mp4").write_bytes(video)
    for layout in (H264(every=1, crf=8), Jpegs(quality=2)):
        stored, notes = encode(video, tmp_path, layout)
        assert notes == [NOTE]
        assert stored.file is not None and numbers_in(stored.file) == list(range(20))
        assert stored.info.duration_s == 20 / 25
        assert combing(stored.file) < combing(tmp_path / "in.mp4") / 3


@needs_cases
@pytest.mark.parametrize("name", ["tff.mp4", "mpeg2.mpg"])
def test_interlaced_files_keep_their_frames(name: str, tmp_path: Path):
    stored, notes = encode(CASES / "interlaced" / name, tmp_path, H264(every=1, crf=8))
    assert notes == [NOTE]
    assert stored.file is not None
    assert numbers_in(stored.file) == numbers_in(CASES / "interlaced" / name) == list(range(60))


def test_a_segment_of_an_interlaced_video_has_its_frames(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(h264(with_fields(20), "tff=1", INTERLACED))
    video = SourceVideo(path=tmp_path / "a.mp4", name="a", start_s=0.2, end_s=0.4)
    [stored] = H264(every=1, crf=8).encode(Job(video=video, key="key", folder=tmp_path))
    assert stored.file is not None and numbers_in(stored.file) == [5, 6, 7, 8, 9]


def test_progressive_frames_among_interlaced_ones_pass_unchanged():
    interlaced = frames_of(h264(with_fields(4), "tff=1", INTERLACED))
    plain = frames_of(h264(numbered(range(4, 8)), "bframes=0"))
    small = frames_of(h264(numbered(range(8, 11)), "bframes=0"))
    small = [frame.reformat(width=64, height=48) for frame in small]
    given = list(enumerate(chain(plain[:2], interlaced, plain[2:], small, interlaced[:1])))
    notes: list[str] = []
    found = list(deinterlaced(((float(at), frame) for at, frame in given), notes))
    assert notes == [NOTE]
    assert [at for at, _ in found] == [float(at) for at, _ in given]
    for (_, made), (_, frame) in zip(found, given, strict=True):
        same = np.array_equal(made.to_ndarray(), frame.to_ndarray())
        assert same != frame.interlaced_frame
        assert (made.color_range, made.colorspace) == (frame.color_range, frame.colorspace)


@needs_cases
@pytest.mark.parametrize("layout", [H264(every=1, crf=8), Jpegs()])
def test_pixels_become_square(layout: Layout, tmp_path: Path):
    stored, notes = encode(CASES / "anamorphic" / "pal16x9.mp4", tmp_path, layout)
    assert (stored.info.width, stored.info.height) == (136, 64)  # 96 * 64 / 45
    assert notes == ["pixels of 64/45 were made square"]


@pytest.mark.parametrize(
    "aspect, short_side, size",
    [
        ("64/45", 256, (136, 64)),
        ("64/45", 32, (68, 32)),
        ("8/9", 256, (84, 64)),
        ("1/2", 32, (32, 42)),
        ("224/225", 256, (96, 64)),
        ("1/1", 256, (96, 64)),
        ("1/20", 256, (96, 64)),
    ],
)
def test_the_short_side_is_that_of_square_pixels(
    aspect: str, short_side: int, size: tuple[int, int], tmp_path: Path
):
    video = h264(numbered(range(3)), f"sar={aspect}")
    stored, notes = encode(video, tmp_path, H264(every=1, short_side=short_side))
    assert (stored.info.width, stored.info.height) == size
    assert notes == ([f"pixels of {aspect} were made square"] if aspect in ("64/45", "8/9", "1/2") else [])


def test_a_rotated_video_is_stretched_before_the_rotation(tmp_path: Path):
    video = turned(h264(numbered(range(3)), "sar=2"), 90, mirrored=False)
    stored, _ = encode(video, tmp_path, H264(every=1, crf=8))
    assert (stored.info.width, stored.info.height) == (64, 192)


def test_a_plain_video_gets_no_note(tmp_path: Path):
    assert encode(encoded(numbered(range(5))), tmp_path, H264(every=1))[1] == []


def changing(*sizes: tuple[int, int]) -> bytes:
    """A VP8 video of ten frames of each (height, width)."""
    file, at = io.BytesIO(), 0
    with av.open(file, "w", format="webm") as output:
        stream = output.add_stream("libvpx", rate=25)
        stream.height, stream.width, stream.pix_fmt = *sizes[0], "yuv420p"
        for height, width in sizes:
            codec = av.CodecContext.create("libvpx", "w")
            codec.height, codec.width, codec.pix_fmt, codec.time_base = (
                height,
                width,
                "yuv420p",
                Fraction(1, 25),
            )
            codec.bit_rate, codec.options = 2_000_000, {"lag-in-frames": "0", "cpu-used": "4"}
            pictures = numbered(range(at, at + 10), height, width)
            frames = [VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
            for number, frame in enumerate(frames):
                frame.pts, frame.time_base = at + number, Fraction(1, 25)
            for packet in (packet for frame in [*frames, None] for packet in codec.encode(frame)):
                packet.stream = stream
                output.mux(packet)
            at += 10
    return file.getvalue()


@pytest.mark.parametrize("layout", [H264(every=1, crf=8), Jpegs(quality=2)])
def test_a_size_that_changes_keeps_the_aspect_ratio(layout: Layout, tmp_path: Path):
    stored, notes = encode(changing((64, 96), (128, 192), (128, 96)), tmp_path, layout)
    assert (stored.info.width, stored.info.height, stored.info.frames) == (96, 64, 30)
    assert notes == [
        "the size changes within the video, to 192x128",
        "the size changes within the video, to 96x128: fitted in with black bars",
    ]
    assert stored.file is not None
    shown = [frame.to_ndarray(format="gray") for frame in frames_of(stored.file)]
    assert [number_of(luma) for luma in shown[:10]] == list(range(10))
    assert [number_of(luma, 128, 192) for luma in shown[10:20]] == list(range(10, 20))
    assert [number_of(luma[:, 24:72], 128, 96) for luma in shown[20:]] == list(range(20, 30))
    bars = np.stack([luma[:, [*range(22), *range(74, 96)]] for luma in shown[20:]])
    assert bars.max() < 40


@needs_cases
def test_a_rotated_phone_video_keeps_its_aspect(tmp_path: Path):
    stored, notes = encode(CASES / "size_changes" / "turned.webm", tmp_path, H264(every=1, crf=8))
    assert (stored.info.width, stored.info.height, stored.info.frames) == (96, 64, 120)
    assert len(notes) == 2
    assert stored.file is not None
    shown = frames_of(stored.file)[80:]
    assert max(frame.to_ndarray(format="gray")[:, :24].max() for frame in shown) < 40
