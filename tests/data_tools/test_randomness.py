"""Random numbers are functions of their arguments and statistically sound."""

import math

import pytest
import torch

from kinemae.data_tools.randomness import ClipRandom, derived_seed, generator

CLIPS = torch.arange(4000)


def test_different_arguments_give_different_seeds():
    places = [
        derived_seed(seed, purpose=purpose, step=step, sample=sample)
        for seed in range(4)
        for purpose in ("masking", "noise")
        for step in range(4)
        for sample in range(4)
    ]
    assert len(set(places)) == len(places)
    assert all(0 <= place < 2**63 for place in places)


def test_equal_arguments_give_equal_generators_and_others_do_not():
    def draw(**place: int) -> torch.Tensor:
        return torch.rand(5, generator=generator(7, purpose="masking", **place))

    assert torch.equal(draw(step=3, sample=1), draw(step=3, sample=1))
    assert not torch.equal(draw(step=3, sample=1), draw(step=1, sample=3))


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_numbers_of_a_clip_do_not_depend_on_its_batch(draw: str):
    whole = getattr(ClipRandom(1, CLIPS[:8]), draw)("noise", (3, 2))
    for part in (CLIPS[5:6], CLIPS[4:8].flip(0)):
        rows = getattr(ClipRandom(1, part), draw)("noise", (3, 2))
        assert torch.equal(rows, whole[part])


def test_a_longer_draw_starts_with_the_shorter_one():
    draws = ClipRandom(1, CLIPS[:3])
    assert torch.equal(draws.uniform("x", (9,))[:, :4], draws.uniform("x", (4,)))


def test_seeds_purposes_and_distant_clips_differ():
    def draw(seed: int, purpose: str, clip: int) -> torch.Tensor:
        return ClipRandom(seed, torch.tensor([clip])).uniform(purpose, (6,))

    first = draw(0, "a", 5)
    for other in (draw(1, "a", 5), draw(0, "b", 5), draw(0, "a", 6), draw(0, "a", 5 + 2**32)):
        assert (first - other).abs().max() > 0.01


def test_uniform_values_fill_the_open_interval_evenly():
    values_BX = ClipRandom(0, CLIPS).uniform("x", (256,))
    assert values_BX.dtype == torch.float32
    assert values_BX.min() > 0 and values_BX.max() < 1
    counts = torch.histc(values_BX, bins=64, min=0, max=1)
    expected = values_BX.numel() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 63 + 6 * math.sqrt(2 * 63)


def test_the_largest_uniform_value_stays_below_one(monkeypatch: pytest.MonkeyPatch):
    draws = ClipRandom(0, CLIPS[:1])
    for bits, ends in ((2**32 - 1, (0.99, 1.0)), (0, (0.0, 0.01))):
        monkeypatch.setattr(draws, "_bits", lambda purpose, count, bits=bits: torch.full((1, count), bits))
        value = draws.uniform("x", (1,)).item()
        assert ends[0] < value < ends[1]


def test_normal_values_are_normal():
    values_BX = ClipRandom(0, CLIPS).normal("x", (64,)).double()
    count = values_BX.numel()
    assert values_BX.isfinite().all()
    assert values_BX.mean().abs() < 5 / math.sqrt(count)
    assert (values_BX.square().mean() - 1).abs() < 5 * math.sqrt(2 / count)
    assert (values_BX.pow(4).mean() - 3).abs() < 5 * math.sqrt(96 / count)


def test_neighbouring_clips_and_values_are_uncorrelated():
    values_BX = ClipRandom(0, CLIPS).uniform("x", (64,)) - 0.5
    for one, other in (
        (values_BX[1:], values_BX[:-1]),
        (values_BX[:, 1:], values_BX[:, :-1]),
        (values_BX[1:, :-1], values_BX[:-1, 1:]),
        (values_BX, ClipRandom(1, CLIPS).uniform("x", (64,)) - 0.5),
    ):
        correlation = (one * other).mean() * 12
        assert correlation.abs() < 5 / math.sqrt(one.numel())


def test_the_bits_are_murmur3_of_a_counter():
    """Reference with Python integers."""
    clips = [0, 7, 2**31 + 5, 2**32 - 1, 2**33 + 7]
    key = derived_seed(2**40, purpose="x")
    values_BX = ClipRandom(2**40, torch.tensor(clips)).uniform("x", (50,))
    for clip, values_X in zip(clips, values_BX.tolist(), strict=True):
        row = mixed(mixed((clip ^ key) & (2**32 - 1)) ^ clip >> 32 ^ key >> 32)
        for column, value in enumerate(values_X):
            bits = mixed(mixed((row + column * 0x9E3779B9) % 2**32) ^ row)
            assert value == ((bits >> 9) + 0.5) / 2**23


def mixed(bits: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ bits >> shift) * factor % 2**32
    return bits ^ bits >> 16
