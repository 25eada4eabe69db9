import pytest
import torch

from kinemae.data_tools.components import component_names
from kinemae.pretrain.model.sizes import SIZES
from kinemae.pretrain.pruning.base import Pruning, check_keep
from tests.default_components import build_default

FOLDER = "kinemae.pretrain.pruning"
NAMES = component_names(FOLDER)
PATCH = (2, 4, 4)
SIZES_THW = [(8, 24, 20), (2, 8, 8), (8, 4, 4), (6, 4, 20)]


def clips(size, count=3):
    """Clips with a still left half and a moving right half; the last one is still."""
    chance = torch.Generator().manual_seed(0)
    luma_BTHW = torch.randint(0, 256, (count, *size), dtype=torch.uint8, generator=chance)
    luma_BTHW[:, :, :, : size[2] // 2] = 50
    luma_BTHW[-1] = 50
    return luma_BTHW


@pytest.mark.parametrize("name", [n for n in NAMES if not build_default(FOLDER, n, Pruning).is_learned])
@pytest.mark.parametrize("size", SIZES_THW, ids=str)
class TestContract:
    """The contract of prunings by pixels; a new file in the folder is tested automatically."""

    def test_it_scores_every_token_of_the_grid(self, name, size):
        luma_BTHW = clips(size)
        worth = build_default(FOLDER, name, Pruning).score_tokens(luma_BTHW, PATCH)
        shape = (3, size[0] // 2 * (size[1] // 4) * (size[2] // 4))
        assert worth.score_BN.shape == worth.is_kept_BN.shape == shape
        assert worth.score_BN.dtype == torch.float32 and worth.is_kept_BN.dtype == torch.bool
        assert not worth.score_BN.isnan().any()

    def test_tokens_of_every_clip_are_kept_also_of_a_still_one(self, name, size):
        assert build_default(FOLDER, name, Pruning).score_tokens(clips(size), PATCH).is_kept_BN.any(1).all()

    def test_run_lengths_are_returned_if_embedded_and_in_range(self, name, size):
        pruning = build_default(FOLDER, name, Pruning)
        worth = pruning.score_tokens(clips(size), PATCH)
        assert (worth.run_length_BN is not None) == (pruning.run_lengths > 0)
        if worth.run_length_BN is not None:
            assert (
                worth.run_length_BN.shape == worth.score_BN.shape and worth.run_length_BN.dtype == torch.int64
            )
            assert worth.run_length_BN.min() >= 1 and worth.run_length_BN.max() <= min(
                pruning.run_lengths, size[0] // 2
            )

    def test_scores_are_deterministic_and_do_not_depend_on_the_batch(self, name, size):
        luma_BTHW, pruning = clips(size), build_default(FOLDER, name, Pruning)
        before = luma_BTHW.clone()
        together = pruning.score_tokens(luma_BTHW, PATCH)
        for row in range(3):
            alone = pruning.score_tokens(luma_BTHW[row : row + 1], PATCH)
            assert torch.equal(alone.score_BN[0], together.score_BN[row])
            assert torch.equal(alone.is_kept_BN[0], together.is_kept_BN[row])
        assert torch.equal(luma_BTHW, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_gets_the_parameters_that_a_pruning_needs_and_keeps_its_own(name):
    pruning, plain = build_default(FOLDER, name, Pruning), SIZES["tiny"].encoder
    shape = pruning.shape(plain)
    assert (shape.run_lengths, shape.scorer) == (pruning.run_lengths, pruning.is_learned)
    again = pruning.shape(shape)
    assert again == shape


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, float("nan")])
def test_an_invalid_fraction_is_refused(keep):
    with pytest.raises(ValueError, match=f"pruning.args.keep must be a fraction above 0 .*, got {keep}"):
        check_keep(keep)


def test_a_fraction_or_none_is_accepted():
    for keep in (None, 0.01, 1.0, 1):
        check_keep(keep)
