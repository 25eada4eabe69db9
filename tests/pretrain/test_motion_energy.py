from itertools import pairwise

import pytest
import torch

from kinemae.pretrain.model.motion_energy import change, luma_grid, motion, motion_weights
from kinemae.pretrain.model.tokens import TokenGrid

CASES = [((8, 6, 4), (2, 3, 2)), ((4, 4, 6), (1, 2, 2)), ((2, 4, 4), (2, 2, 2)), ((1, 4, 4), (1, 2, 2))]


def clips(size, count=2):
    chance = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *size), dtype=torch.uint8, generator=chance)


def cut(clip_THW, patch):
    """Pixels of each token by slice and position, as lists of float tensors."""
    frames, height, width = patch
    return [
        [
            clip_THW[t : t + frames, y : y + height, x : x + width].float()
            for y in range(0, clip_THW.shape[1], height)
            for x in range(0, clip_THW.shape[2], width)
        ]
        for t in range(0, clip_THW.shape[0], frames)
    ]


@pytest.mark.parametrize(("size", "patch"), CASES)
def test_change_is_the_mean_difference_to_the_previous_token(size, patch):
    luma_BTHW = clips(size)
    for clip_THW, change_N in zip(luma_BTHW, change(luma_BTHW, patch), strict=True):
        slices = cut(clip_THW, patch)
        expected = [torch.tensor(float("inf"))] * len(slices[0])
        for earlier, later in pairwise(slices):
            expected += [(a - b).abs().mean() for a, b in zip(earlier, later, strict=True)]
        torch.testing.assert_close(change_N, torch.stack(expected))


@pytest.mark.parametrize(("size", "patch"), CASES)
def test_motion_is_the_mean_difference_from_frame_to_frame(size, patch):
    luma_BTHW = clips(size)
    for clip_THW, motion_N in zip(luma_BTHW, motion(luma_BTHW, patch), strict=True):
        frames = list(clip_THW.float())
        steps = [(b - a).abs() for a, b in pairwise(frames)]
        steps.append(steps[-1] if steps else torch.zeros_like(frames[0]))
        expected = [token.mean() for row in cut(torch.stack(steps), patch) for token in row]
        torch.testing.assert_close(motion_N, torch.stack(expected))


def test_a_difference_of_bytes_does_not_wrap_around():
    luma_BTHW = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    assert motion(luma_BTHW, (1, 1, 1)).tolist() == [[255.0, 255.0]]
    assert change(luma_BTHW, (1, 1, 1)).tolist() == [[float("inf"), 255.0]]


def test_the_grid_has_whole_patches():
    assert luma_grid(clips((8, 6, 4)), (2, 3, 2)) == TokenGrid(4, 2, 2)


def test_weights_by_motion_follow_the_power_and_are_finite_at_any():
    luma_BTHW, index_BM = clips((4, 8, 8)), torch.tensor([[0, 5, 3], [7, 1, 2]])
    motion_BM = motion(luma_BTHW, (2, 4, 4)).clamp(min=1.0).gather(1, index_BM)
    for strength in (0.5, 2.0):
        powers_BM = motion_BM.double() ** strength
        expected_BM = powers_BM / powers_BM.mean(dim=1, keepdim=True)
        found_BM1 = motion_weights(luma_BTHW, index_BM, (2, 4, 4), strength=strength)
        torch.testing.assert_close(found_BM1[..., 0].double(), expected_BM, rtol=1e-5, atol=0)
    found_BM1 = motion_weights(luma_BTHW, index_BM, (2, 4, 4), strength=1000.0)
    assert found_BM1.isfinite().all() and torch.allclose(found_BM1.mean(dim=1), torch.ones(2, 1))
