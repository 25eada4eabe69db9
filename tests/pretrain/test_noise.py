"""The contract of noises, and their strength."""

import pytest
import torch

from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.base import Noise, Strength
from tests.default_components import default_component

FOLDER = "kinemae.pretrain.noise"
GRID = TokenGrid(4, 3, 3)
PATCH = (2, 4, 4)
DISTURBING = sorted(set(component_names(FOLDER)) - {"none"})


def build(name, **args):
    return build_component(
        FOLDER, Component(name=name, args=default_component(FOLDER, name).args | args), Noise
    )


def draws_for(clips):
    return ClipRandom(0, torch.tensor(list(clips)))


def given(clips, dtype=torch.float32):
    """Inputs of the three methods for some clips: frames, visible patches, tokens."""
    rows = []
    for clip in clips:
        chance = torch.Generator().manual_seed(clip)
        frames_CTHW = torch.randint(0, 256, (3, 8, 12, 12), dtype=torch.uint8, generator=chance)
        patches_KP = torch.randn(7, 96, generator=chance).to(dtype)
        tokens_KD = torch.randn(7, 16, generator=chance).to(dtype)
        visible_K = torch.randperm(GRID.tokens, generator=chance)[:7].sort().values
        rows.append((frames_CTHW, patches_KP, tokens_KD, visible_K))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def disturb(noise, level_B, clips, inputs=None):
    """Outputs of the three methods."""
    clip_BCTHW, patches_BKP, x_BKD, visible_BK = inputs or given(clips)
    draws = clips if isinstance(clips, ClipRandom) else draws_for(clips)
    positions = TokenPositions(grid=GRID, index_BN=visible_BK)
    return [
        noise.on_clip(clip_BCTHW, level_B, draws),
        noise.on_patches(patches_BKP, level_B, draws, positions=positions, patch=PATCH),
        noise.on_tokens(x_BKD, level_B, draws),
    ]


