"""Scenes have the motion of their class; a single frame does not reveal it."""

import re

import pytest
import torch
from torch import Tensor

from kinemae.data_tools.config import load_config
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.synthetic_scenes import MOTIONS, SceneConfig, make_scene

SMALL = SceneConfig(frames=9, size=32)
OPPOSITES = [
    ("move_left", "move_right"),
    ("move_up", "move_down"),
    ("move_up_left", "move_down_right"),
    ("move_up_right", "move_down_left"),
    ("rotate_clockwise", "rotate_counterclockwise"),
    ("zoom_in", "zoom_out"),
]


def scene(kind: str, seed: int = 0, settings: SceneConfig = SMALL) -> Tensor:
    return make_scene(kind, settings, generator(seed, purpose="test"))


def affine_flow(frames_THWC: Tensor) -> dict[str, float]:
    """Least-squares motion (Lucas and Kanade, one affine window): pixels, radians and e-folds per frame."""
    grey_THW = frames_THWC.float().mean(dim=3)
    mean_THW = (grey_THW[1:] + grey_THW[:-1]) / 2
    by_y_THW, by_x_THW = torch.gradient(mean_THW, dim=(1, 2))
    by_t_THW = grey_THW[1:] - grey_THW[:-1]
    side = torch.arange(grey_THW.shape[1]) - (grey_THW.shape[1] - 1) / 2
    y_HW, x_HW = torch.meshgrid(side, side, indexing="ij")
    columns = [by_x_THW, by_y_THW, by_y_THW * x_HW - by_x_THW * y_HW, by_x_THW * x_HW + by_y_THW * y_HW]
    system = torch.stack([column.flatten() for column in columns], dim=1).double()
    found = torch.linalg.lstsq(system, -by_t_THW.flatten()[:, None].double()).solution.flatten().tolist()
    return dict(zip(("x", "y", "turn", "zoom"), found, strict=True))


@pytest.mark.parametrize("kind", MOTIONS)
def test_a_scene_has_the_motion_of_its_class(kind: str):
    slow = SceneConfig(
        frames=9,
        size=48,
        move_px=(0.5, 0.8),
        turn_degrees=(1.0, 2.0),
        zoom_octaves=(0.02, 0.04),
        finest_px=6.0,
        direction_jitter_degrees=0,
    )
    flows = [affine_flow(scene(kind, seed, slow)) for seed in range(6)]
    for part in ("turn", "zoom"):
        speeds = [flow[part] for flow in flows]
        expected = getattr(MOTIONS[kind], part)
        assert all(speed * expected > 0 for speed in speeds) if expected else max(map(abs, speeds)) < 0.01
    if MOTIONS[kind].x or MOTIONS[kind].y:
        along = [flow["x"] * MOTIONS[kind].x + flow["y"] * MOTIONS[kind].y for flow in flows]
        across = [flow["x"] * MOTIONS[kind].y - flow["y"] * MOTIONS[kind].x for flow in flows]
        assert min(along) > 0.2
        assert max(map(abs, across)) < 0.15


def test_a_whole_pixel_of_motion_is_exact():
    settings = SceneConfig(
        frames=4, size=32, move_px=(2, 2), direction_jitter_degrees=0, foreground=(0, 0), finest_px=4
    )
    frames = scene("move_right", 3, settings).int()
    assert (frames[1:, :, 2:] - frames[:-1, :, :-2]).abs().max() <= 1


@pytest.mark.parametrize("seed", range(3))
def test_all_classes_share_the_middle_frame(seed: int):
    middle = [scene(kind, seed)[SMALL.frames // 2].int() for kind in MOTIONS]
    assert all((other - middle[0]).abs().max() <= 1 for other in middle)


@pytest.mark.parametrize("one, other", OPPOSITES)
def test_opposite_classes_are_time_reversed(one: str, other: str):
    assert (scene(one).int() - scene(other).flip(0).int()).abs().max() <= 1


@pytest.mark.slow
def test_the_first_frame_of_a_zoom_is_neither_finer_nor_coarser():
    def roughness(kind: str) -> Tensor:
        firsts = torch.stack([scene(kind, seed)[0].float() for seed in range(80)])
        return (firsts[:, 1:] - firsts[:, :-1]).abs().mean(dim=(1, 2, 3))

    inwards, outwards = roughness("zoom_in"), roughness("zoom_out")
    error = ((inwards.var() + outwards.var()) / 80).sqrt()
    assert (inwards.mean() - outwards.mean()).abs() < 4 * error


def test_equal_generators_give_equal_scenes_and_others_do_not():
    assert torch.equal(scene("zoom_in", 1), scene("zoom_in", 1))
    assert (scene("zoom_in", 1).int() - scene("zoom_in", 2).int()).abs().float().mean() > 20


def test_a_scene_is_uint8_of_the_configured_shape():
    frames = scene("move_up")
    assert frames.shape == (9, 32, 32, 3)
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous()
    assert frames.float().std() > 30


def test_an_unknown_motion_is_named():
    with pytest.raises(ValueError, match="no motion named 'wobble'; expected one of move_left"):
        scene("wobble")


@pytest.mark.parametrize(
    "override, message",
    [
        ("frames=1", "scene.frames must be at least 2, got 1"),
        ("size=47", "scene.size must be an even number of pixels, at least 16, got 47"),
        ("size=8", "scene.size must be an even number"),
        ("move_px=[2.0,1.0]", r"scene.move_px must be [slowest, fastest] above 0, got [2.0, 1.0]"),
        ("turn_degrees=[0.0,1.0]", "scene.turn_degrees must be"),
        ("zoom_octaves=[-1.0,1.0]", "scene.zoom_octaves must be"),
        ("direction_jitter_degrees=30", "scene.direction_jitter_degrees must lie in [0, 22.5)"),
        ("finest_px=1", "scene.finest_px must be at least 2 pixels"),
        ("octaves=2", "scene.octaves must be between 3 and 8"),
        ("coarseness=5", "scene.coarseness must lie in [-2, 2]"),
        ("foreground=[0.5,1.0]", "scene.foreground must be [min, max] within [0, 1)"),
        ("contrast=0", "scene.contrast must be above 0"),
    ],
)
def test_a_wrong_scene_config_names_the_fix(override: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(SceneConfig, None, [override])
