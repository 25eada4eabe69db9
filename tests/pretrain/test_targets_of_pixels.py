"""Pixel, motion and HOG targets against plain formulas and the code of the papers."""

import math

import numpy as np
import pytest
import torch

from kinemae.data_tools.components import Component, build_component
from kinemae.pretrain.model.tokens import TokenGrid, gather_tokens, normalize, patchify
from kinemae.pretrain.targets.base import DecoderTarget, Prediction, Target
from kinemae.pretrain.targets.hog import HogTarget
from kinemae.pretrain.targets.motion import MotionTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from tests.pretrain.target_models import (
    GRID,
    PATCH,
    TARGET,
    VISIBLE,
    build_model,
    random_clip,
    small_config,
    target_inputs,
    wanted_pixels,
)


def test_channel_normalization_is_videomaes_formula() -> None:
    clip_BCTHW = random_clip()
    target_BMP = PixelTarget(normalize="channel").compute_target(target_inputs(clip_BCTHW))
    pixels = wanted_pixels(clip_BCTHW).double().view(2, 3, 32, 3) / 255
    for colour in range(3):
        values = pixels[1, 2, :, colour]
        expected = (values - values.mean()) / (values.var(unbiased=True).sqrt() + 1e-6)
        actual = target_BMP[1, 2].view(32, 3)[:, colour]
        torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=0)


