"""Crops: inside the frame, of the configured shape, random only through the generator."""

import pytest
import torch

from kinemae.data_tools.stream.augment import AugmentConfig, random_crop


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_crops_are_inside_the_frame_with_the_configured_scale_and_aspect():
    augment = AugmentConfig(min_scale=0.3, max_scale=0.6, min_aspect=0.5, max_aspect=2.0)
    for draw in generators(200):
        crop = random_crop(120, 160, augment, draw)
        assert 0 <= crop.top <= 120 - crop.height and 0 <= crop.left <= 160 - crop.width
        assert 0.28 < crop.height * crop.width / (120 * 160) < 0.62
        assert 0.48 < crop.width / crop.height < 2.05


@pytest.mark.parametrize("height, width", [(120, 160), (160, 120), (100, 100)])
def test_multi_scale_crops_have_neighbouring_scales_and_13_positions(height, width):
    augment = AugmentConfig(crop="multi_scale", scales=[1.0, 0.8, 0.5])
    crops = {random_crop(height, width, augment, draw) for draw in generators(3000)}

    short = min(height, width)
    sides = [short, int(short * 0.8), short // 2]
    pairs = {(one, other) for one in sides for other in sides if {one, other} != {sides[0], sides[2]}}
    small = [crop for crop in crops if crop.height == crop.width == short // 2]
    assert {(crop.height, crop.width) for crop in crops} == pairs
    assert all(crop.top + crop.height <= height and crop.left + crop.width <= width for crop in crops)
    assert min(crop.top for crop in small) == min(crop.left for crop in small) == 0
    assert max(crop.top + crop.height for crop in small) > height - 4
    assert len(small) == 13


@pytest.mark.parametrize("crop", ["resized", "multi_scale"])
@pytest.mark.parametrize("height, width", [(10, 200), (200, 10), (1, 1), (1, 300), (3, 2)])
def test_a_frame_of_any_shape_has_a_crop(height, width, crop):
    for draw in generators(20):
        box = random_crop(height, width, AugmentConfig(crop=crop, min_scale=0.9), draw)
        assert box.height >= 1 and box.width >= 1
        assert 0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width


def test_a_frame_without_an_allowed_aspect_is_cropped_in_the_centre():
    box = random_crop(10, 200, AugmentConfig(min_scale=0.9), generators(1)[0])
    assert (box.top, box.height) == (0, 10)
    assert abs(box.left + box.width / 2 - 100) <= 1


@pytest.mark.parametrize("crop", ["resized", "multi_scale"])
def test_a_crop_is_a_function_of_the_generator(crop):
    augment = AugmentConfig(crop=crop)
    first, second = ([random_crop(120, 160, augment, draw) for draw in generators(20)] for _ in range(2))
    assert first == second and len(set(first)) > 10


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"min_scale": 0.0}, r"augment.min_scale, augment.max_scale must ascend within \(0, 1\]"),
        ({"max_scale": 1.5}, r"got \(0.5, 1.5\)"),
        ({"min_aspect": 2.0}, "augment.min_aspect, augment.max_aspect must ascend from above 0"),
        ({"crop": "center"}, "augment.crop must be resized or multi_scale, got 'center'"),
        ({"scales": []}, r"augment.scales must fall within \(0, 1\], got \[\]"),
        ({"scales": [0.5, 0.7]}, r"augment.scales must fall within \(0, 1\], got \[0.5, 0.7\]"),
        ({"scales": [1.5, 1.0]}, r"augment.scales must fall within"),
    ],
)
def test_wrong_ranges_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**wrong)
