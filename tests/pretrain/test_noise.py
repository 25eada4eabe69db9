import pytest
import torch

from data_tools.parts import Part, build_part, part_names
from data_tools.randomness import ClipRandom
from pretrain.noise.base import Noise
from pretrain.noise.gaussian import GaussianNoise

FOLDER = "pretrain.noise"


def draws_for(*clips):
    return ClipRandom(0, torch.tensor(clips))


@pytest.mark.parametrize("name", part_names(FOLDER))
class TestContract:
    """What every noise promises; a new file in the folder is tested without a line here."""

    def test_shape_and_dtype_stay_and_the_input_is_left_alone(self, name):
        noise = build_part(FOLDER, Part(name=name), Noise)
        for dtype in (torch.float32, torch.bfloat16):
            patches_BKP = torch.linspace(-2, 2, 3 * 5 * 24).view(3, 5, 24).to(dtype)
            before = patches_BKP.clone()
            noisy_BKP = noise(patches_BKP, draws_for(0, 1, 2))
            assert noisy_BKP.shape == patches_BKP.shape and noisy_BKP.dtype == dtype
            assert noisy_BKP.isfinite().all()
            assert torch.equal(patches_BKP, before)

    def test_a_clips_noise_depends_on_its_place_in_the_run_and_not_on_its_batch(self, name):
        noise = build_part(FOLDER, Part(name=name), Noise)
        patches_BKP = torch.ones(3, 5, 24)
        together_BKP = noise(patches_BKP, draws_for(4, 9, 2))
        assert torch.equal(together_BKP[1:2], noise(patches_BKP[:1], draws_for(9)))


def test_gaussian_noise_has_the_deviation_that_was_asked_for():
    noise_BKP = GaussianNoise(std=0.5, min_std=0.5)(torch.zeros(4, 50, 96), draws_for(0, 1, 2, 3))
    torch.testing.assert_close(noise_BKP.std(dim=(1, 2)), torch.full((4,), 0.5), rtol=0.03, atol=0)
    assert noise_BKP.mean().abs() < 0.02


def test_each_clip_draws_a_strength_of_its_own_within_the_bounds():
    noise_BKP = GaussianNoise(std=1.0, min_std=0.2)(torch.zeros(64, 20, 48), ClipRandom(0, torch.arange(64)))
    strength_B = noise_BKP.std(dim=(1, 2))
    assert 0.18 < strength_B.min() < 0.4 and 0.8 < strength_B.max() < 1.05


@pytest.mark.parametrize("arguments", [{"std": -1.0}, {"std": 0.1, "min_std": 0.2}, {"min_std": -0.1}])
def test_impossible_strengths_are_refused(arguments):
    with pytest.raises(ValueError, match=r"noise.args must hold 0 <= min_std <= std, got min_std="):
        GaussianNoise(**arguments)
