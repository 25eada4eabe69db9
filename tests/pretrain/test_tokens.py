import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinemae.pretrain.model.positions.sine import SinePositions
from kinemae.pretrain.model.tokens import (
    MEAN,
    STD,
    TokenGrid,
    denormalize,
    gather_tokens,
    normalize,
    patchify,
    standardize,
    take_patches,
    to_bytes,
    unpatchify,
)

PATCH = (2, 4, 4)


def random_clip(clips=2, frames=4, size=12):
    shape = (clips, 3, frames, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@given(t=st.integers(1, 3), h=st.integers(1, 3), frames=st.integers(1, 3), pixels=st.integers(1, 4))
def test_unpatchify_undoes_patchify(t, h, frames, pixels):
    patch = (frames, pixels, pixels)
    clip_BCTHW = random_clip(2, t * frames, h * pixels)
    grid = TokenGrid.of(t * frames, h * pixels, patch)
    patches_BNP = patchify(clip_BCTHW, patch)
    assert patches_BNP.shape == (2, grid.tokens, frames * pixels * pixels * 3)
    assert torch.equal(unpatchify(patches_BNP, grid, patch), clip_BCTHW)


def test_patches_are_in_time_row_column_order_and_values_in_frame_row_column_channel_order():
    clip_BCTHW = random_clip()
    grid = TokenGrid.of(4, 12, PATCH)
    patches_BNP = patchify(clip_BCTHW, PATCH)
    for t, h, w in [(0, 0, 1), (1, 2, 0), (1, 1, 2)]:
        block_CTHW = clip_BCTHW[1, :, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
        number = t * grid.per_slice + h * grid.w + w
        assert torch.equal(patches_BNP[1, number], block_CTHW.permute(1, 2, 3, 0).flatten())


def test_taking_some_patches_equals_gathering_from_all():
    clip_BCTHW = random_clip()
    index_BK = torch.tensor([[0, 17, 5, 5], [9, 1, 8, 16]])
    assert torch.equal(
        take_patches(clip_BCTHW, index_BK, PATCH), gather_tokens(patchify(clip_BCTHW, PATCH), index_BK)
    )


def test_standardized_clips_have_one_mean_and_deviation_whatever_their_contrast():
    clip_BCTHW = random_clip(3)
    dark_BCTHW = (clip_BCTHW.float() * 0.3 + 20).round().to(torch.uint8)
    flat_BCTHW = torch.full_like(clip_BCTHW, 7)
    given_BCTHW = torch.cat([clip_BCTHW, dark_BCTHW, flat_BCTHW])
    found_BCTHW = standardize(given_BCTHW)
    mean, deviation = 255 * sum(MEAN) / 3, 255 * sum(STD) / 3
    value_BX = found_BCTHW[:6].flatten(1).double()
    assert (value_BX.mean(dim=1) - mean).abs().max() < 0.1
    assert (value_BX.std(dim=1) - deviation).abs().max() < 0.2
    assert (found_BCTHW[:3].int() - found_BCTHW[3:6].int()).abs().max() <= 2  # rounding of the dark clip
    assert (found_BCTHW[6:] == round(mean)).all()
    for each_CTHW, one_CTHW in zip(found_BCTHW, given_BCTHW, strict=True):
        assert standardize(one_CTHW[None])[0].equal(each_CTHW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16])
def test_pixels_of_another_dtype_than_uint8_are_refused(dtype):
    patches_BNP = patchify(random_clip(), PATCH).to(dtype)
    with pytest.raises(ValueError, match=r"pixels: expected uint8 from 0 to 255, got torch\..*; fix: pass"):
        normalize(patches_BNP)


def test_normalized_patches_are_in_deviations_from_the_colours_mean():
    patches_BNP = patchify(random_clip(), PATCH)
    pixels = patches_BNP.unflatten(2, (-1, 3)).double() / 255
    expected = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(normalize(patches_BNP), expected.flatten(2).float(), atol=1e-6, rtol=0)


def test_denormalize_inverts_normalize():
    patches_BNP = patchify(random_clip(), PATCH)
    assert torch.equal(to_bytes(denormalize(normalize(patches_BNP))), patches_BNP)


@pytest.mark.parametrize("frames, size", [(3, 12), (4, 10), (0, 12)])
def test_a_clip_that_is_not_whole_patches_is_refused_with_the_keys_to_change(frames, size):
    expected = f"a clip of {frames} frames at {size}x{size} cannot be cut .*clip.frames .*model.patch_frames"
    with pytest.raises(ValueError, match=expected):
        TokenGrid.of(frames, size, PATCH)


def test_patchify_refuses_such_a_clip_too():
    with pytest.raises(ValueError, match="cannot be cut"):
        patchify(random_clip(size=10), PATCH)


@pytest.mark.parametrize("width", [6, 16, 32, 96, 768, 1024, 1408])
def test_every_token_has_its_own_position_at_any_width(width):
    grid = TokenGrid(4, 5, 3)
    positions_ND = SinePositions(width=width, heads=1, grid=grid, reference=grid)(None)
    assert positions_ND.shape == (grid.tokens, width)
    assert torch.cdist(positions_ND, positions_ND).add(torch.eye(grid.tokens)).min() > 1e-3


def test_positions_are_separable_sines_and_cosines():
    grid, width = TokenGrid(2, 3, 4), 12
    positions = SinePositions(width=width, heads=1, grid=grid, reference=grid)(None).view(
        2, 3, 4, 3, 2, 2
    )  # t, h, w, axis, sine or cosine, frequency
    frequency = torch.tensor([1.0, 1e-2])
    for axis, place in enumerate((1, 2, 3)):
        angle = place * frequency
        torch.testing.assert_close(positions[1, 2, 3, axis, 0], angle.sin())
        torch.testing.assert_close(positions[1, 2, 3, axis, 1], angle.cos())