def mae_st_target(clip_BCTHW: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """All tokens' targets as MAE-ST makes them from a clip of 16 frames and patches of (2, 4, 4)."""
    video = (clip_BCTHW.double() / 255 - mean) / std
    picked = video.index_select(2, torch.linspace(0, 15, 8).long())
    cut = picked.reshape(2, 3, 8, 1, 2, 4, 2, 4)  # n, c, t, u, h, p, w, q
    values_BNP = torch.einsum("nctuhpwq->nthwupqc", cut).reshape(2, 32, 48)
    spread = (values_BNP.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
    return (values_BNP - values_BNP.mean(dim=-1, keepdim=True)) / spread


@pytest.mark.parametrize("low, high", [(0, 256), (100, 102)])
def test_patch_normalization_of_one_frame_is_mae_sts(low: int, high: int) -> None:
    # With two neighbouring grey levels the variance is near 1e-6, so that its scale matters.
    clip_BCTHW = torch.cat([random_clip(low=low, high=high)] * 4, dim=2).roll(3, dims=3)
    target_BM = torch.stack([torch.randperm(32) for _ in range(2)])
    target = PixelTarget(normalize="patch", frames="one")
    known = target_inputs(clip_BCTHW, target_BM=target_BM, mean=(0.45,) * 3, std=(0.225,) * 3)
    expected_BMP = gather_tokens(mae_st_target(clip_BCTHW, 0.45, 0.225), target_BM)
    assert target.target_values(small_config().shape().encoder) == expected_BMP.shape[2]
    torch.testing.assert_close(target.compute_target(known), expected_BMP.float(), atol=2e-4, rtol=1e-5)


def test_one_frame_per_slice_is_the_first_except_in_the_last_slices() -> None:
    clip_BCTHW = torch.arange(16, dtype=torch.uint8)[None, None, :, None, None].expand(2, 3, 16, 4, 4)
    target_BM = torch.arange(8).expand(2, -1)
    target = PixelTarget(normalize="none", frames="one")
    known = target_inputs(clip_BCTHW, target_BM=target_BM, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    frames = target.compute_target(known)[0, :, 0].round().int().tolist()
    assert frames == [0, 2, 4, 6, 8, 10, 12, 15] == torch.linspace(0, 15, 8).long().tolist()


def test_patch_normalization_of_all_frames_is_over_all_values_of_a_patch() -> None:
    values_BMP = normalize(wanted_pixels(random_clip())).double()
    mean, variance = values_BMP.mean(dim=2, keepdim=True), values_BMP.var(dim=2, keepdim=True)
    expected_BMP = (values_BMP - mean) / (variance + 1e-6).sqrt()
    actual_BMP = PixelTarget(normalize="patch").compute_target(target_inputs(random_clip()))
    torch.testing.assert_close(actual_BMP, expected_BMP.float(), atol=1e-5, rtol=0)


def test_without_normalization_the_target_is_in_units_of_the_encoder_input() -> None:
    actual_BMP = PixelTarget(normalize="none").compute_target(target_inputs(random_clip()))
    assert torch.equal(actual_BMP, normalize(wanted_pixels(random_clip())))


@pytest.mark.parametrize("kind", ["channel", "patch", "none"])
def test_with_true_statistics_a_perfect_prediction_is_the_clip(kind: str) -> None:
    target, known = PixelTarget(normalize=kind), target_inputs(random_clip())
    picture_BMP = target.to_pixels(target.compute_target(known), known, visible_only=False)
    assert torch.equal(picture_BMP, wanted_pixels(random_clip()))


def test_a_single_predicted_frame_is_repeated_in_its_patch() -> None:
    target, known = PixelTarget(normalize="patch", frames="one"), target_inputs(random_clip())
    picture = target.to_pixels(target.compute_target(known), known, visible_only=False).view(2, 3, 2, 48)
    clip = patchify(random_clip(), PATCH).view(2, 8, 2, 48)
    for b, m in np.ndindex(2, 3):
        token = int(TARGET[b, m])
        assert (picture[b, m] == clip[b, token, token // 4]).all()  # slice 0: its first frame; 1: its second


@pytest.mark.parametrize("kind", ["channel", "patch", "none"])
def test_visible_only_pictures_do_not_depend_on_hidden_pixels(kind: str) -> None:
    target, clip_BCTHW = PixelTarget(normalize=kind), random_clip()
    prediction_BMP = target.compute_target(target_inputs(clip_BCTHW))
    other_BCTHW = clip_BCTHW.clone()
    other_BCTHW[0, :, 2:, 4:, 4:] = 0  # token 7 of clip 0, a target token
    assert not torch.equal(target.compute_target(target_inputs(other_BCTHW)), prediction_BMP)
    pictures = [
        target.to_pixels(prediction_BMP, target_inputs(clip), visible_only=True)
        for clip in (clip_BCTHW, other_BCTHW)
    ]
    assert torch.equal(*pictures)


def test_visible_only_pictures_use_statistics_of_near_visible_patches() -> None:
    clip_BCTHW = torch.zeros(1, 3, 1, 4, 32, dtype=torch.uint8)
    clip_BCTHW[..., 16:] = 200  # eight tokens in a row, the left half black and the right half bright
    target_BM, visible_BK = torch.tensor([[1, 6]]), torch.tensor([[0, 7]])
    known = target_inputs(clip_BCTHW, target_BM=target_BM, visible_BK=visible_BK, patch=(1, 4, 4))
    picture_BMP = PixelTarget().to_pixels(torch.zeros(1, 2, 48), known, visible_only=True)
    dark, bright = picture_BMP[0, 0].float().mean(), picture_BMP[0, 1].float().mean()
    assert dark < 20 and bright > 180


@pytest.mark.parametrize("kind", ["channel", "patch", "none"])
def test_motion_is_the_next_frame_less_this_one(kind: str) -> None:
    clip_BCTHW, std = random_clip(), (0.229, 0.224, 0.225)
    actual = MotionTarget(normalize=kind).compute_target(target_inputs(clip_BCTHW)).view(2, 3, *PATCH, 3)
    for b, m in np.ndindex(2, 3):
        slice_, row, column = (int(i) for i in np.unravel_index(int(TARGET[b, m]), (GRID.t, GRID.h, GRID.w)))
        expected = torch.zeros(*PATCH, 3, dtype=torch.float64)
        for frame, y, x, colour in np.ndindex(*PATCH, 3):
            now = min(slice_ * 2 + frame, 2)  # of the last frame, the difference before it
            place = (colour, slice(None), row * 4 + y, column * 4 + x)
            line_T = clip_BCTHW[b][place].double() / 255
            expected[frame, y, x, colour] = line_T[now + 1] - line_T[now]
        if kind == "none":
            expected /= torch.tensor(std)
        else:
            dims = (0, 1, 2) if kind == "channel" else (0, 1, 2, 3)
            spread = (expected.var(dim=dims, keepdim=True) + (2 / 255) ** 2).sqrt()
            expected = (expected - expected.mean(dim=dims, keepdim=True)) / spread
        torch.testing.assert_close(actual[b, m], expected.float(), atol=1e-5, rtol=1e-5)


def test_differences_normalized_by_clip_keep_their_mean_and_their_ratios() -> None:
    known = target_inputs(random_clip())
    scale_B = (
        random_clip().double().diff(dim=2).div(255).square().mean(dim=(1, 2, 3, 4)) + (2 / 255) ** 2
    ).sqrt()
    plain = target_inputs(random_clip(), mean=(0.0,) * 3, std=(1.0,) * 3)
    expected_BMP = MotionTarget(normalize="none").compute_target(plain).double() / scale_B[:, None, None]
    actual_BMP = MotionTarget(normalize="clip").compute_target(known)
    torch.testing.assert_close(actual_BMP, expected_BMP.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", [MotionTarget(normalize="clip"), PixelTarget(motion_weight=1.0)])
def test_each_mask_of_a_clip_has_the_loss_that_it_has_alone(target: DecoderTarget) -> None:
    guess_BMP = torch.randn((4, 3, 96), generator=torch.Generator().manual_seed(3))
    masks_BM, clip_BCTHW = torch.stack([TARGET, TARGET.flip(0)], dim=1).flatten(0, 1), random_clip()

    def loss(clips: torch.Tensor, rows: slice) -> torch.Tensor:
        known = target_inputs(clips, target_BM=masks_BM[rows])
        return target.losses(Prediction(decoded_BMP=guess_BMP[rows]), known)["loss"]

    both_B = loss(clip_BCTHW, slice(0, 4))
    alone = [loss(clip_BCTHW[row // 2, None], slice(row, row + 1)) for row in range(4)]
    torch.testing.assert_close(both_B, torch.cat(alone))


@pytest.mark.parametrize("kind", ["channel", "clip", "none"])
def test_with_slices_of_one_frame_each_token_has_one_difference_and_the_last_one_repeats(kind: str) -> None:
    clip_BCTHW = random_clip()
    target_BM = torch.arange(16).expand(2, -1)  # all tokens of 4 slices of 2 x 2
    known = target_inputs(clip_BCTHW, target_BM=target_BM, patch=(1, 4, 4))
    slices = MotionTarget(normalize=kind).compute_target(known).view(2, 4, 4, 16, 3)
    assert torch.equal(slices[:, 3], slices[:, 2])
    if kind != "channel":  # in proportion to the difference
        now, later = (patchify(clip_BCTHW[:, :, t : t + 1], (1, 4, 4)).view(2, 4, 16, 3) for t in (1, 2))
        ratio = slices[0, 1, ..., 0] / (later.float() - now.float())[0, ..., 0]
        torch.testing.assert_close(ratio[ratio.isfinite()], ratio[0, 0, None].expand(ratio.isfinite().sum()))


def test_still_patches_with_compression_noise_have_targets_near_zero() -> None:
    still = target_inputs(random_clip(low=100, high=102))
    moving = target_inputs(random_clip(low=0, high=256))
    quiet, loud = (MotionTarget().compute_target(known).square().mean() for known in (still, moving))
    assert quiet < 0.2 < 0.9 < loud


def test_a_single_frame_has_no_motion_and_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip\.frames must be at least 2 for target\.name=motion"):
        build_model(MotionTarget(), TokenGrid(1, 2, 2), (1, 4, 4))


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", [PixelTarget, MotionTarget, HogTarget])
def test_errors_are_weighted_by_the_motion_of_their_token(kind: type[DecoderTarget], strength: float) -> None:
    clip_BCTHW = random_clip()
    clip_BCTHW[..., 4:] = 50  # the right tokens are still
    known, target = target_inputs(clip_BCTHW), kind(motion_weight=strength)
    truth_BMP = target.compute_target(known)
    guess_BMP = truth_BMP + torch.randn(truth_BMP.shape, generator=torch.Generator().manual_seed(3))
    red, green, blue = clip_BCTHW.double().unbind(1)
    luma_BTHW = (0.299 * red + 0.587 * green + 0.114 * blue).round()
    loss_B = target.losses(Prediction(decoded_BMP=guess_BMP), known)["loss"]
    for b in range(2):
        difference_THW = luma_BTHW[b].diff(dim=0).abs()[[0, 1, 2, 2]]  # the last one is repeated
        motion_N = [cube.mean() for cube in patches_by_slicing(difference_THW)]
        weights = [max(float(motion_N[token]), 1.0) ** strength for token in TARGET[b].tolist()]
        errors = (guess_BMP[b] - truth_BMP[b]).square().mean(dim=1).tolist()
        expected = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
        assert float(loss_B[b]) == pytest.approx(expected, rel=2e-2 * strength)  # luma is rounded


def patches_by_slicing(values_THW: torch.Tensor) -> list[torch.Tensor]:
    """The eight patches of a clip of the usual grid."""
    starts = [(t, y, x) for t in (0, 2) for y in (0, 4) for x in (0, 4)]
    return [values_THW[t : t + 2, y : y + 4, x : x + 4] for t, y, x in starts]


def test_without_motion_or_strength_the_loss_is_the_plain_mean_to_the_last_bit() -> None:
    moving, still = target_inputs(random_clip()), target_inputs(random_clip()[:, :, :1].repeat(1, 1, 4, 1, 1))
    for known, strength in ((moving, 0.0), (still, 1.5)):
        target = PixelTarget(motion_weight=strength)
        truth_BMP = target.compute_target(known)
        guess_BMP = truth_BMP + torch.randn(truth_BMP.shape, generator=torch.Generator().manual_seed(3))
        plain_B = (guess_BMP - truth_BMP).square().mean(dim=(1, 2))
        assert torch.equal(target.losses(Prediction(decoded_BMP=guess_BMP), known)["loss"], plain_B)


def hog_by_loops(
    frame_CHW: np.ndarray, top: int, left: int, side: int, cells: int, *, gaussian: bool
) -> np.ndarray:
    """The histograms of one patch, pixel by pixel."""
    _, height, width = frame_CHW.shape
    cell = side // cells
    found = np.zeros((cells, cells, 3, 9))

    def mirrored(place: int, length: int) -> int:
        return abs(place) if place < length else 2 * length - 2 - place

    for colour, y, x in np.ndindex(3, side, side):
        around = np.array(
            [
                [
                    frame_CHW[colour, mirrored(top + y + dy, height), mirrored(left + x + dx, width)]
                    for dx in (-1, 0, 1)
                ]
                for dy in (-1, 0, 1)
            ],
            dtype=np.float64,
        )
        sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
        gx, gy = (around * sobel).sum(), (around * sobel.T).sum()
        orientation = math.floor(math.atan2(gx, gy) / math.pi * 9) % 9
        offsets = [(place - (side - 1) / 2) / (side / 2) for place in (y, x)]
        weight = math.exp(-0.5 * (offsets[0] ** 2 + offsets[1] ** 2)) if gaussian else 1.0
        found[y // cell, x // cell, colour, orientation] += weight * math.hypot(gx, gy)
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("cells", [1, 2, 4])
def test_hog_equals_a_loop_over_pixels(cells: int, gaussian: bool) -> None:
    clip_BCTHW = random_clip()
    actual = (
        HogTarget(cells=cells, gaussian=gaussian)
        .compute_target(target_inputs(clip_BCTHW))
        .view(2, 3, cells, cells, 3, 9)
    )
    for b, m in np.ndindex(2, 3):
        slice_, row, column = np.unravel_index(int(TARGET[b, m]), (GRID.t, GRID.h, GRID.w))
        frame_CHW = clip_BCTHW[b, :, slice_ * 2 + 1].numpy()
        expected = hog_by_loops(frame_CHW, int(row) * 4, int(column) * 4, 4, cells, gaussian=gaussian)
        np.testing.assert_allclose(actual[b, m].numpy(), expected, atol=1e-5)


def test_hog_of_an_edge_has_one_orientation_for_either_bright_side() -> None:
    clip_BCTHW = torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8)
    clip_BCTHW[0, ..., 2:] = 200  # a vertical edge inside the left patches, dark to bright
    clip_BCTHW[1, ..., :2] = 90  # bright to dark
    known = target_inputs(clip_BCTHW, target_BM=torch.zeros(2, 1, dtype=torch.int64), visible_BK=VISIBLE)
    target = HogTarget(cells=1).compute_target(known)
    assert torch.equal(target[0], target[1])
    assert target[0].count_nonzero() == 3  # one orientation per colour


@pytest.mark.parametrize(
    "part, message",
    [
        (
            Component(name="pixels", args={"normalize": "pixel"}),
            "normalize must be one of channel, patch, none",
        ),
        (Component(name="pixels", args={"frames": "first"}), r"target\.args\.frames must be one of all, one"),
        (
            Component(name="motion", args={"normalize": "flow"}),
            "normalize must be one of channel, patch, clip, none",
        ),
        (Component(name="hog", args={"cells": 0}), r"target\.args\.cells must be at least 1, got 0"),
        (
            Component(name="pixels", args={"motion_weight": -1.0}),
            r"target\.args\.motion_weight must be at least 0, got -1.0",
        ),
        (
            Component(name="motion", args={"motion_weight": float("inf")}),
            r"target\.args\.motion_weight must be at least 0, got inf",
        ),
        (Component(name="hog", args={"bins": 9}), "hog has no argument 'bins'"),
    ],
)
def test_a_wrong_argument_is_named(part: Component, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_component("kinemae.pretrain.targets", part, Target)


def test_cells_that_do_not_divide_the_patch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"target\.args\.cells=3 must divide model\.patch_size"):
        build_model(HogTarget(cells=3))
