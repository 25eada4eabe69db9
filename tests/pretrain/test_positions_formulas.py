"""Each position embedding against a plain version of its formula."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kinemae.data_tools.components import Component
from kinemae.pretrain.model.positions.base import build_positions
from kinemae.pretrain.model.tokens import TokenGrid

SMALL, LARGE = TokenGrid(2, 3, 4), TokenGrid(4, 5, 4)


def built(name, grid, reference=None, *, width=32, heads=4, **args):
    part = Component(name=name, args=args)
    return build_positions(part, width=width, heads=heads, grid=grid, reference=reference or grid)


@pytest.mark.parametrize("width", [384, 768, 1024])
def test_the_flat_sinusoid_is_the_official_one_to_the_last_bit(width):
    place = np.arange(1568, dtype=np.float64)[:, None]
    angle = place / np.power(10000.0, 2 * (np.arange(width) // 2) / width)
    angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])

    table_ND = built("flat_sine", TokenGrid(8, 14, 14), width=width)(None)

    assert torch.equal(table_ND, torch.from_numpy(angle).float())


@pytest.mark.parametrize("grid, reference", [(LARGE, SMALL), (SMALL, LARGE), (TokenGrid(1, 7, 2), LARGE)])
def test_the_flat_sinusoid_is_resampled_trilinearly(grid, reference):
    own_ND = built("flat_sine", reference)(None)
    volume = own_ND.T.unflatten(1, (reference.t, reference.h, reference.w))[None]
    expected = F.interpolate(volume, size=(grid.t, grid.h, grid.w), mode="trilinear", align_corners=False)

    table_ND = built("flat_sine", grid, reference)(None)

    assert torch.allclose(table_ND, expected[0].flatten(1).T, atol=1e-6)


def test_learned_positions_are_the_sum_of_a_temporal_and_a_spatial_vector():
    positions = built("learned", SMALL)

    table_ND = positions(None)

    for token in range(SMALL.tokens):
        expected_D = positions.temporal[0, token // 12] + positions.spatial[0, token % 12]
        assert torch.equal(table_ND[token], expected_D)


def test_learned_positions_are_initialized_with_a_small_deviation():
    positions = built("learned", TokenGrid(8, 14, 14), width=96)
    for table in positions.parameters():
        assert table.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(table.mean().item()) < 0.002


@pytest.mark.parametrize("grid, reference", [(LARGE, SMALL), (SMALL, LARGE), (TokenGrid(2, 6, 8), SMALL)])
def test_learned_positions_are_resampled_as_by_interpolate(grid, reference):
    torch.manual_seed(0)
    positions = built("learned", grid, reference)
    time = F.interpolate(positions.temporal.mT, size=grid.t, mode="linear", align_corners=False)[0].T
    picture = positions.spatial.mT.unflatten(2, (reference.h, reference.w))
    space = F.interpolate(picture, size=(grid.h, grid.w), mode="bilinear", align_corners=False)
    expected_ND = (time[:, None] + space[0].flatten(1).T).flatten(0, 1)

    assert torch.allclose(positions(None), expected_ND, atol=1e-7)


def test_sine_positions_use_fractional_coordinates():
    table_ND = built("sine", LARGE, SMALL)(None)
    for token in (0, 37, LARGE.tokens - 1):
        t, h, w = token // 20, token // 4 % 5, token % 4
        places = [(t + 0.5) * 2 / 4 - 0.5, (h + 0.5) * 3 / 5 - 0.5, w]
        waves = [
            wave(place / 10000 ** (i / (channels // 2)))
            for place, channels in zip(places, (12, 10, 10), strict=True)
            for wave in (math.sin, math.cos)
            for i in range(channels // 2)
        ]
        assert table_ND[token].tolist() == pytest.approx(waves, abs=1e-6)


def turned_by_hand(query_F, place, theta):
    """Channels of a head as complex numbers, rotated axis by axis."""
    half = len(query_F) // 2
    each = half // 3
    pairs = [complex(query_F[i], query_F[i + half]) for i in range(half)]
    for axis, coordinate in enumerate(place):
        for i in range(each):
            pairs[axis * each + i] *= np.exp(1j * coordinate * theta ** (-i / each))
    return [pair.real for pair in pairs] + [pair.imag for pair in pairs]


@pytest.mark.parametrize("head_width", [6, 16, 64])
@pytest.mark.parametrize("grid, reference", [(SMALL, SMALL), (LARGE, SMALL)])
def test_rotary_positions_rotate_complex_numbers(head_width, grid, reference):
    positions = built("rotary", grid, reference, width=2 * head_width, heads=2, theta=100.0)
    token = grid.tokens - 6
    t, h, w = token // grid.per_slice, token // grid.w % grid.h, token % grid.w
    place = [
        (i + 0.5) * theirs / own - 0.5
        for i, own, theirs in zip(
            (t, h, w), (grid.t, grid.h, grid.w), (reference.t, reference.h, reference.w), strict=True
        )
    ]
    query_F = torch.randn(head_width)

    turned = positions.rotation(torch.tensor([[token]]))(query_F[None, None, None])[0, 0, 0]

    assert turned.tolist() == pytest.approx(turned_by_hand(query_F.tolist(), place, 100.0), abs=1e-5)


def test_rotary_scores_depend_on_the_distance_only():
    grid = TokenGrid(6, 8, 9)
    positions = built("rotary", grid, width=128, heads=2)
    query, key = torch.randn(2, 1, 1, 1, 64)

    def score(query_at, key_at):
        first, second = (
            positions.rotation(torch.tensor([[(t * grid.h + h) * grid.w + w]]))
            for t, h, w in (query_at, key_at)
        )
        return (first(query) * second(key)).sum().item()

    for distance in [(0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, -4), (1, -2, 3)]:
        starts = [(0, 2, 4), (3, 4, 5), (3, 2, 4)]
        scores = [score(at, [a + d for a, d in zip(at, distance, strict=True)]) for at in starts]
        assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    ahead, back = score((2, 3, 4), (4, 3, 4)), score((4, 3, 4), (2, 3, 4))
    assert abs(ahead - back) > 1e-2, "the direction matters too"


def test_rotary_positions_rotate_bfloat16_in_float32():
    grid = TokenGrid(64, 2, 2)
    rotate = built("rotary", grid, width=64, heads=1).rotation(torch.arange(grid.tokens)[None])
    query_BANF = torch.randn(1, 1, grid.tokens, 64).bfloat16()

    turned_BANF = rotate(query_BANF)

    assert turned_BANF.dtype == torch.bfloat16
    assert torch.equal(turned_BANF, rotate(query_BANF.float()).bfloat16()), "rounded once, at the end"


@pytest.mark.parametrize("width, heads", [(8, 2), (14, 2), (16, 4)])
def test_rotary_positions_refuse_heads_without_a_pair_for_each_axis(width, heads):
    with pytest.raises(
        ValueError, match=f"even width of at least 6.*got {width // heads}: change model.heads"
    ):
        built("rotary", SMALL, width=width, heads=heads)


def test_rotary_positions_refuse_wavelengths_that_shrink():
    with pytest.raises(ValueError, match=r"model.positions.args.theta must be above 1, got 0.5"):
        built("rotary", SMALL, theta=0.5)
