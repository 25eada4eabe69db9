"""Views: crop, flip and resize without flicker, into given memory."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.transforms.v2 import functional as reference

from kinemae.data_tools.stream.augment import AugmentConfig, Crop
from kinemae.data_tools.stream.decode import decode_at
from kinemae.data_tools.stream.views import View, crop_views, evaluation_views, even, training_view
from kinemae.data_tools.stream.yuv_planes import YuvFrame, yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips, colour_coefficients, join, split_in_time, to_rgb
from tests.filming import ALIGNED, encoded, middle_s, scene

COLOUR = colour_coefficients(0.299, 0.114, is_full_range=True)


def picture_of(height, width, seed=0):
    """A frame of smooth noise in colours inside RGB."""
    draw = torch.Generator().manual_seed(seed)
    planes = []
    for divisor, low, span in ((1, 60, 130), (2, 110, 36), (2, 110, 36)):
        coarse = low + span * torch.rand(1, 1, height // 8, width // 8, generator=draw)
        soft = functional.interpolate(coarse, size=(height // divisor, width // divisor), mode="bicubic")
        planes.append(soft[0, 0].round().to(torch.uint8).numpy())
    return YuvFrame(planes=tuple(planes), colour=COLOUR)


def cut(pictures, views, *, frames, size):
    clips = YuvClips.empty(len(views), frames, size)
    crop_views(pictures, lambda height, width: views, clips)
    return clips


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("size", [16, 24, 40, 41])
@pytest.mark.parametrize(
    "crop", [Crop(top=4, left=6, height=32, width=32), Crop(top=0, left=0, height=64, width=96)]
)
def test_a_view_is_the_resized_crop_of_the_frame(crop, size):
    picture = picture_of(64, 96)
    got = cut([(picture, [0])], [View(crop=crop)], frames=1, size=size).rgb()[0, :, 0]
    whole = View(crop=Crop(top=0, left=0, height=64, width=96))
    luma, u, v = (torch.from_numpy(plane)[None, None] for plane in picture.planes)
    rgb = YuvClips(
        luma_BTHW=luma,
        chroma_BCTHW=torch.stack([u, v], dim=1),
        colour_BX=torch.tensor([COLOUR], dtype=torch.int32),
    ).rgb()[0, :, 0]
    assert whole.crop == even(whole.crop)
    expected = reference.resized_crop(rgb, crop.top, crop.left, crop.height, crop.width, [size, size])
    error = (got.int() - expected.int()).abs().float()
    assert error.mean() < 6 and error.quantile(0.99) < 25


def test_a_flipped_view_is_the_view_flipped():
    picture, crop = picture_of(48, 64), Crop(top=2, left=10, height=30, width=44)
    clips = cut([(picture, [0])], [View(crop=crop), View(crop=crop, flip=True)], frames=1, size=20)
    for plane in (clips.luma_BTHW, clips.chroma_BCTHW):
        assert torch.equal(plane[1], plane[0].flip(-1)) and not torch.equal(plane[1], plane[0])


@pytest.mark.parametrize("size", [20, 16, 14])
def test_fine_detail_does_not_flicker_if_a_crop_shrinks_much(size):
    stripes = np.zeros((64, 64), np.uint8)
    shades = []
    for offset in range(4):
        stripes[:] = np.where((np.arange(64) + offset) % 4 < 1, 252, 0)
        picture = YuvFrame(planes=(stripes.copy(), *[np.zeros((32, 32), np.uint8)] * 2), colour=COLOUR)
        view = View(crop=Crop(top=0, left=0, height=64, width=64))
        shades.append(cut([(picture, [0])], [view], frames=1, size=size).luma_BTHW.float())
    assert max((shade.mean() - 63).abs() for shade in shades) < 4
    if size == 16:  # every fourth pixel alone would be white once and black three times
        assert all((shade - 63).abs().max() < 2 for shade in shades)


def test_frames_in_any_order_go_to_their_positions():
    pictures = [(picture_of(32, 32, seed), places) for seed, places in enumerate([[2], [0, 3], [1], [2]])]
    views = [
        View(crop=Crop(top=0, left=0, height=32, width=32)),
        View(crop=Crop(top=8, left=8, height=16, width=16)),
    ]
    clips = cut(pictures, views, frames=4, size=16)
    for clip, view in enumerate(views):
        for place, seed in enumerate([1, 2, 3, 1]):
            alone = cut([(picture_of(32, 32, seed), [0])], [view], frames=1, size=16)
            assert torch.equal(clips.rgb()[clip, :, place], alone.rgb()[0, :, 0])


@given(height=st.integers(1, 50), width=st.integers(1, 50), top=st.integers(0, 30), left=st.integers(0, 30))
def test_even_crops_have_even_edges_are_inside_and_never_empty(height, width, top, left):
    box = even(Crop(top=top, left=left, height=height, width=width))
    assert box.top % 2 == box.left % 2 == 0
    assert box.height % 2 == 0 or box.height == 1
    assert 0 < box.height <= height and 0 < box.width <= width and top - 1 <= box.top <= top
    assert box.top + box.height <= top + height and box.left + box.width <= left + width


def test_training_views_are_flipped_half_of_the_time_unless_flip_is_off():
    views = [training_view(120, 160, AugmentConfig(), draw) for draw in generators(200)]
    assert 70 < sum(view.flip for view in views) < 130 and len({view.crop for view in views}) > 150
    assert not any(training_view(120, 160, AugmentConfig(flip=False), draw).flip for draw in generators(50))
    assert all(view.crop == even(view.crop) for view in views)


@pytest.mark.parametrize("height, width", [(30, 50), (50, 30), (20, 20), (40, 36)])
def test_three_crops_are_both_ends_and_the_centre(height, width):
    views = evaluation_views(height, width, 3)
    short = min(height, width)
    assert all((view.crop.height, view.crop.width) == (short, short) and not view.flip for view in views)
    starts = [max(view.crop.top, view.crop.left) for view in views]
    slack = max(height, width) - short
    assert starts[0] == 0 and starts[2] == slack and abs(starts[1] - slack / 2) <= 1
    assert all(min(view.crop.top, view.crop.left) == 0 for view in views)
    assert evaluation_views(height, width, 1) == views[1:2]


@pytest.mark.parametrize("size", [1, 7, 15])
def test_tiny_frames_and_odd_sizes_work(size):
    video = encoded(scene(3, 2, 2), container="matroska", codec="ffv1")
    clips = YuvClips.empty(3, 1, size)
    crop_views(yuv_frames_at(video, [0.0]), lambda *shape: evaluation_views(*shape, 3), clips)
    assert clips.rgb().shape == (3, 3, 1, size, size)


def test_clips_that_are_decoded_together_are_those_decoded_alone():
    video = encoded(scene(60, 64, 80), **ALIGNED)
    starts = [middle_s(video, *range(start, start + 12, 3)) for start in (0, 7, 40)]

    def views(timestamps_s):
        clips = YuvClips.empty(3, len(timestamps_s), 24)
        crop_views(yuv_frames_at(video, timestamps_s), lambda *shape: evaluation_views(*shape, 3), clips)
        return clips

    together = split_in_time(views([timestamp_s for start in starts for timestamp_s in start]), 3)
    alone = join([views(start) for start in starts])
    assert torch.equal(together.luma_BTHW, alone.luma_BTHW) and torch.equal(together.rgb(), alone.rgb())


def test_a_whole_video_through_planes_looks_like_its_rgb_frames():
    video = encoded(scene(8, 64, 64), crf="1")
    timestamps_s = middle_s(video, 1, 3, 6)
    clips = YuvClips.empty(1, 3, 64)
    crop_views(yuv_frames_at(video, timestamps_s), lambda *shape: evaluation_views(*shape, 1), clips)
    error = (to_rgb(clips)[0].transpose(0, 1).int() - decode_at(video, timestamps_s).int()).abs().float()
    assert error.mean() < 1.2 and error.max() <= 4