@pytest.mark.parametrize("name", component_names(FOLDER))
class TestContract:
    """A new file in the folder is tested automatically."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_shape_and_dtype_are_kept_and_the_input_is_not_modified(self, name, dtype):
        inputs = given((0, 1, 2), dtype)
        before = [tensor.clone() for tensor in inputs]
        outputs = disturb(build(name), torch.ones(3), (0, 1, 2), inputs)
        for noisy, clean in zip(outputs, inputs, strict=False):
            assert noisy.shape == clean.shape and noisy.dtype == clean.dtype
            assert noisy.isfinite().all()
        assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))

    def test_level_0_changes_nothing(self, name):
        outputs = disturb(build(name), torch.zeros(3), (0, 1, 2))
        for noisy, clean in zip(outputs, given((0, 1, 2)), strict=False):
            assert torch.equal(noisy, clean)

    def test_noise_depends_on_the_clip_index_and_not_on_the_batch(self, name):
        noise = build(name)
        progress_B = torch.full((3,), 0.7)
        level_B = noise.level(progress_B, draws_for((4, 9, 2)))
        together = disturb(noise, level_B, (4, 9, 2))
        assert torch.equal(level_B[1:2], noise.level(progress_B[:1], draws_for((9,))))
        for all_B, alone_B in zip(together, disturb(noise, level_B[1:2], (9,)), strict=True):
            assert torch.equal(all_B[1:2], alone_B)

    def test_the_level_lies_between_0_and_1(self, name):
        noise = build(name)
        for progress in (0.0, 0.3, 1.0):
            level_B = noise.level(torch.full((500,), progress), ClipRandom(0, torch.arange(500)))
            assert level_B.shape == (500,) and level_B.dtype == torch.float32
            assert level_B.min() >= 0 and level_B.max() <= 1

    def test_the_global_generator_is_not_used(self, name):
        state = torch.get_rng_state()
        disturb(build(name), torch.ones(2), (0, 1))
        assert torch.equal(torch.get_rng_state(), state)

    def test_it_is_the_same_under_autocast(self, name):
        level_B = torch.tensor([0.2, 0.6, 1.0])
        expected = disturb(build(name), level_B, (0, 1, 2))
        with torch.autocast("cpu", torch.bfloat16):
            found = disturb(build(name), level_B, (0, 1, 2))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))

    def test_nothing_synchronizes_with_the_device(self, name):
        """Reading a value of a meta tensor fails, as a synchronization would."""
        inputs = [tensor.to("meta") for tensor in given((0, 1, 2))]
        noise, draws = build(name), ClipRandom(0, torch.empty(3, dtype=torch.int64, device="meta"))
        level_B = noise.level(torch.empty(3, device="meta"), draws)
        outputs = disturb(noise, level_B, draws, inputs)
        assert all(noisy.shape == clean.shape for noisy, clean in zip(outputs, inputs, strict=False))


@pytest.mark.parametrize("name", DISTURBING)
class TestContractOfThoseThatDisturb:
    """Every kind but "none"."""

    def test_level_1_changes_something(self, name):
        pairs = zip(disturb(build(name), torch.ones(3), (0, 1, 2)), given((0, 1, 2)), strict=False)
        assert any(not torch.equal(noisy, clean) for noisy, clean in pairs)

    def test_is_on_patches_is_true_if_patches_change(self, name):
        noise = build(name)
        noisy_BKP = disturb(noise, torch.ones(3), (0, 1, 2))[1]
        assert noise.is_on_patches != torch.equal(noisy_BKP, given((0, 1, 2))[1])

    def test_its_strength_is_a_schedule_of_the_step_and_drawn_per_clip(self, name):
        noise = build(name, strength={"min_level": 0.5, "schedule": "linear", "ramp_end": 0.5})
        assert noise.has_level
        draws = ClipRandom(0, torch.arange(300))
        early_B, late_B = (noise.level(torch.full((300,), progress), draws) for progress in (0.25, 0.9))
        assert 0.5 <= late_B.min() < 0.52 and 0.98 < late_B.max() <= 1
        torch.testing.assert_close(early_B, late_B / 2)

    def test_a_fixed_strength_has_no_level(self, name):
        assert not build(name, strength={"min_level": 1.0}).has_level

    def test_an_invalid_strength_is_refused_by_key(self, name):
        with pytest.raises(ValueError, match=r"strength.min_level must be a number from 0 to 1"):
            build(name, strength={"min_level": 2.0})


def test_no_noise_has_no_level():
    noise = build("none")
    assert not noise.has_level and not noise.is_on_patches
    assert not noise.level(torch.ones(4), draws_for((0, 1, 2, 3))).any()


@pytest.mark.parametrize(
    "strength, expected",
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [0, 0.25, 0.5, 0.75, 1]),
        ({"schedule": "linear", "start": 1, "end": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "linear", "ramp_start": 0.25, "ramp_end": 0.75}, [0, 0, 0.5, 1, 1]),
        ({"schedule": "cosine"}, [0, 0.1464466, 0.5, 0.8535534, 1]),
        ({"schedule": "cosine", "start": 1.0, "end": 0.0}, [1, 0.8535534, 0.5, 0.1464466, 0]),
    ],
)
def test_schedules(strength, expected):
    level_B = Strength.read(strength).level(torch.linspace(0, 1, 5), torch.ones(5))
    torch.testing.assert_close(level_B, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    "strength, message",
    [
        ({"min_level": -0.1}, "strength.min_level must be a number from 0 to 1, got -0.1"),
        ({"end": True, "schedule": "linear"}, "strength.end must be a number from 0 to 1, got True"),
        ({"start": "0", "schedule": "linear"}, "strength.start must be a number from 0 to 1, got '0'"),
        ({"schedule": "sine"}, "strength.schedule must be one of constant, linear, cosine, got 'sine'"),
        ({"start": 0.5}, "strength.start must be omitted if the schedule is constant, got 0.5"),
        ({"schedule": "linear", "ramp_start": 1.0}, "ramp_start must be less than ramp_end=1.0, got 1.0"),
        ({"leve": 0.5}, "strength.leve must be one of the keys min_level, schedule, start"),
        (0.5, r"noise.args.strength must hold keys, got 0.5"),
    ],
)
def test_an_invalid_strength_names_the_fix(strength, message):
    with pytest.raises(ValueError, match=message):
        Strength.read(strength)
