"""Planes to RGB: the standard's formula, the same bits for any chunk size, black for empty clips."""

import pytest
import torch

from kinemae.data_tools.stream import yuv_to_rgb as module
from kinemae.data_tools.stream.yuv_to_rgb import (
    YuvClips,
    colour_coefficients,
    compiled_to_rgb,
    join,
    map_pixels,
    on_device,
    split_in_time,
    to_luma,
    to_rgb,
)

BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)


def noise(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)


def clips_of(clips=2, frames=4, size=6, shares=BT601, full=False):
    half = (size + 1) // 2
    row = torch.tensor(colour_coefficients(*shares, is_full_range=full), dtype=torch.int32)
    return YuvClips(
        luma_BTHW=noise(clips, frames, size, size),
        chroma_BCTHW=noise(clips, 2, frames, half, half, seed=1),
        colour_BX=row.repeat(clips, 1),
    )


def flat(luma, u, v, *, shares=BT601, full=False):
    """The RGB of one colour."""
    clips = YuvClips.empty(1, 1, 2)
    clips.luma_BTHW[:] = luma
    clips.chroma_BCTHW[:, 0], clips.chroma_BCTHW[:, 1] = u, v
    clips.colour_BX[:] = torch.tensor(colour_coefficients(*shares, is_full_range=full), dtype=torch.int32)
    [colour] = {tuple(rgb) for rgb in clips.rgb().flatten(2)[0].T.tolist()}
    return colour


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shares", [BT601, BT709, BT2020])
def test_the_conversion_is_that_of_the_standard(shares, full):
    clips = clips_of(clips=3, frames=8, size=32, shares=shares, full=full)
    red_share, blue_share = shares
    low, span, reach = (0, 255, 255) if full else (16, 219, 224)
    y = (clips.luma_BTHW.double() - low) / span
    u, v = (
        ((clips.chroma_BCTHW.double() - 128) / reach)
        .repeat_interleave(2, 3)
        .repeat_interleave(2, 4)
        .unbind(1)
    )
    red, blue = y + 2 * (1 - red_share) * v, y + 2 * (1 - blue_share) * u
    green = (y - red_share * red - blue_share * blue) / (1 - red_share - blue_share)
    expected = (255 * torch.stack([red, green, blue], dim=1)).clamp(0, 255)
    assert (clips.rgb().double() - expected).abs().max() < 0.6


@pytest.mark.parametrize(
    "given, full, expected",
    [
        ((16, 128, 128), False, (0, 0, 0)),
        ((235, 128, 128), False, (255, 255, 255)),
        ((126, 128, 128), False, (128, 128, 128)),
        ((0, 128, 128), True, (0, 0, 0)),
        ((255, 128, 128), True, (255, 255, 255)),
        ((0, 0, 255), False, (184, 0, 0)),
        ((255, 255, 0), False, (74, 255, 255)),
    ],
)
def test_black_white_and_the_corners_are_exact(given, full, expected):
    assert flat(*given, full=full) == expected


def test_the_bits_do_not_depend_on_how_much_is_converted_at_once(monkeypatch):
    clips = clips_of(clips=5, frames=7, size=10)
    expected = clips.rgb()
    for most in (1, 100, 250, 1000, 10**6):
        monkeypatch.setattr(module, "_PIXELS_ON_CPU", most)
        assert torch.equal(clips.rgb(), expected)
    assert torch.equal(clips[1:3].rgb(), expected[1:3])


def test_empty_clips_are_black():
    assert not YuvClips.empty(2, 3, 8).rgb().any()


def test_odd_sizes_keep_the_colours_of_the_last_row_and_column():
    clips = clips_of(size=7)
    rgb = clips.rgb()
    assert rgb.shape == (2, 3, 4, 7, 7)
    larger = YuvClips(
        luma_BTHW=torch.nn.functional.pad(clips.luma_BTHW, (0, 1, 0, 1)),
        chroma_BCTHW=clips.chroma_BCTHW,
        colour_BX=clips.colour_BX,
    )
    assert torch.equal(larger.rgb()[..., :7, :7], rgb)


@pytest.mark.slow
def test_the_compiled_conversion_gives_the_same_bits_with_one_graph():
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = compiled_to_rgb()
    assert compiled is compiled_to_rgb(), "a restarted loop compiles nothing again"
    for seed in range(3):
        clips = clips_of(clips=3, size=7, shares=BT709)
        clips.luma_BTHW.copy_(noise(3, 4, 7, 7, seed=seed))
        assert torch.equal(compiled(clips), clips.rgb())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    rgb = clips.rgb()
    assert compiled(rgb) is rgb


def test_clips_are_split_in_time():
    clips = clips_of(clips=2, frames=6)
    parts = split_in_time(clips, 3)
    rgb = clips.rgb()
    expected = torch.cat([rgb[:, :, 0:2], rgb[:, :, 2:4], rgb[:, :, 4:6]])
    assert torch.equal(to_rgb(parts), expected)
    assert torch.equal(split_in_time(rgb, 3), expected)


def test_planes_and_rgb_join_and_move():
    one, two = clips_of(), clips_of(clips=3, full=True)
    together = join([one, two])
    expected = torch.cat([one.rgb(), two.rgb()])
    assert isinstance(together, YuvClips) and torch.equal(together.rgb(), expected)
    assert torch.equal(join([one, two.rgb()]), expected)
    assert torch.equal(on_device(together, torch.device("cpu")), expected)
    assert torch.equal(on_device(expected, torch.device("cpu")), expected)


def test_luma_of_full_range_planes_is_unchanged():
    clips = clips_of(full=True)
    assert torch.equal(to_luma(clips), clips.luma_BTHW)
    grey = map_pixels(lambda tensor: torch.full_like(tensor, 128), clips.chroma_BCTHW)
    flat_clips = YuvClips(luma_BTHW=clips.luma_BTHW, chroma_BCTHW=grey, colour_BX=clips.colour_BX)
    assert torch.equal(to_luma(flat_clips.rgb()), clips.luma_BTHW)


def test_luma_of_rgb_uses_the_weights_of_bt601():
    pixels = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [80, 80, 80]], dtype=torch.uint8)
    clip_BCTHW = pixels.T.reshape(1, 3, 4, 1, 1)
    assert to_luma(clip_BCTHW).flatten().tolist() == [76, 150, 29, 80]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shares", [BT601, BT709, BT2020])
@pytest.mark.parametrize("size", [31, 32])
def test_planes_and_their_rgb_have_the_same_luma_within_rounding(shares, full, size):
    clips = clips_of(clips=3, frames=8, size=size, shares=shares, full=full)
    clips.luma_BTHW.copy_(clips.luma_BTHW // 2 + 64)
    clips.chroma_BCTHW.copy_(clips.chroma_BCTHW // 4 + 96)
    rgb = clips.rgb()
    is_inside = ((rgb > 0) & (rgb < 255)).all(dim=1)
    difference = (to_luma(clips).int() - to_luma(rgb).int()).abs()
    assert is_inside.float().mean() > 0.9
    assert difference[is_inside].max() <= (0 if full and shares == BT601 else 1)


def test_black_planes_have_luma_0():
    assert not to_luma(YuvClips.empty(2, 3, 8)).any()
