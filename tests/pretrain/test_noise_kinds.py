"""Noise kinds by statistics and against plain loops."""

from itertools import pairwise

import pytest
import torch

from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import MEAN, STD, TokenGrid, denormalize, normalize, unpatchify
from kinemae.pretrain.noise.correlated import CorrelatedNoise
from kinemae.pretrain.noise.frames import FrameNoise
from kinemae.pretrain.noise.gaussian import GaussianNoise
from kinemae.pretrain.noise.photometric import PhotometricNoise
from kinemae.pretrain.noise.several import SeveralNoises
from kinemae.pretrain.noise.token import TokenNoise

GRID = TokenGrid(4, 3, 3)
PATCH = (2, 4, 4)
CLIPS = 60
DRAWS = ClipRandom(0, torch.arange(CLIPS))


def on_zeros(noise, *, level=1.0, clips=CLIPS):
    """Noise added to all patches of the grid, as (clips, N, P)."""
    return noise.on_patches(
        torch.zeros(clips, GRID.tokens, 96),
        torch.full((clips,), level),
        ClipRandom(0, torch.arange(clips)),
        positions=TokenPositions(grid=GRID, index_BN=torch.arange(GRID.tokens).expand(clips, -1)),
        patch=PATCH,
    )


def frames_of(noise):
    """Noise added to all frames, as (clips, T, values of one frame)."""
    return unpatchify(on_zeros(noise), GRID, PATCH).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kind", [GaussianNoise, CorrelatedNoise])
def test_pixel_noise_has_the_given_deviation(kind):
    for level in (1.0, 0.3):
        noise_BNP = on_zeros(kind(std=0.5), level=level)
        assert noise_BNP.std().item() == pytest.approx(0.5 * level, rel=0.03)
        assert abs(noise_BNP.mean().item()) < 0.02


def test_gaussian_noise_is_independent_from_frame_to_frame():
    assert abs(correlation(frames_of(GaussianNoise()), lag=1)) < 0.01


def test_gaussian_noise_has_fixed_values():
    level_B = GaussianNoise(std=0.3).level(torch.zeros(CLIPS), DRAWS)
    strength_B11 = 0.3 * DRAWS.uniform("noise/strength", (1, 1))
    assert torch.equal(0.3 * level_B, strength_B11.flatten())
    expected_BNP = 0.3 * DRAWS.normal("noise/values", (GRID.tokens, 96))
    assert torch.equal(on_zeros(GaussianNoise(std=0.3)), expected_BNP)


def test_each_clip_draws_a_deviation_within_the_bounds():
    level_B = GaussianNoise(std=1.0, min_std=0.2).level(torch.zeros(500), ClipRandom(0, torch.arange(500)))
    assert 0.2 <= level_B.min() < 0.22 and 0.98 < level_B.max() <= 1


@pytest.mark.parametrize("arguments", [{"std": -1.0}, {"std": 0.1, "min_std": 0.2}, {"min_std": -0.1}])
def test_impossible_deviations_are_refused(arguments):
    with pytest.raises(ValueError, match=r"noise.args must hold 0 <= min_std <= std, got min_std="):
        GaussianNoise(**arguments)


def test_min_std_with_min_level_is_refused():
    with pytest.raises(ValueError, match=r"noise.args.min_std must be omitted if .*min_level is set"):
        GaussianNoise(std=1.0, min_std=0.2, strength={"min_level": 0.2})


def test_noise_with_a_deviation_of_0_changes_no_patches():
    assert not GaussianNoise(std=0.0).is_on_patches and not CorrelatedNoise(std=0.0).is_on_patches


def test_token_noise_is_relative_to_each_tokens_size():
    size_K1 = torch.tensor([0.1, 1.0, 30.0])[:, None]
    x_BKD = size_K1 * torch.randn(CLIPS, 3, 400, generator=torch.Generator().manual_seed(0))
    added_BKD = TokenNoise(std=0.4).on_tokens(x_BKD, torch.full((CLIPS,), 0.5), DRAWS) - x_BKD
    ratio_BK = added_BKD.square().mean(dim=2).sqrt() / x_BKD.square().mean(dim=2).sqrt()
    torch.testing.assert_close(ratio_BK.mean(dim=0), torch.full((3,), 0.2), rtol=0.02, atol=0)


