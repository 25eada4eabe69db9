"""Learned token scores: kept tokens, gradients of the scorer, and use in the autoencoder."""

import pytest
import torch

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.scorer import Scorer, add_gradient_of
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.gaussian import GaussianNoise
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.pruning.learned import LearnedPruning
from kinemae.pretrain.targets.noise import NoiseTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.token_selection import TokenSelection

PATCH = (2, 4, 4)
GRID = TokenGrid.of(4, 16, PATCH)
SMALL = {"size": "tiny", "width": 32, "depth": 2, "decoder_width": 16, "decoder_depth": 1, "patch_size": 4}


def make_scorer(width=16):
    torch.manual_seed(0)
    return Scorer(width)


def build(*, keep=0.5, target=None, noise=None, **options):
    torch.manual_seed(0)
    return build_autoencoder(
        ModelConfig(**SMALL | options),
        GRID,
        target=target or PixelTarget(),
        noise=noise or NoNoise(),
        pruning=None if keep is None else LearnedPruning(keep=keep),
    )


def split_of(keep):
    return TokenSelection(
        masking=TubeMasking(ratio=0.5),
        grid=GRID,
        patch=PATCH,
        seed=0,
        pruning=LearnedPruning(keep=keep),
        predict_ratio=0.5,
    )


def make_batch(clips=3):
    chance = torch.Generator().manual_seed(0)
    clip_BCTHW = torch.randint(0, 256, (clips, 3, 4, 16, 16), dtype=torch.uint8, generator=chance)
    rows = [split_of(0.5)(clip_BCTHW[row, 0], row) for row in range(clips)]
    return ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.arange(clips),
        label_B=torch.zeros(clips, dtype=torch.int64),
        weight_B=torch.ones(clips),
        tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


def draws_of(batch):
    return ClipRandom(0, batch.clip_index_B)


def test_the_tokens_of_the_highest_score_are_kept_in_order_and_nearly_as_they_were():
    scorer, x_BND = make_scorer(), torch.randn(3, 10, 16)

    kept = scorer.select(x_BND, 0.4)

    for clip, score_N in enumerate(scorer(x_BND)):
        best = sorted(sorted(range(10), key=lambda token: -score_N[token])[:4])
        assert kept.index_BK[clip].tolist() == best
        assert torch.allclose(kept.x_BKD[clip], x_BND[clip, best], rtol=0.1)


def test_the_scorer_learns_to_keep_tokens_that_lower_the_loss():
    scorer = make_scorer()
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.01)
    chance = torch.Generator().manual_seed(0)
    for _ in range(100):
        x_BND = torch.randn(8, 20, 16, generator=chance)
        optimizer.zero_grad()
        # Tokens whose first value is above 0 lower this loss, the others raise it.
        (-scorer.select(x_BND, 0.5).x_BKD[..., 0].sum()).backward()
        optimizer.step()

    x_BND = torch.randn(8, 20, 16, generator=chance)
    kept_BK = x_BND[..., 0].gather(1, scorer.select(x_BND, 0.25).index_BK)

    assert (kept_BK > 0).float().mean() > 0.9


@pytest.mark.parametrize("keep", [0.2, 0.7])
def test_the_threshold_learns_the_quantile_of_the_kept_fraction(keep):
    scorer, x_BND = make_scorer(), torch.randn(50, 20, 16)
    optimizer = torch.optim.Adam([scorer.threshold], lr=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        scorer.select(x_BND, keep).threshold_loss_B.mean().backward()
        optimizer.step()

    assert (scorer(x_BND) > scorer.threshold).float().mean() == pytest.approx(keep, abs=0.03)


def test_the_threshold_loss_changes_no_other_gradient_and_no_loss_value():
    scorer, loss_B = make_scorer(), torch.ones(4, requires_grad=True)

    both_B = add_gradient_of(loss_B, scorer.select(torch.randn(4, 10, 16), 0.3).threshold_loss_B)
    both_B.sum().backward()

    assert torch.equal(both_B, loss_B) and torch.equal(loss_B.grad, torch.ones(4))
    assert [name for name, value in scorer.named_parameters() if value.grad is not None] == ["threshold"]


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_an_autoencoder_encodes_the_kept_tokens_only(decoder):
    model, plain, batch = build(decoder=decoder), build(keep=None, decoder=decoder), make_batch()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.nn.init.zeros_(model.encoder.scorer.fc2.weight)  # all tokens alike: the first are kept, gate 1

    prediction, inputs = model.predict(batch, draws_of(batch))

    kept_BK = batch.tokens["visible"][:, : batch.tokens["visible"].shape[1] // 2]
    assert torch.equal(inputs.visible_BK, kept_BK)
    batch.tokens["visible"] = kept_BK
    expected, _ = plain.predict(batch, draws_of(batch))
    assert torch.allclose(prediction.decoded_BMP, expected.decoded_BMP, atol=1e-6)


def test_training_reaches_every_weight_of_the_scorer_and_its_threshold():
    model, batch = build(), make_batch()

    model(batch, draws_of(batch))["loss"].mean().backward()

    for name, parameter in model.encoder.scorer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_the_noise_in_the_target_inputs_is_that_of_the_kept_tokens():
    model = build(target=NoiseTarget(), noise=GaussianNoise(std=0.5))
    batch = make_batch()

    prediction, inputs = model.predict(batch, draws_of(batch))

    assert prediction.visible_BKP.shape == inputs.added_BKP.shape
    place_BK = torch.stack(
        [torch.searchsorted(*pair) for pair in zip(batch.tokens["visible"], inputs.visible_BK, strict=True)]
    )
    seen = model.encoder_inputs(batch, draws_of(batch))
    added_BKP = seen.added_BKP.gather(1, place_BK[..., None].expand_as(inputs.added_BKP))
    assert torch.equal(inputs.added_BKP, added_BKP)


def test_the_plan_counts_embedded_encoded_and_predicted_tokens():
    split = split_of(0.25)

    assert split.counts() == (16, 2)  # 16 visible and 16 hidden; a quarter of these, half of it predicted
    assert split.encoded() == 4


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_an_invalid_fraction_is_refused(keep):
    with pytest.raises(ValueError, match=r"pruning\.args\.keep must be a fraction above 0 and at most 1"):
        LearnedPruning(keep=keep)
