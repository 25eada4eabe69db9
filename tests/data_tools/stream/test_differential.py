"""A sample of the differential test: `python -m tests.data_tools.stream.differential` runs all of it."""

import random
import shutil
import subprocess

import pytest

from kinemae.data_tools.stream.container import open_video
from kinemae.data_tools.stream.frame_decoder import frames_at
from tests.data_tools.stream.differential import ENDINGS, compared, our_times, sequential, shown
from tests.data_tools.stream.matrix import FRAMES, collapsed_stamps, number_of, videos
from tests.filming import REAL, SHIPPED
from tests.seeds import SEED

CASES = REAL.parent / "cases"
# Kinds of which one always runs; of the others a few are drawn.
ALWAYS = (
    *("mp4/h264_intra_refresh", "mp4/h264_open_groups", "mp4/stamps_in_decoding_order", "avi/h264_b_frames"),
    *("mpeg/mpeg2", "flv/equal_stamps_of_both_kinds", "mpegts/joined", "mpegts/cut_at_0.7", "mp4/hevc_cra"),
)
MADE = dict(videos())
SAMPLE = [*ALWAYS, *random.Random(SEED).sample([name for name in MADE if name not in ALWAYS], 9)]
# Frames that are not 1/25 s apart; in a program stream FFmpeg itself guesses most stamps.
UNEVEN = ("equal", "joined", "varying", "resized", "mpeg/")
SHORTER = ("cut", "joined", "gif", "negative")
LARGEST = 300_000  # bytes


def files(folder, most):
    """Some of the videos below a folder."""
    found = sorted(
        path for path in folder.rglob("*") if path.suffix in ENDINGS and path.stat().st_size < LARGEST
    )
    chosen = found if len(found) <= most else random.Random(SEED).sample(found, most)
    skip = pytest.mark.skip(reason=f"no videos at {folder}")
    return [pytest.param(path, id=path.name) for path in chosen] or [pytest.param(None, marks=skip)]


@pytest.mark.parametrize("name", SAMPLE)
def test_every_read_of_a_generated_video_gives_the_frame_of_a_sequential_decode(name):
    video = MADE[name]()
    result = compared(video, singles=12)
    assert (result.refused, result.faults, result.differing) == ("", [], 0)
    assert result.frames == FRAMES or any(part in name for part in ("cut", "joined", "gif", "negative"))


@pytest.mark.parametrize("name", [name for name in SAMPLE if "joined" not in name and "cut" not in name])
def test_each_frame_of_a_generated_video_is_shown_once_at_its_time(name):
    numbers, times = shown(MADE[name]())
    first = numbers[0]
    assert numbers == list(range(first, first + len(numbers)))
    if not any(part in name for part in UNEVEN):
        assert times == pytest.approx([number / 25 for number in range(len(times))], abs=2e-3)


@pytest.mark.parametrize(
    "path", [*files(SHIPPED, 20), *files(CASES, 12), *files(REAL / "formats", 6), *files(REAL / "lips", 3)]
)
def test_every_read_of_a_real_video_gives_the_frame_of_a_sequential_decode(path):
    result = compared(path.read_bytes(), singles=8)
    assert (result.refused, result.faults, result.differing) == ("", [], 0)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize("name", ["mp4/h264_pyramid", "mpegts/h264_b_frames", "mp4/edit_list"])
def test_times_are_those_of_ffprobes_best_effort(name, tmp_path):
    file = tmp_path / "video"
    file.write_bytes(MADE[name]())
    asked = ["-v", "error", "-select_streams", "v", "-show_entries", "frame=best_effort_timestamp"]
    probed = subprocess.run(["ffprobe", *asked, "-of", "csv=p=0", file], capture_output=True, text=True)
    ffprobe_pts = [int(line.rstrip(",")) for line in probed.stdout.split()]
    with open_video(file) as opened:
        own_pts = [opened.first.pts, *(frame.pts for frame in opened.rest)]
    assert own_pts == ffprobe_pts and len(own_pts) == len(sequential(file.read_bytes()))


def test_stamps_that_contradict_the_decoding_order_are_not_used():
    video = collapsed_stamps()
    timestamps_s = [time_s + 1e-5 for time_s in our_times(video, FRAMES)[34:54]]
    found = {}
    for frame, places, _ in frames_at(video, timestamps_s):
        found.update(dict.fromkeys(places, number_of(frame.to_ndarray(format="gray"))))
    assert [found[place] for place in range(20)] == list(range(34, 54))
