"""Several masks per clip: each is a selection of its own, and the target is computed once."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kinemae.data_tools.components import component_names
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.masking.motion import MotionMasking
from kinemae.pretrain.masking.uniform import UniformMasking
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.flops import count_flops
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.noise.frames import FrameNoise
from kinemae.pretrain.noise.several import SeveralNoises
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.pruning.learned import LearnedPruning
from kinemae.pretrain.pruning.run_length import RunLengthPruning
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.targets.features import FeatureTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.token_selection import TokenSelection
from tests.pretrain.target_models import FOLDER, PATCH, build_target, random_clip, save_teacher, small_config

GRID = TokenGrid(3, 4, 4)
MASKS = 3
INDICES = (5, 2**33 + 1)


def selection(**options: Any) -> TokenSelection:
    """The selection of three masks per clip."""
    usual: dict[str, Any] = {"masking": UniformMasking(ratio=0.5), "predict_ratio": 0.5}
    return TokenSelection(grid=GRID, patch=PATCH, seed=3, masks=MASKS, **usual | options)


def batch_of(split: TokenSelection) -> ClipBatch:
    """Two clips with their selections."""
    clip_BCTHW = random_clip(GRID)
    rows = [split(luma, index) for luma, index in zip(clip_BCTHW[:, 0], INDICES, strict=True)]
    return ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.tensor(INDICES),
        label_B=torch.zeros(2, dtype=torch.int64),
        weight_B=torch.ones(2),
        tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


def alone(batch: ClipBatch, mask: int) -> tuple[ClipBatch, ClipRandom]:
    """The batch with one of its masks, and the random numbers of that mask."""
    tokens = {name: index[:, mask] for name, index in batch.tokens.items()}
    draws = ClipRandom(0, batch.clip_index_B).for_masks(MASKS)
    return replace(batch, tokens=tokens), ClipRandom(0, draws.clip_index_B[mask::MASKS])


def build(target: Target, noise: Noise, pruning: Pruning | None = None, **options: Any) -> MaskedAutoencoder:
    """A model in training mode with drop path."""
    torch.manual_seed(0)
    config = small_config(drop_path=0.5, **options)
    return build_autoencoder(config, GRID, target=target, noise=noise, pruning=pruning, clips=2**34).train()


def several_noises() -> Noise:
    """Noise on frames, patches and tokens, stronger at the end of the run."""
    parts: dict[str, Any] = {"frames": {"drop": 0.5}, "gaussian": {}, "token": {}}
    return SeveralNoises(parts=parts, strength={"schedule": "linear"})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"masking": MotionMasking(ratio=0.5)},
        {"pruning": RunLengthPruning(keep=0.5)},
        {"predict": "running_cell"},
    ],
)
def test_the_masks_are_independent_and_do_not_depend_on_their_number(options: dict[str, Any]) -> None:
    split, luma_THW = selection(**options), random_clip(GRID)[0, 0]
    found, again = split(luma_THW, 5), split(luma_THW, 5)
    one, two = (replace(split, masks=masks)(luma_THW, 5) for masks in (1, 2))
    for name, index in found.items():
        assert torch.equal(index, again[name])
        assert torch.equal(index[0], one[name]) and torch.equal(index[:2], two[name])
    assert found["visible"].shape == (MASKS, split.counts()[0])
    assert found["target"].shape == (MASKS, split.counts()[1])
    assert len({tuple(visible.tolist()) for visible in found["visible"]}) == MASKS


def test_each_mask_has_its_own_random_numbers_and_the_first_those_of_the_clip() -> None:
    draws = ClipRandom(0, torch.tensor(INDICES))
    drawn = draws.for_masks(MASKS).uniform("noise", (1000,)).unflatten(0, (2, MASKS))
    assert torch.equal(drawn[:, 0], draws.uniform("noise", (1000,)))
    correlation = torch.corrcoef(drawn.flatten(0, 1)) - torch.eye(2 * MASKS)
    assert correlation.abs().max() < 0.15


@pytest.mark.parametrize("name", component_names(FOLDER))
def test_the_loss_of_every_target_is_the_mean_of_its_masks_alone(name: str, tmp_path: Any) -> None:
    save_teacher(tmp_path, GRID)
    model, batch = build(build_target(name, tmp_path), several_noises()), batch_of(selection())
    if model.target.uses_global_batch:
        pytest.skip("the masks of a clip are views that its loss compares")
    together = model(batch, ClipRandom(0, batch.clip_index_B))
    losses = [model(*alone(batch, mask)) for mask in range(MASKS)]
    for key, value_B in together.items():
        mean_B = torch.stack([loss[key] for loss in losses]).mean(dim=0)
        torch.testing.assert_close(value_B, mean_B, atol=1e-5, rtol=1e-5)
    apart_BX = torch.stack([loss["loss"] for loss in losses], dim=1)
    assert (apart_BX.std(dim=1) > 1e-4).all(), "the masks differ"


@pytest.mark.parametrize("decoder", ["cross", "self"])
@pytest.mark.parametrize("pruning", [LearnedPruning(keep=0.5), RunLengthPruning(keep=0.5)])
def test_loss_and_gradients_with_pruning_are_those_of_the_masks_alone(pruning: Pruning, decoder: str) -> None:
    noise = several_noises()
    split = selection(pruning=pruning)
    model = build(PixelTarget(), noise, pruning, decoder=decoder, noise_conditioning=True)
    batch = batch_of(split)

    def gradients(*passes: tuple[ClipBatch, ClipRandom]) -> list[torch.Tensor]:
        model.zero_grad()
        (sum(model(*one)["loss"].mean() for one in passes) / len(passes)).backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    together = gradients((batch, ClipRandom(0, batch.clip_index_B)))
    apart = gradients(*(alone(batch, mask) for mask in range(MASKS)))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_teacher_runs_once_for_all_masks_of_a_clip() -> None:
    model = build(FeatureTarget(), FrameNoise())
    many, one = (count_flops(model, batch_of(replace(selection(), masks=masks))) for masks in (MASKS, 1))
    assert one.target > 0 and many.target == one.target
    assert (many.encoder, many.decoder) == (MASKS * one.encoder, MASKS * one.decoder)
