"""Colour augmentation: the same for all frames, a function of the clip, no effect on torch's generator."""

import pytest
import torch
from torchvision.transforms import v2

from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.colour import (
    ColourConfig,
    EraseConfig,
    JitterConfig,
    RandAugmentConfig,
    colour_augment,
)
from kinemae.pretrain.model.tokens import normalize

JITTER = JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.3)
RAND_AUGMENT = RandAugmentConfig(operations=4)
ERASE = EraseConfig(probability=1.0)
KINDS = {
    "jitter": ColourConfig(jitter=JITTER),
    "gray": ColourConfig(jitter=JitterConfig(grayscale=1.0)),
    "rand_augment": ColourConfig(rand_augment=RAND_AUGMENT),
    "erase": ColourConfig(erase=ERASE),
    "all": ColourConfig(jitter=JITTER, rand_augment=RAND_AUGMENT, erase=ERASE),
}
each_kind = pytest.mark.parametrize("colour", KINDS.values(), ids=KINDS)


def picture(size=32, seed=0):
    """A smooth coloured image (C, H, W): noise would look the same after a rotation."""
    coarse = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0].clamp(0, 255).to(torch.uint8)


def clip_of(frames=4, **kwargs):
    """A static clip in the stream's memory order."""
    frame_HWC = picture(**kwargs).permute(1, 2, 0).contiguous()
    return frame_HWC.repeat(frames, 1, 1, 1).permute(0, 3, 1, 2)


def augmented(colour, number=0, clip_TCHW=None):
    clip_TCHW = clip_of() if clip_TCHW is None else clip_TCHW
    return colour_augment(clip_TCHW, colour, torch.Generator().manual_seed(number))


@each_kind
def test_all_frames_are_changed_alike(colour):
    for number in range(30):
        got_TCHW = augmented(colour, number)
        assert got_TCHW.dtype == torch.uint8 and got_TCHW.shape == (4, 3, 32, 32)
        assert (got_TCHW == got_TCHW[:1]).all()


@each_kind
def test_augmentation_is_a_function_of_the_generator(colour):
    first, again = augmented(colour, 3), augmented(colour, 3)
    others = [augmented(colour, number) for number in range(12)]

    assert torch.equal(first, again)
    if colour is not KINDS["gray"]:
        assert len({other.numpy().tobytes() for other in others}) > 4


@each_kind
def test_the_global_generator_and_the_input_clip_do_not_change(colour):
    clip_TCHW = clip_of()
    before, state = clip_TCHW.clone(), torch.get_rng_state()

    for number in range(10):
        augmented(colour, number, clip_TCHW)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(clip_TCHW, before)


@each_kind
def test_the_state_of_the_global_generator_has_no_effect(colour):
    first = augmented(colour, 5)
    torch.rand(7)
    assert torch.equal(augmented(colour, 5), first)


@each_kind
def test_one_number_is_drawn_for_any_config(colour):
    drawn = [torch.Generator().manual_seed(1) for _ in range(2)]
    for generator, one in zip(drawn, (colour, ColourConfig()), strict=True):
        colour_augment(clip_of(), one, generator)
    assert torch.equal(drawn[0].get_state(), drawn[1].get_state())


@each_kind
def test_memory_order_has_no_effect(colour):
    for number in range(5):
        plain = augmented(colour, number, clip_of().contiguous())
        difference = (augmented(colour, number).int() - plain.int()).abs()
        assert difference.max() <= 1  # the last bit of a float32 sum


def test_colour_augmentation_is_off_by_default():
    assert not AugmentConfig().changes_colour
    assert torch.equal(augmented(ColourConfig()), clip_of())


@pytest.mark.parametrize(
    "override, expected",
    [
        ("jitter.brightness=0.4", True),
        ("jitter.grayscale=0.1", True),
        ("rand_augment.operations=4", True),
        ("erase.probability=0.25", True),
        ("jitter.probability=0.5", False),
        ("rand_augment.magnitude=9", False),
        ("erase.mode=black", False),
    ],
)
def test_rgb_is_required_only_if_colours_change(override, expected):
    assert load_config(ColourConfig, None, [override]).changes_colour == expected


def test_jitter_equals_torchvisions():
    jitter = JitterConfig(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    got_TCHW = augmented(ColourConfig(jitter=jitter), 9)

    torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(9))))
    torch.rand(())  # whether to do it
    assert torch.equal(got_TCHW, v2.ColorJitter(0.4, 0.3, 0.2, 0.1)(clip_of()))


def test_jitter_and_grayscale_have_the_configured_probabilities():
    colour = ColourConfig(jitter=JitterConfig(probability=0.3, brightness=0.8, grayscale=0.4))
    clips = [augmented(colour, number, clip_of(frames=1, size=8)) for number in range(600)]

    gray = sum(bool((clip == clip[:, :1]).all()) for clip in clips)
    same = sum(torch.equal(clip, clip_of(frames=1, size=8)) for clip in clips)

    assert 240 - 50 < gray < 240 + 50  # 4 deviations of a binomial
    assert 0.7 * 0.6 * 600 - 50 < same < 0.7 * 0.6 * 600 + 50


