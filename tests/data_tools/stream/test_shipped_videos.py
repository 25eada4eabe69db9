"""Shipped videos: every decoder gives every frame, checked by its visible number."""

import pytest
import torch

from kinemae.data_tools.stream.decode import decode_at, probe
from tests.data.make_videos import FRAMES, HEIGHT, WIDTH, numbered_pictures
from tests.filming import SHIPPED, middle_s, number_of, sequential, video_files

KINDS = video_files(SHIPPED, most=0)
PAUSED = {5, 6, 7, 8, 9, 20, 21, 26}  # the picture before stays on screen
EVERY = list(range(FRAMES))
SHOWN = {
    "animated.gif": EVERY[:16],
    "varying_rate.mkv": [number for number in EVERY if number not in PAUSED],
    "xvid_packed.avi": EVERY[:28],  # the encoder keeps the last two
}
SIZES = {"anamorphic.mp4": (WIDTH, HEIGHT), "ten_bit_odd.mkv": (WIDTH, HEIGHT - 1)}
PERIOD_S = 1 / 25


def starts_s(name):
    """Times at which the frames come on screen."""
    return [number * PERIOD_S for number in SHOWN.get(name, EVERY)]


@pytest.mark.parametrize("path", KINDS)
def test_every_frame_is_on_screen_from_its_time_until_the_next(path):
    name, video = path.name, path.read_bytes()
    shown = SHOWN.get(name, EVERY)
    info = probe(video)
    assert (info.frames, info.width, info.height) == (len(shown), *SIZES.get(name, (WIDTH, HEIGHT)))
    begins = decode_at(video, [start_s + 1e-3 for start_s in starts_s(name)])
    ends = decode_at(video, [start_s - 1e-3 for start_s in starts_s(name)[1:]])
    assert [number_of(frame_CHW) for frame_CHW in begins] == shown
    assert [number_of(frame_CHW) for frame_CHW in ends] == shown[:-1]


@pytest.mark.parametrize("path", KINDS)
def test_each_frame_alone_is_the_right_one(path):
    name, video = path.name, path.read_bytes()
    shown = SHOWN.get(name, EVERY)
    alone = [decode_at(video, [start_s + 1e-3])[0] for start_s in starts_s(name)]
    assert [number_of(frame_CHW) for frame_CHW in alone] == shown


def test_a_rotated_video_is_upright():
    video = (SHIPPED / "rotated.mp4").read_bytes()
    _, stored_TCHW = sequential(video)
    upright = decode_at(video, middle_s(video, 4))
    assert torch.equal(upright[0], torch.rot90(stored_TCHW[4], dims=(1, 2)))


def test_the_files_are_those_of_their_script():
    made_TCHW = torch.from_numpy(numbered_pictures()).permute(0, 3, 1, 2)
    video = (SHIPPED / "h264_b_frames.mp4").read_bytes()
    stored_TCHW = decode_at(video, middle_s(video, *EVERY))
    assert (stored_TCHW.float() - made_TCHW.float()).abs().mean() < 8
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 200_000
