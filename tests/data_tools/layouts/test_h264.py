"""Layout h264: every S-th frame decodes without the others, to the same bits."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kinemae.data_tools.layouts.base import EncodedSample, Job
from kinemae.data_tools.layouts.h264 import H264
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import decode_at, probe
from tests.filming import FORMATS, SHIPPED
from tests.sharding import MATROSKA, encoded, moving


def encode(video: bytes, folder: Path, *, every: int | None = 1, **arguments: object) -> EncodedSample:
    path = folder / "original"
    path.write_bytes(video)
    job = Job(video=SourceVideo(path=path, name="original"), key="key", folder=folder)
    [sample] = H264(every=every, **arguments).encode(job)  # type: ignore[arg-type]
    return sample


def planes(sample: EncodedSample, skip: str = "DEFAULT") -> dict[int, np.ndarray]:
    """Decode frames by number."""
    assert sample.file is not None
    found = {}
    step_s = sample.info.duration_s / sample.info.frames
    with av.open(io.BytesIO(sample.file.read_bytes())) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = skip
        start = stream.start_time or 0
        for frame in container.decode(stream):
            number = round(float((frame.pts - start) * stream.time_base) / step_s)
            found[number] = frame.to_ndarray(format="yuv420p")
    return found


def assert_references_stand_alone(sample: EncodedSample) -> None:
    every, alone = planes(sample), planes(sample, "NONREF")
    assert sorted(every) == list(range(sample.info.frames))
    promised = range(sample.reference_phase, sample.info.frames, sample.reference_stride)
    assert sample.reference_stride == 1 or set(promised) <= set(alone)
    assert all(np.array_equal(every[number], alone[number]) for number in alone)
    # Besides, at most the first frame, one before the phase, and the last one of each group are decoded.
    groups = sample.info.frames // 16 + 1
    assert len(alone) <= len(promised) + 2 + groups


@pytest.mark.parametrize("frames", [1, 2, 3, 77])
@pytest.mark.parametrize("b_frames", [0, 1, 2, 3, 7])
def test_reference_frames_decode_alone_to_the_same_bits(b_frames: int, frames: int, tmp_path: Path):
    gop = 16 // (b_frames + 1) * (b_frames + 1)
    sample = encode(encoded(moving(frames)), tmp_path, b_frames=b_frames, gop=gop)
    assert (sample.reference_stride, sample.info.frames) == (b_frames + 1, frames)
    assert_references_stand_alone(sample)


@pytest.mark.parametrize(
    "fps, frames, every",
    [
        *((8, 77, 1), (12, 77, 1), (15, 77, 1), (20, 77, 1), (24, 77, 2), (Fraction(30000, 1001), 77, 2)),
        *((50, 77, 4), (60, 77, 4), (240, 77, 4)),
        *((25, 31, 1), (25, 32, 2), (60, 63, 2), (60, 64, 4)),  # at least 16 frames remain
    ],
)
def test_the_default_rate_is_near_15_fps(fps: float | Fraction, frames: int, every: int, tmp_path: Path):
    sample = encode(encoded(moving(frames), rate=Fraction(fps)), tmp_path, every=None)
    assert (sample.frame_step, sample.info.frames) == (every, (frames + (every - 1) // 2) // every)
    assert sample.info.duration_s == pytest.approx(float(frames / fps), abs=float(every / fps))
    assert_references_stand_alone(sample)


@pytest.mark.parametrize("every", [1, 2, 3, 4])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 8])
def test_every_nth_frame_is_stored_and_never_none(every: int, frames: int, tmp_path: Path):
    ticks = [round(number * 1001 / 30) for number in range(frames)]  # 29.97 fps in thousandths
    video = encoded(moving(frames), ticks=ticks, kind=MATROSKA)
    sample = encode(video, tmp_path, every=every, crf=4)
    levels = [plane[:8].mean() for _, plane in sorted(planes(sample).items())]
    stored = list(range(every // 2, frames, every)) or [frames - 1]
    expected = [plane[:8].mean() for _, plane in sorted(planes(encode(video, tmp_path, crf=4)).items())]
    assert levels == pytest.approx([expected[number] for number in stored], abs=1.5)


@pytest.mark.parametrize(
    "source, fps, frames",
    [
        (Fraction(25), None, 50),
        (Fraction(30000, 1001), None, 50),
        (Fraction(25), 12.5, 25),
        (Fraction(25), 10, 20),
        (Fraction(25), 50, 100),
        (Fraction(25), 29.97, 60),
        (Fraction(1, 2), None, 50),
    ],
)
def test_fps_sets_the_rate_and_keeps_the_duration(
    source: Fraction, fps: float | None, frames: int, tmp_path: Path
):
    video = encoded(moving(50), rate=source)
    sample = encode(video, tmp_path, fps=fps)
    assert sample.info.frames == frames
    assert sample.info.duration_s == pytest.approx(50 / source, abs=0.5 / float(fps or source))
    assert_references_stand_alone(sample)
    step_s = sample.info.duration_s / frames
    middles_s = [(number + 0.5) * step_s for number in range(frames)]
    wanted = decode_at(video, middles_s).float().mean(dim=(1, 2, 3))
    assert sample.file is not None
    stored = decode_at(sample.file.read_bytes(), middles_s).float().mean(dim=(1, 2, 3))
    assert (stored - wanted).abs().max() < 2


def test_a_varying_rate_becomes_the_nominal_rate_and_frames_keep_their_timestamps(tmp_path: Path):
    ticks = [0, 40, 80, 400, 440, 480, 800, 1200, 1240, 1600, 1640, 2000]
    video = encoded(moving(12), ticks=ticks, kind=MATROSKA)
    sample = encode(video, tmp_path)
    assert sample.info.frames == 55
    assert sample.info.duration_s == pytest.approx(2.0 * 12 / 11, abs=0.02)
    assert_references_stand_alone(sample)
    step_s = sample.info.duration_s / 55
    middles_s = [(number + 0.5) * step_s for number in range(55)]
    assert sample.file is not None
    stored = decode_at(sample.file.read_bytes(), middles_s).float().mean(dim=(1, 2, 3))
    assert (stored - decode_at(video, middles_s).float().mean(dim=(1, 2, 3))).abs().max() < 2


def test_rounded_timestamps_do_not_count_as_a_varying_rate(tmp_path: Path):
    ticks = [
        round(number * 1001 / 30) for number in range(60)
    ]  # 29.97 fps in thousandths, as Matroska has it
    sample = encode(encoded(moving(60), ticks=ticks, kind=MATROSKA), tmp_path)
    assert sample.info.frames == 60
    levels = [plane[:8].mean() for _, plane in sorted(planes(sample).items())]
    steps = np.diff(levels[:24])
    assert ((steps > 2) & (steps < 7)).all()  # each frame exactly once


@pytest.mark.parametrize(
    "width, height, short_side, expected",
    [
        (64, 48, 256, (64, 48)),
        (64, 48, 24, (32, 24)),
        (65, 49, 256, (64, 48)),
        (98, 50, 25, (48, 24)),
        (2, 2, 256, (2, 2)),
        (1, 1, 256, (2, 2)),
        (640, 2, 256, (640, 2)),
    ],
)
def test_sizes_are_even_and_never_enlarged(
    width: int, height: int, short_side: int, expected: tuple[int, int], tmp_path: Path
):
    picture = np.full((height, width, 3), 90, np.uint8)
    codec, pix_fmt = ("ffv1", "yuv420p") if width == 1 else ("libx264", "yuv444p")
    video = encoded([picture] * 5, kind=("matroska", codec, pix_fmt))
    sample = encode(video, tmp_path, short_side=short_side)
    assert (sample.info.width, sample.info.height) == expected
    assert sample.file is not None
    assert probe(sample.file) == sample.info
    stored = decode_at(sample.file.read_bytes(), [0.02]).float()
    assert (stored - 90).abs().max() < 6


UPRIGHT = [SHIPPED / name for name in ("rotated.mp4", "ten_bit_odd.mkv", "animated.gif", "vp9.webm")]
UPRIGHT += [
    FORMATS / name
    for name in (
        "nasa_13013_rotated.mp4",
        "test_non_zero_start.mp4",
        "bt709_full_range.mp4",
        "bt601_full_range.mp4",
        "testsrc2_444_10bit_hevc.mp4",
        "animated.gif",
        "testsrc2_vp9.webm",
        "testsrc2_mpeg4.avi",
    )
]


@pytest.mark.slow
def test_real_files_of_every_format_stay_upright(tmp_path: Path):
    for path in filter(Path.exists, UPRIGHT):
        name, video = path.name, path.read_bytes()
        before = probe(video)
        sample = encode(video, tmp_path, short_side=4096, crf=10)
        assert sample.info.frames == before.frames
        assert sample.info.duration_s == pytest.approx(before.duration_s, rel=1e-3)
        assert (sample.info.width, sample.info.height) == (before.width // 2 * 2, before.height // 2 * 2)
        assert_references_stand_alone(sample)
        middles_s = [
            (number + 0.5) * before.duration_s / before.frames for number in range(min(before.frames, 6))
        ]
        assert sample.file is not None
        stored = decode_at(sample.file.read_bytes(), middles_s).float()[..., :-1, :-1]
        wanted = decode_at(video, middles_s).float()[..., : stored.shape[-2], : stored.shape[-1]]
        assert (stored - wanted).mean(dim=(0, 2, 3)).abs().max() < 2.5, name  # no shift of colours
        assert (stored - wanted).abs().mean() < 8, name


def test_sound_captions_and_rotation_tags_are_dropped(tmp_path: Path):
    sample = encode((SHIPPED / "rotated.mp4").read_bytes(), tmp_path)
    with av.open(str(sample.file)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        frame = next(container.decode(video=0))
        assert frame.side_data.get("DISPLAYMATRIX") is None


def test_the_file_has_a_constant_rate_and_closed_groups(tmp_path: Path):
    sample = encode(encoded(moving(70)), tmp_path)
    with av.open(str(sample.file)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        keys = [frame.key_frame for frame in container.decode(stream)]
    key_frames = [number for number, is_key in enumerate(keys) if is_key]
    assert key_frames == [0, 32, 64]


def test_invalid_timestamps_do_not_fill_the_disk(tmp_path: Path):
    year = 365 * 24 * 3600 * 1000
    video = encoded(moving(3), ticks=[0, 40, year], kind=MATROSKA)
    with pytest.raises(BadVideo, match="its time stamps jump to second 31536000 after 2 frames"):
        encode(video, tmp_path, fps=25)
    with pytest.raises(BadVideo, match=r"it shows 6\.34196e-08 frames per second: set layout\.args\.fps"):
        encode(video, tmp_path)