def test_rand_augment_changes_more_with_greater_magnitude():
    def change(magnitude):
        config = RandAugmentConfig(operations=2, magnitude=magnitude, deviation=0.0, probability=1.0)
        clips = [augmented(ColourConfig(rand_augment=config), number) for number in range(80)]
        return sum((clip.float() - clip_of().float()).abs().mean().item() for clip in clips)

    assert change(1) < change(5) < change(10)


def test_rand_augment_uses_all_of_its_operations():
    config = RandAugmentConfig(operations=1, magnitude=7.0, deviation=0.0, probability=1.0)
    colour = ColourConfig(rand_augment=config)
    different = {augmented(colour, number).numpy().tobytes() for number in range(200)}
    assert len(different) >= 14  # 14 operations, of which most have a sign; identity is one of them


def test_rand_augment_with_probability_0_does_nothing():
    config = RandAugmentConfig(operations=4, probability=0.0)
    assert torch.equal(augmented(ColourConfig(rand_augment=config)), clip_of())


@pytest.mark.parametrize("extreme", [{"magnitude": 0.0}, {"magnitude": 10.0}, {"deviation": 50.0}])
def test_rand_augment_keeps_its_magnitude_within_the_scale(extreme):
    colour = ColourConfig(rand_augment=RandAugmentConfig(operations=4, probability=1.0, **extreme))
    for number in range(40):
        assert augmented(colour, number).shape == (4, 3, 32, 32)


def test_erasing_fills_one_box_of_the_configured_size():
    white_TCHW = torch.full((3, 3, 64, 64), 255, dtype=torch.uint8)
    colour = ColourConfig(erase=EraseConfig(probability=1.0, min_area=0.1, max_area=0.3, mode="black"))
    for number in range(50):
        is_gone_HW = (augmented(colour, number, white_TCHW) == 0).all(0).all(0)
        rows, columns = is_gone_HW.any(1).sum().item(), is_gone_HW.any(0).sum().item()
        assert is_gone_HW.sum() == rows * columns  # one whole box
        assert 0.08 < rows * columns / 64**2 < 0.33


def test_erasing_has_the_configured_probability():
    colour = ColourConfig(erase=EraseConfig(probability=0.25))
    small = clip_of(frames=1, size=16)
    touched = sum(not torch.equal(augmented(colour, number, small), small) for number in range(800))
    assert 200 - 50 < touched < 200 + 50


def test_the_noise_of_erasing_is_standard_normal_to_the_model():
    big = EraseConfig(probability=1.0, min_area=0.8, max_area=0.81, min_aspect=1.0, max_aspect=1.0)
    black_TCHW = torch.zeros((1, 3, 200, 200), dtype=torch.uint8)
    got_CHW = augmented(ColourConfig(erase=big), 0, black_TCHW)[0]
    row, column = (got_CHW.sum(0) > 0).nonzero()[len(got_CHW) // 2]
    box_CHW = got_CHW[:, row + 2 : row + 150, 30:150]
    assert column < 30

    values = normalize(box_CHW.permute(1, 2, 0).reshape(1, 1, -1))

    assert values.mean().abs() < 0.05  # clamped at 0 and 255, so not quite
    assert 0.9 < values.std() < 1.05


@pytest.mark.parametrize(
    "override, message",
    [
        ("jitter.brightness=-1", "augment.jitter.brightness must be 0 .off. or more, got -1"),
        ("jitter.hue=0.6", "augment.jitter.hue must lie between 0 .off. and 0.5, got 0.6"),
        ("jitter.probability=2", "augment.jitter.probability must lie between 0 and 1, got 2"),
        ("jitter.grayscale=-0.1", "augment.jitter.grayscale must lie between 0 and 1"),
        ("rand_augment.operations=-1", "augment.rand_augment.operations must be 0 .off. or more"),
        ("rand_augment.magnitude=11", "augment.rand_augment.magnitude must lie between 0 and 10, got 11"),
        ("rand_augment.deviation=-1", "augment.rand_augment.deviation must be 0 or more"),
        ("rand_augment.probability=1.5", "augment.rand_augment.probability must lie between 0 and 1"),
        ("erase.probability=1.5", "augment.erase.probability must lie between 0 and 1"),
        ("erase.min_area=0.5", "augment.erase.min_area, augment.erase.max_area must ascend within"),
        ("erase.min_aspect=0", "augment.erase.min_aspect, augment.erase.max_aspect must ascend from above 0"),
        ("erase.mode=white", "config key erase.mode: .*'white'"),
        ("erase.probablity=1", "probablity"),
    ],
)
def test_a_wrong_value_is_an_error(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(ColourConfig, None, [override])


def test_an_unknown_mode_is_an_error_without_a_config_file():
    with pytest.raises(ValueError, match=r"augment.erase.mode must be noise or black, got 'white'"):
        EraseConfig(mode="white")
