"""Augmentation: one box for all frames, exact pixels, chance from the generator alone."""

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from data_tools.stream.augment import (
    AugmentConfig,
    Crop,
    evaluation_views,
    random_crop,
    resized_crop,
    training_view,
)

WHOLE = AugmentConfig(min_scale=1.0, min_aspect=1.0, max_aspect=1.0, flip=False)


def noise(frames, height, width):
    draw = torch.Generator().manual_seed(0)
    frames_THWC = torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=draw)
    return frames_THWC.permute(0, 3, 1, 2)


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("size", [(16, 16), (40, 40), (24, 32)])
def test_resized_crop_equals_torchvision(size):
    frames = noise(3, 48, 64)
    ours = resized_crop(frames, Crop(top=5, left=7, height=24, width=32), size)
    assert torch.equal(ours, reference.resized_crop(frames, 5, 7, 24, 32, list(size), antialias=True))


def test_boxes_stay_inside_and_keep_to_scale_and_aspect():
    augment = AugmentConfig(min_scale=0.3, max_scale=0.6, min_aspect=0.5, max_aspect=2.0)
    for draw in generators(200):
        crop = random_crop(120, 160, augment, draw)
        assert 0 <= crop.top <= 120 - crop.height and 0 <= crop.left <= 160 - crop.width
        assert 0.28 < crop.height * crop.width / (120 * 160) < 0.62
        assert 0.48 < crop.width / crop.height < 2.05


@pytest.mark.parametrize("height, width", [(10, 200), (200, 10), (1, 1), (1, 300)])
def test_a_frame_of_no_allowed_aspect_is_cut_in_the_centre(height, width):
    for draw in generators(20):
        crop = random_crop(height, width, AugmentConfig(min_scale=0.9), draw)
        assert crop.height >= 1 and crop.width >= 1
        assert crop.top + crop.height <= height and crop.left + crop.width <= width


def test_all_frames_get_the_same_box_and_flip():
    frames = noise(1, 40, 60).expand(5, -1, -1, -1)
    for draw in generators(10):
        clip_CTHW = training_view(frames, 16, AugmentConfig(), draw)
        assert clip_CTHW.shape == (3, 5, 16, 16) and clip_CTHW.dtype == torch.uint8
        assert torch.equal(clip_CTHW, clip_CTHW[:, :1].expand_as(clip_CTHW))


def test_half_of_the_clips_are_mirrored_and_none_where_it_is_off():
    frames = noise(1, 16, 16)
    upright, mirrored = frames.transpose(0, 1), frames.flip(-1).transpose(0, 1)
    flipping = AugmentConfig(min_scale=1.0, min_aspect=1.0, max_aspect=1.0)
    clips = [training_view(frames, 16, flipping, draw) for draw in generators(200)]
    count = sum(torch.equal(clip, mirrored) for clip in clips)
    assert 70 < count < 130 and all(torch.equal(c, mirrored) or torch.equal(c, upright) for c in clips)
    assert all(torch.equal(training_view(frames, 16, WHOLE, draw), upright) for draw in generators(20))


@pytest.mark.parametrize("height, width", [(30, 50), (50, 30), (20, 20), (41, 37)])
def test_three_crops_are_both_ends_and_the_centre(height, width):
    frames = noise(2, height, width)
    views = evaluation_views(frames, 20, 3)
    short = min(height, width)
    whole = reference.resize(frames, [20 * height // short, 20 * width // short], antialias=True)
    assert views.shape == (3, 3, 2, 20, 20)
    assert torch.equal(views[0], whole[..., :20, :20].transpose(0, 1))
    assert torch.equal(views[2], whole[..., -20:, -20:].transpose(0, 1))
    assert torch.equal(views[1:2], evaluation_views(frames, 20, 1))


def test_another_number_of_crops_is_refused():
    with pytest.raises(ValueError, match="must be 1 or 3, got 2"):
        evaluation_views(noise(1, 8, 8), 8, 2)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"min_scale": 0.0}, r"augment.min_scale, augment.max_scale must ascend within \(0, 1\]"),
        ({"max_scale": 1.5}, r"got \(0.5, 1.5\)"),
        ({"min_aspect": 2.0}, "augment.min_aspect, augment.max_aspect must ascend from above 0"),
    ],
)
def test_wrong_ranges_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**wrong)
