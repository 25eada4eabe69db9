"""A constant rate is kept exactly; a variable rate loses no frame and repeats frames only in pauses."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from kinemae.data_tools.encoding.frame_rate import measure, nominal_rate
from kinemae.data_tools.layouts.base import Job, Layout
from kinemae.data_tools.layouts.clips import Clips
from kinemae.data_tools.layouts.h264 import H264
from kinemae.data_tools.layouts.jpegs import Jpegs
from kinemae.data_tools.manifest.videos import SourceVideo
from tests.sharding import MATROSKA, encoded, numbered, numbers_in

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
STEP = 1000 / 30


def stored(video: bytes | Path, folder: Path, layout: Layout) -> tuple[list[int], list[str]]:
    """Numbers of the stored frames, and the notes."""
    path = video if isinstance(video, Path) else folder / "original"
    if isinstance(video, bytes):
        path.write_bytes(video)
    job = Job(video=SourceVideo(path=path, name=path.name), key="key", folder=folder)
    [sample] = layout.encode(job)
    assert sample.file is not None
    numbers = numbers_in(sample.file)
    assert len(numbers) == sample.info.frames
    return numbers, job.notes


# Measured in the review: (ticks in thousandths, frames stored, frames repeated, rate).
VARYING = {
    "a pause of 3 s": ([round(n * STEP) for n in range(150) if not 50 <= n < 140], 150, 90, 30),
    "30, then 15 in low light": (
        [round(n * STEP) for n in range(75)] + [round((75 + 2 * n) * STEP) for n in range(38)],
        150,
        37,
        30,
    ),
    "each tenth is missing": ([round(n * STEP) for n in range(150) if n % 10 != 9], 149, 14, 30),
    "pauses for the most part": (
        [second * 1000 + round(n * STEP) for second in range(0, 16, 4) for n in range(4)] + [20_000],
        637,
        620,
        30,
    ),
    "delays of a GIF": ([0, 100, 200, 700, 800, 900, 2000, 2100], 24, 16, 10),
    "one frame comes early": ([40 * n - 25 * (n == 20) for n in range(40)], 40, 0, 25),
}


@pytest.mark.parametrize("name", VARYING)
def test_a_variable_rate_loses_no_frame_and_repeats_only_pauses(name: str, tmp_path: Path):
    ticks, frames, repeated, rate = VARYING[name]
    video = encoded(numbered(range(len(ticks))), ticks=ticks, kind=MATROSKA)
    numbers, notes = stored(video, tmp_path, H264(every=1, crf=10))
    assert sorted(set(numbers)) == list(range(len(ticks)))
    assert numbers == sorted(numbers)
    assert len(numbers) == pytest.approx(frames, abs=2)
    assert len(numbers) - len(ticks) == pytest.approx(repeated, abs=2)
    if repeated:
        [note] = notes
        assert note.startswith(f"variable frame rate, resampled to {rate} fps: 0 of {len(ticks)} frames lost")
    # Each frame is on screen within one frame of the middle of its time.
    for slot, number in enumerate(numbers):
        middle_s = (slot + 0.5) / rate
        assert ticks[number] / 1000 <= middle_s + 2e-3
        assert number == len(ticks) - 1 or middle_s <= ticks[number + 1] / 1000 + 1 / rate + 2e-3


@pytest.mark.parametrize("layout", [H264(every=1, crf=10), Jpegs()])
@pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases at {CASES}")
def test_a_phone_video_keeps_all_its_frames(layout: Layout, tmp_path: Path):
    numbers, notes = stored(CASES / "phone_vfr" / "flat.mp4", tmp_path, layout)
    assert sorted(set(numbers)) == list(range(100))
    assert notes == ["variable frame rate, resampled to 29.97 fps: 0 of 100 frames lost, 225 repeated"]


def test_clips_are_taken_at_the_usual_rate(tmp_path: Path):
    ticks = [40 * n for n in range(40) if not 10 <= n < 20]
    video = encoded(numbered(range(30)), ticks=ticks, kind=MATROSKA)
    numbers, notes = stored(video, tmp_path, Clips(frames=10, stride=4, crf=10))
    assert notes == ["variable frame rate, resampled to 25 fps: 0 of 30 frames lost, 10 repeated"]
    times = [ticks[number] / 40 for number in numbers]
    assert all(time <= 4 * slot + 2 for slot, time in enumerate(times))
    assert numbers[:3] == [2, 6, 9] and numbers[5:] == [12, 16, 20, 24, 28]


@pytest.mark.parametrize(
    "times_s, rate",
    [
        ([0, 10], Fraction(1, 10)),  # two frames
        ([n / 30 for n in range(40)], 30),
        ([n * 1001 / 30000 for n in range(4000)] + [4004 / 30 + n / 30 for n in range(4000)], 30),  # spliced
        ([n / 25 - 0.008 * (n % 2) + 0.7 * (n > 50) for n in range(100)], 25),  # jitter and a pause
        ([n / 25 + 0.01 * (n > 50) for n in range(100)], 25),  # one odd interval
    ],
)
def test_the_nominal_rate_loses_no_frame(times_s: list[float], rate: Fraction):
    found = nominal_rate(np.array(times_s))
    assert found == rate


def test_a_gap_of_years_has_no_rate():
    assert nominal_rate(np.array([0, 0.04, 3e7])) is None


def test_the_rate_of_a_constant_video_is_its_own(tmp_path: Path):
    for rate in (Fraction(30000, 1001), Fraction(25), Fraction(1, 2)):
        timing = measure(encoded(numbered(range(20)), rate=rate))
        assert (timing.mean, timing.nominal, timing.frames, timing.rate_mode) == (rate, rate, 20, "constant")


def test_a_pause_is_measured():
    ticks = [40 * n for n in range(20) if n not in (5, 6)]
    timing = measure(encoded(numbered(range(18)), ticks=ticks, kind=MATROSKA))
    assert (timing.rate_mode, timing.nominal) == ("variable", 25)


def test_stamps_that_are_wrong_by_a_frame_have_no_effect(tmp_path: Path):
    """A group of pictures may be stamped a frame too late, as in some program streams."""
    ticks = [40 * n + 40 * (10 <= n < 20) - 20 * (n == 20) for n in range(30)]
    ticks[20] = ticks[19] + 20
    video = encoded(numbered(range(30)), ticks=ticks, kind=MATROSKA)
    assert stored(video, tmp_path, H264(every=1, crf=10)) == (list(range(30)), [])
    path = tmp_path / "part.mkv"
    path.write_bytes(video)
    part = SourceVideo(path=path, name="part", start_s=0.2, end_s=0.6)
    [sample] = H264(every=1, crf=10).encode(Job(video=part, key="key", folder=tmp_path))
    assert sample.file is not None and numbers_in(sample.file) == list(range(5, 14))


def test_jitter_of_a_third_of_a_frame_loses_nothing():
    numbers = np.arange(90)
    times_s = 0.04 * (numbers + 0.3 * np.sin(7 * numbers))  # most intervals are long, which means 24 a second
    assert nominal_rate(times_s) == 25
