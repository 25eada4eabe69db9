import pytest
import torch

from data_tools.parts import Part, build_part, part_names
from pretrain.model.tokens import gather_tokens, normalise, patchify
from pretrain.targets.base import Target
from pretrain.targets.pixels import PixelTarget

FOLDER = "pretrain.targets"
PATCH = (2, 4, 4)
WANTED = torch.tensor([[3, 0, 7], [5, 6, 1]])
VISIBLE = torch.tensor([[1, 2, 4], [0, 2, 4]])


def random_clip():
    return torch.randint(
        0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def wanted_pixels(clip_BCTHW):
    return gather_tokens(patchify(clip_BCTHW, PATCH), WANTED)


@pytest.mark.parametrize("name", part_names(FOLDER))
class TestContract:
    """What every target promises; a new file in the folder is tested without a line here."""

    def test_it_has_the_promised_values_for_each_wanted_token(self, name):
        target = build_part(FOLDER, Part(name=name), Target)
        target_BMP = target(random_clip(), WANTED, patch=PATCH)
        assert target_BMP.shape == (2, 3, target.values(PATCH))
        assert target_BMP.dtype == torch.float32 and target_BMP.isfinite().all()

    def test_it_stays_finite_on_a_clip_of_one_colour(self, name):
        target = build_part(FOLDER, Part(name=name), Target)
        assert target(torch.full((2, 3, 4, 8, 8), 7, dtype=torch.uint8), WANTED, patch=PATCH).isfinite().all()

    def test_the_loss_is_one_number_a_clip_and_least_for_the_target_itself(self, name):
        target = build_part(FOLDER, Part(name=name), Target)
        target_BMP = target(random_clip(), WANTED, patch=PATCH)
        perfect_B = target.loss(target_BMP, target_BMP)
        worse_B = target.loss((target_BMP + 0.5).bfloat16(), target_BMP)
        assert perfect_B.shape == worse_B.shape == (2,) and worse_B.dtype == torch.float32
        assert (perfect_B < worse_B).all()

    def test_pictures_are_bytes_or_absent(self, name):
        target = build_part(FOLDER, Part(name=name), Target)
        clip_BCTHW = random_clip()
        prediction_BMP = target(clip_BCTHW, WANTED, patch=PATCH)
        for visible_BK in (None, VISIBLE):
            picture_BMP = target.to_pixels(
                prediction_BMP, clip_BCTHW, wanted_BM=WANTED, visible_BK=visible_BK, patch=PATCH
            )
            assert picture_BMP is None or picture_BMP.dtype == torch.uint8


def test_channel_normalisation_is_videomaes_formula():
    clip_BCTHW = random_clip()
    target_BMP = PixelTarget(normalise="channel")(clip_BCTHW, WANTED, patch=PATCH)
    pixels = wanted_pixels(clip_BCTHW).double().view(2, 3, 32, 3) / 255
    for colour in range(3):
        values = pixels[1, 2, :, colour]
        expected = (values - values.mean()) / (values.var(unbiased=True).sqrt() + 1e-6)
        actual = target_BMP[1, 2].view(32, 3)[:, colour]
        torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=0)


def test_patch_normalisation_is_over_all_values_of_a_patch():
    clip_BCTHW = random_clip()
    values_BMP = wanted_pixels(clip_BCTHW).double() / 255
    mean, variance = values_BMP.mean(dim=2, keepdim=True), values_BMP.var(dim=2, keepdim=True)
    expected_BMP = (values_BMP - mean) / (variance + 1e-6).sqrt()
    actual_BMP = PixelTarget(normalise="patch")(clip_BCTHW, WANTED, patch=PATCH)
    torch.testing.assert_close(actual_BMP, expected_BMP.float(), atol=1e-5, rtol=0)


def test_without_normalisation_the_target_is_what_the_encoder_would_see():
    clip_BCTHW = random_clip()
    assert torch.equal(
        PixelTarget(normalise="none")(clip_BCTHW, WANTED, patch=PATCH), normalise(wanted_pixels(clip_BCTHW))
    )


@pytest.mark.parametrize("kind", ["channel", "patch", "none"])
def test_the_usual_view_of_a_perfect_prediction_is_the_clip(kind):
    target, clip_BCTHW = PixelTarget(normalise=kind), random_clip()
    picture_BMP = target.to_pixels(
        target(clip_BCTHW, WANTED, patch=PATCH), clip_BCTHW, wanted_BM=WANTED, visible_BK=None, patch=PATCH
    )
    assert torch.equal(picture_BMP, wanted_pixels(clip_BCTHW))


@pytest.mark.parametrize("kind", ["channel", "patch", "none"])
def test_the_honest_view_cannot_see_hidden_pixels(kind):
    target, clip_BCTHW = PixelTarget(normalise=kind), random_clip()
    prediction_BMP = target(clip_BCTHW, WANTED, patch=PATCH)
    changed_BNP = patchify(clip_BCTHW, PATCH).clone()
    other_BCTHW = clip_BCTHW.clone()
    other_BCTHW[0, :, 2:, 4:, 4:] = 0  # token 7 of clip 0, a wanted one
    assert not torch.equal(patchify(other_BCTHW, PATCH), changed_BNP)
    pictures = [
        target.to_pixels(prediction_BMP, clip, wanted_BM=WANTED, visible_BK=VISIBLE, patch=PATCH)
        for clip in (clip_BCTHW, other_BCTHW)
    ]
    assert torch.equal(*pictures)


def test_the_honest_view_takes_its_statistics_from_near_visible_patches():
    clip_BCTHW = torch.zeros(1, 3, 1, 4, 32, dtype=torch.uint8)
    clip_BCTHW[..., 16:] = 200  # eight tokens in a row, the left half black and the right half bright
    wanted_BM, visible_BK = torch.tensor([[1, 6]]), torch.tensor([[0, 7]])
    picture_BMP = PixelTarget().to_pixels(
        torch.zeros(1, 2, 48), clip_BCTHW, wanted_BM=wanted_BM, visible_BK=visible_BK, patch=(1, 4, 4)
    )
    dark, bright = picture_BMP[0, 0].float().mean(), picture_BMP[0, 1].float().mean()
    assert dark < 20 and bright > 180


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(
        ValueError, match=r"target.args.normalise must be one of channel, patch, none, got 'pixel'"
    ):
        PixelTarget(normalise="pixel")