def test_the_gradient_includes_the_relative_size_of_the_noise():
    """A loss that is invariant to the scale of noisy tokens has no gradient along the scale."""
    x_BKD = torch.randn(CLIPS, 3, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noisy_BKD = TokenNoise(std=0.5).on_tokens(x_BKD, torch.ones(CLIPS), DRAWS)
    torch.nn.functional.normalize(noisy_BKD, dim=2)[..., 0].sum().backward()
    assert (x_BKD.grad * x_BKD.detach()).sum(dim=2).abs().max() < 1e-5 < x_BKD.grad.abs().max()


def test_a_token_of_zeros_has_a_finite_gradient():
    x_BKD = torch.zeros(CLIPS, 3, 20, requires_grad=True)
    TokenNoise().on_tokens(x_BKD, torch.ones(CLIPS), DRAWS).sum().backward()
    assert x_BKD.grad.isfinite().all()


def correlation(frames_BTX, lag):
    """Correlation of values at one position with those `lag` frames later."""
    later, earlier = frames_BTX[:, lag:], frames_BTX[:, : frames_BTX.shape[1] - lag]
    return ((later * earlier).mean() / frames_BTX.square().mean()).item()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_correlated_noise_has_the_given_autocorrelation(share):
    frames_BTX = frames_of(CorrelatedNoise(correlation=share))
    for lag in (1, 2, 3):
        assert correlation(frames_BTX, lag) == pytest.approx(share**lag, abs=0.05)
    # As strong at the end as at the start.
    assert (frames_BTX[:, -1].std() / frames_BTX[:, 0].std()).item() == pytest.approx(1, abs=0.1)


def test_noise_with_correlation_1_is_constant():
    frames_BTX = frames_of(CorrelatedNoise(correlation=1.0))
    assert torch.equal(frames_BTX, frames_BTX[:, :1].expand_as(frames_BTX))


@pytest.mark.parametrize("rank", [1, 3])
def test_the_noise_of_a_clip_has_the_given_rank(rank):
    by_frame = on_zeros(CorrelatedNoise(rank=rank, correlation=0.5)).unflatten(2, (PATCH[0], -1))
    assert (torch.linalg.matrix_rank(by_frame.flatten(1, 2), rtol=1e-4) == rank).all()


def test_correlated_noise_of_a_token_does_not_depend_on_other_tokens():
    noise, whole_BNP = CorrelatedNoise(), on_zeros(CorrelatedNoise())
    visible_BK = torch.tensor([3, 17, 35]).expand(CLIPS, -1)
    some_BKP = noise.on_patches(
        torch.zeros(CLIPS, 3, 96),
        torch.ones(CLIPS),
        DRAWS,
        positions=TokenPositions(grid=GRID, index_BN=visible_BK),
        patch=PATCH,
    )
    assert torch.equal(some_BKP, whole_BNP[:, [3, 17, 35]])


def numbered_clip(frames):
    """Each frame shows its own number."""
    clip_CTHW = torch.arange(frames, dtype=torch.uint8)[:, None, None].expand(3, -1, 4, 4)
    return clip_CTHW.expand(CLIPS, -1, -1, -1, -1)


def shown(noise, *, level=1.0, frames=16):
    """Numbers of the frames in the encoder's input, (clips, T)."""
    noisy_BCTHW = noise.on_clip(numbered_clip(frames), torch.full((CLIPS,), level), DRAWS)
    assert torch.equal(noisy_BCTHW, noisy_BCTHW[:, :1, :, :1, :1].expand_as(noisy_BCTHW))
    return noisy_BCTHW[:, 0, :, 0, 0].long()


def test_a_dropped_frame_shows_the_one_before_it():
    share = 0.0
    for row in shown(FrameNoise(drop=0.4, jitter=1.0)).tolist():
        assert row[0] == 0
        assert all(number in (t, before) for t, (before, number) in enumerate(pairwise(row), start=1))
        share += sum(number != t for t, number in enumerate(row)) / 15 / CLIPS
    assert share == pytest.approx(0.4, abs=0.05)


def test_a_lower_level_drops_fewer_frames():
    late_BT = shown(FrameNoise(drop=0.8, jitter=1.0), level=0.25) != torch.arange(16)
    assert late_BT[:, 1:].float().mean().item() == pytest.approx(0.2, abs=0.05)


def test_with_all_frames_dropped_the_first_is_repeated():
    assert not shown(FrameNoise(drop=1.0, jitter=1.0)).any()


@pytest.mark.parametrize("level", [1.0, 0.5])
def test_the_speed_changes_by_at_most_the_factor_around_the_middle(level):
    shown_BT = shown(FrameNoise(drop=0.0, jitter=2.0), level=level)
    most = 2.0**level
    speeds = []
    for row in shown_BT.tolist():
        # The speed shows in frames that are not clamped at the ends: fit it by search.
        fits = [
            speed
            for speed in torch.linspace(1 / most, most, 400).tolist()
            if row == [min(max(round(7.5 + speed * (t - 7.5)), 0), 15) for t in range(16)]
        ]
        assert fits
        speeds.append(fits[0])
    assert min(speeds) < 0.5 / most + 0.5 and max(speeds) > 0.5 * most + 0.5


def test_photometric_noise_is_its_formula_in_pixels():
    noise = PhotometricNoise(brightness=0.3, contrast=0.5, saturation=0.7)
    pixels = torch.randint(0, 256, (CLIPS, 5, 96), generator=torch.Generator().manual_seed(0)).byte()
    level_B = torch.linspace(0.1, 1, CLIPS)
    noisy_BKP = noise.on_patches(
        normalize(pixels), level_B, DRAWS, positions=TokenPositions(grid=GRID), patch=PATCH
    )
    found = denormalize(noisy_BKP).unflatten(2, (-1, 3))
    mean_C, std_C = torch.tensor(MEAN), torch.tensor(STD)
    for clip, level in enumerate(level_B.tolist()):
        b, c, s = (level * (2 * DRAWS.uniform("noise/photometric", (3,))[clip] - 1)).tolist()
        p = pixels[clip].unflatten(1, (-1, 3)) / 255
        grey = mean_C + std_C * ((p - mean_C) / std_C).mean(dim=-1, keepdim=True)
        p = p + 0.7 * s * (p - grey)
        p = mean_C + (1 + 0.5 * c) * (p - mean_C) + 0.3 * b * std_C
        torch.testing.assert_close(found[clip], p, atol=1e-5, rtol=0)


def test_several_noises_apply_their_parts_in_order_at_one_level():
    parts = {"photometric": {"brightness": 1.0}, "gaussian": {"std": 0.3}, "token": {}, "frames": {}}
    noise = SeveralNoises(parts=parts, strength={"min_level": 0.4})
    level_B = noise.level(torch.zeros(CLIPS), DRAWS)
    assert level_B.min() >= 0.4 and level_B.std() > 0.1
    x_BKP = torch.randn(CLIPS, 5, 96, generator=torch.Generator().manual_seed(0))
    where = {"positions": TokenPositions(grid=GRID), "patch": PATCH}
    lit_BKP = PhotometricNoise(brightness=1.0).on_patches(x_BKP, level_B, DRAWS, **where)
    expected_BKP = GaussianNoise(std=0.3).on_patches(lit_BKP, level_B, DRAWS, **where)
    assert torch.equal(noise.on_patches(x_BKP, level_B, DRAWS, **where), expected_BKP)
    assert torch.equal(noise.on_tokens(x_BKP, level_B, DRAWS), TokenNoise().on_tokens(x_BKP, level_B, DRAWS))
    clip_BCTHW = numbered_clip(16)
    assert torch.equal(
        noise.on_clip(clip_BCTHW, level_B, DRAWS), FrameNoise().on_clip(clip_BCTHW, level_B, DRAWS)
    )


def test_several_noises_are_on_patches_if_one_of_them_is():
    assert SeveralNoises(parts={"frames": {}, "gaussian": {}}).is_on_patches
    assert not SeveralNoises(parts={"frames": {}, "token": {}}).is_on_patches


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (TokenNoise, {"std": -0.1}, "noise.args.std must be 0 or more, got -0.1"),
        (CorrelatedNoise, {"std": -0.1}, "noise.args.std must be 0 or more, got -0.1"),
        (CorrelatedNoise, {"rank": 0}, "noise.args.rank must be at least 1, got 0"),
        (CorrelatedNoise, {"correlation": 1.1}, "noise.args.correlation must lie between 0 and 1, got 1.1"),
        (FrameNoise, {"drop": 1.5}, "noise.args.drop must lie between 0 and 1, got 1.5"),
        (FrameNoise, {"jitter": 0.9}, r"noise.args.jitter must be at least 1 \(none\), got 0.9"),
        (PhotometricNoise, {"brightness": -1.0}, "noise.args.brightness must be 0 or more, got -1.0"),
        (PhotometricNoise, {"contrast": 1.2}, "noise.args.contrast must lie between 0 and 1, got 1.2"),
        (PhotometricNoise, {"saturation": -0.2}, "noise.args.saturation must lie between 0 and 1, got -0.2"),
        (SeveralNoises, {"parts": {}}, "noise.args.parts must name at least one noise"),
        (SeveralNoises, {"parts": {"several": {}}}, "parts.several must be a noise that is neither several"),
        (
            SeveralNoises,
            {"parts": {"none": {}}},
            "parts.none must be a noise that is neither",
        ),
        (SeveralNoises, {"parts": {"gaussian": 0.5}}, "parts.gaussian must hold the kind's arguments"),
        (SeveralNoises, {"parts": {"gausian": {}}}, "parts.gausian: .* did you mean 'gaussian'"),
        (SeveralNoises, {"parts": {"token": {"std": -1}}}, "parts.token: noise.args.std must be 0 or more"),
        (SeveralNoises, {"parts": {"gaussian": {"min_std": 0.1}}}, "parts.gaussian must have no strength of"),
        (
            SeveralNoises,
            {"parts": {"token": {"strength": {"min_level": 1}}}},
            "token must have no strength of",
        ),
    ],
)
def test_invalid_arguments_are_refused_by_key(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
