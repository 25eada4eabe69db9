"""The view target and SIGReg, against plain formulas."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.sigreg import Projector, epps_pulley, one_process, random_directions, sigreg
from kinemae.pretrain.model.tokens import TokenGrid, take_patches
from kinemae.pretrain.model.view_crops import draw_crops, draw_tokens, take_crop_patches
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.targets.views import ViewTarget
from tests.pretrain.target_models import FOLDER, batch_of, build_model, random_clip

SMALL = {"slices": 64, "hidden": 32, "width": 16}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def even(clips: int) -> Tensor:
    """The share of each clip in a mean over all clips."""
    return torch.full((clips,), 1 / clips)


def statistic(x: Tensor, *, knots: int = 17, t_max: float = 3.0) -> float:
    """Epps-Pulley statistic of one sample."""
    share_B = even(len(x))
    return len(x) * epps_pulley(x.view(-1, 1, 1), share_B, total=one_process, knots=knots, t_max=t_max).item()


def integrated(x: Tensor, t: np.ndarray) -> float:
    """The same with numpy, by the trapezoidal rule over all of `t`."""
    wave = np.exp(1j * t * x.double().numpy()[:, None]).mean(axis=0)
    window = np.exp(-(t**2) / 2)
    return len(x) * np.trapezoid(np.abs(wave - window) ** 2 * window, t)


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.7, 1.0), (0.0, 0.1), (0.0, 3.0)])
def test_the_statistic_equals_an_integration_with_numpy(shift: float, scale: float) -> None:
    x = shift + scale * normal(50)
    assert statistic(x) == pytest.approx(integrated(x, np.linspace(-3, 3, 33)), rel=1e-4)
    assert statistic(x) == pytest.approx(integrated(x, np.linspace(-3, 3, 20001)), rel=0.02)
    fine = statistic(x, knots=401, t_max=5.0)
    assert fine == pytest.approx(integrated(x, np.linspace(-5, 5, 20001)), rel=1e-3)


@pytest.mark.parametrize("clips", [8, 300])
def test_normal_samples_have_the_documented_expected_value(clips: int) -> None:
    """The variance of the empirical characteristic function is (1 - exp(-t^2)) / N."""
    t = np.linspace(-3, 3, 20001)
    assert np.trapezoid((1 - np.exp(-(t**2))) * np.exp(-(t**2) / 2), t) == pytest.approx(1.05, abs=0.005)
    found = [statistic(normal(clips, seed=seed)) for seed in range(100)]
    assert np.mean(found) == pytest.approx(1.05, abs=0.25)


def test_collapsed_embeddings_have_a_large_value_and_a_gradient_away_from_collapse() -> None:
    direction_DX = random_directions(ClipRandom(0, torch.tensor([3])), 16, 256)
    assert direction_DX.norm(dim=0) == pytest.approx(torch.ones(256))
    distance = partial(
        sigreg, slice_DX=direction_DX, share_B=even(64), total=one_process, knots=17, t_max=3.0
    )
    healthy, noise = distance(normal(64, 2, 16)), normal(64, 2, 16)
    line_D1, rest_DX = torch.linalg.qr(normal(16, 16)).Q.split([1, 15], dim=1)
    line_BVD = 4 * normal(64, 2, 1) * line_D1[:, 0]  # of the right size, but in one direction
    for collapsed_BVD in (0.01 * noise, 0.01 * noise + 0.5, line_BVD + 0.01 * noise):
        z_BVD = collapsed_BVD.requires_grad_()
        value = distance(z_BVD)
        assert value > 10 * healthy
        (gradient_BVD,) = torch.autograd.grad(value, z_BVD)
        before, after = ((x_BVD @ rest_DX).std(dim=(0, 1)) for x_BVD in (z_BVD, z_BVD - 1000 * gradient_BVD))
        assert (after > 1.5 * before).all()


def test_statistics_omit_clips_without_a_share() -> None:
    z_BVD, share_B = normal(6, 2, 16), torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0, 0.0])
    projector = Projector(16, 32, 8)
    expected_BVD = projector(z_BVD[:4], even(4), one_process)
    torch.testing.assert_close(projector(z_BVD, share_B, one_process)[:4], expected_BVD)
    given = {"total": one_process, "knots": 17, "t_max": 3.0}
    torch.testing.assert_close(epps_pulley(z_BVD, share_B, **given), epps_pulley(z_BVD[:4], even(4), **given))


def test_the_projector_equals_one_with_the_batch_norm_of_pytorch() -> None:
    torch.manual_seed(0)
    x_BVD, projector = normal(6, 3, 16), Projector(16, 32, 8)
    hidden_BVD = F.batch_norm(projector.fc1(x_BVD).flatten(0, 1), None, None, training=True)
    expected_BVD = projector.fc2(F.gelu(hidden_BVD)).unflatten(0, (6, 3))
    torch.testing.assert_close(projector(x_BVD, even(6), one_process), expected_BVD)


def test_a_crop_equals_bilinear_sampling_of_the_clip() -> None:
    grid, patch = TokenGrid(2, 3, 4), (2, 5, 4)
    clip_BCTHW = random_clip(grid, patch)
    clip_BCTHW = F.interpolate(clip_BCTHW.float(), size=(4, 15, 16)).to(torch.uint8)
    draws = ClipRandom(0, torch.arange(2)).for_masks(3)
    crop_R4 = draw_crops(draws, low=0.1, high=0.6)
    index_RK = draw_tokens(draws, grid, slices=2, count=7)
    patches_RKP = take_crop_patches(clip_BCTHW, crop_R4, index_RK, grid, patch)
    top, left, height, width = crop_R4.unbind(1)
    zero = torch.zeros_like(top)
    affine = torch.stack([width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], dim=1)
    place = F.affine_grid(affine.view(-1, 2, 3), [6, 1, 15, 16], align_corners=False)
    frames = clip_BCTHW.float().repeat_interleave(3, dim=0).flatten(1, 2)
    crops = F.grid_sample(frames, place, padding_mode="border", align_corners=False)
    expected = take_patches(crops.unflatten(1, (3, 4)), index_RK, patch)
    assert (patches_RKP.float() - expected).abs().max() <= 0.5 + 1e-3, "rounded to bytes"
    whole_R4 = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(6, 1)
    whole_RKP = take_crop_patches(clip_BCTHW, whole_R4, index_RK, grid, patch)
    assert torch.equal(whole_RKP, take_patches(clip_BCTHW.repeat_interleave(3, dim=0), index_RK, patch))


def test_crops_have_areas_within_the_range_and_tokens_come_from_successive_slices() -> None:
    draws = ClipRandom(0, torch.arange(500)).for_masks(4)
    top, left, height, width = draw_crops(draws, low=0.2, high=0.5).unbind(1)
    area = height * width
    assert 0.2 <= area.min() < 0.21 and 0.49 < area.max() <= 0.5
    assert (width / height).min() >= 3 / 4 - 1e-5 and (width / height).max() <= 4 / 3 + 1e-5
    assert min(top.min(), left.min()) >= 0 and max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    index_RK = draw_tokens(draws, TokenGrid(5, 2, 3), slices=2, count=9)
    assert (index_RK.diff(dim=1) > 0).all()
    slice_RK = index_RK // 6
    assert (slice_RK.amax(dim=1) - slice_RK.amin(dim=1) == 1).all()
    assert set(slice_RK.amin(dim=1).tolist()) == {0, 1, 2, 3}


def target_of(**arguments: object) -> ViewTarget:
    component = Component(
        name="views", args={**SMALL, "local_views": 3, "local_drop": 0.5, "drop": 0.5, **arguments}
    )
    target = build_component(FOLDER, component, Target)
    assert isinstance(target, ViewTarget)
    return target


def test_the_loss_is_the_distance_to_the_global_views_and_the_weighted_statistic() -> None:
    model = build_model(target_of(global_views=2, local_time=0.5, sigreg_weight=0.3))
    batch = batch_of(random_clip())
    draws = ClipRandom(0, batch.clip_index_B)
    seen: list[Tensor] = []
    model.target.projector.register_forward_hook(lambda module, given, z_BVD: seen.append(z_BVD))
    found = model(batch, draws)
    [z_BVD] = seen
    assert z_BVD.shape == (2, 5, 16)
    centre_BD = (z_BVD[:, 0] + z_BVD[:, 1]) / 2
    expected_B = sum((z_BVD[:, view] - centre_BD).square().mean(dim=1) for view in range(5)) / 5
    torch.testing.assert_close(found["invariance"], expected_B)
    torch.testing.assert_close(found["loss"], expected_B + 0.3 * found["sigreg"])
    slice_DX = random_directions(ClipRandom(0, torch.tensor([0 + 1])), 16, 64)
    values = [statistic(z_BVD[:, view] @ slice_DX[:, i]) for view in range(5) for i in range(64)]
    assert found["sigreg"].tolist() == pytest.approx([np.mean(values)] * 2, rel=1e-4)


def test_views_are_functions_of_seed_clip_and_view() -> None:
    """Other clips and skipped ones do not change them, and the first global view is the masked clip."""
    model = build_model(target_of())
    batch = batch_of(random_clip())
    seen: list[Tensor] = []
    model.target.projector.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for clip_index_B, seed in (([0, 1], 0), ([0, 9], 0), ([0, 1], 1)):
        index_B = torch.tensor(clip_index_B)
        model(replace(batch, clip_index_B=index_B), ClipRandom(seed, index_B))
    one, other_clip, other_seed = seen
    assert torch.equal(one[0], other_clip[0])
    assert not (one[1] == other_clip[1]).all(dim=1).any() and not (one == other_seed).all(dim=2).any()
    assert len(one.flatten(0, 1).unique(dim=0)) == 8
    tokens_BKD = model.encoder(
        model.encoder_inputs(batch, ClipRandom(0, batch.clip_index_B)).patches_BKP, batch.tokens["visible"]
    )
    torch.testing.assert_close(one[:, 0], tokens_BKD.mean(dim=1))


def test_each_mask_of_a_clip_is_a_global_view() -> None:
    model = build_model(target_of())
    batch = batch_of(random_clip())
    tokens = {
        name: torch.stack([index_BK, index_BK.roll(1, 0)], dim=1) for name, index_BK in batch.tokens.items()
    }
    seen: list[Tensor] = []
    model.target.projector.register_forward_hook(lambda module, given, z_BVD: seen.append(z_BVD))
    found = model(replace(batch, tokens=tokens), ClipRandom(0, batch.clip_index_B))
    [z_BVD] = seen
    assert z_BVD.shape == (2, 2 + 3, 16) and found["loss"].shape == (2,)
    centre_B1D = z_BVD[:, :2].mean(dim=1, keepdim=True)
    torch.testing.assert_close(found["invariance"], (z_BVD - centre_B1D).square().mean(dim=(1, 2)))


def test_a_skipped_clip_does_not_change_the_loss_of_others() -> None:
    model = build_model(target_of())
    batch = batch_of(torch.cat([random_clip(), torch.zeros_like(random_clip()[:1])]))
    batch = replace(batch, clip_index_B=torch.tensor([2, 5, 0]), weight_B=torch.tensor([1.0, 1.0, 0.0]))
    readable = replace(
        batch,
        pixels=batch.clip_BCTHW[:2],
        clip_index_B=batch.clip_index_B[:2],
        weight_B=batch.weight_B[:2],
        tokens={name: index_BK[:2] for name, index_BK in batch.tokens.items()},
    )
    values, expected = (model(each, ClipRandom(0, each.clip_index_B)) for each in (batch, readable))
    for name in expected:
        torch.testing.assert_close(values[name][:2], expected[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_views": 0}, "global_views must be at least 1"),
        ({"local_views": 0}, "local_views must be at least 1 with one global view"),
        ({"local_scale": [0.5, 0.2]}, "local_scale must be two ascending numbers"),
        ({"global_scale": 0.5}, "global_scale must be two ascending numbers"),
        ({"local_time": 0.0}, r"local_time must lie in \(0, 1\]"),
        ({"drop": 1.0}, r"drop must lie in \[0, 1\)"),
        ({"local_drop": -0.1}, r"local_drop must lie in \[0, 1\)"),
        ({"sigreg_weight": 0.0}, "sigreg_weight must be above 0: embeddings collapse"),
        ({"slices": 0}, "slices must be at least 1"),
        ({"knots": 1}, "knots must be at least 2"),
        ({"t_max": 0.0}, "t_max must be above 0"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"width": 0}, "width must be at least 1"),
    ],
)
def test_wrong_arguments_are_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"target\.args\.{message}"):
        target_of(**arguments)
