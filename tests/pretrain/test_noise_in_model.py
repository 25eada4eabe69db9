"""Noise in the model: inputs, clean targets, the noise target and noise-conditioned decoders."""

import pytest
import torch

from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.builders import check_compatibility
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid, normalize, take_patches
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.noise.correlated import CorrelatedNoise
from kinemae.pretrain.noise.frames import FrameNoise
from kinemae.pretrain.noise.gaussian import GaussianNoise
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.noise.several import SeveralNoises
from kinemae.pretrain.pruning.learned import LearnedPruning
from kinemae.pretrain.pruning.none import NoPruning
from kinemae.pretrain.targets.base import Prediction
from kinemae.pretrain.targets.noise import NoiseTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.targets.weighted import WeightedTarget
from kinemae.pretrain.token_selection import TokenSelection
from tests.default_components import default_component

PATCH = (2, 4, 4)
GRID = TokenGrid.of(4, 16, PATCH)
SMALL = {"size": "tiny", "width": 32, "depth": 2, "decoder_width": 16, "decoder_depth": 1, "patch_size": 4}
CLIPS = (5, 6, 7)


def build(noise, *, target=None, pruning=None, **options):
    torch.manual_seed(0)
    return build_autoencoder(
        ModelConfig(**SMALL | options),
        GRID,
        target=target or PixelTarget(),
        noise=noise,
        pruning=pruning,
        clips=10,
    )


def make_batch(clips=CLIPS):
    split = TokenSelection(masking=TubeMasking(ratio=0.5), grid=GRID, patch=PATCH, seed=0)
    rows, pixels = [], []
    for clip in clips:
        chance = torch.Generator().manual_seed(clip)
        pixels.append(torch.randint(0, 256, (3, 4, 16, 16), dtype=torch.uint8, generator=chance))
        rows.append(split(pixels[-1][0], clip))
    return ClipBatch(
        pixels=torch.stack(pixels),
        clip_index_B=torch.tensor(clips),
        label_B=torch.zeros(len(clips), dtype=torch.int64),
        weight_B=torch.ones(len(clips)),
        tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


def draws_of(batch):
    return ClipRandom(0, batch.clip_index_B)


def run(model, batch):
    return model.predict(batch, draws_of(batch))


@pytest.mark.parametrize("name", component_names("kinemae.pretrain.noise"))
class TestEveryNoise:
    def build(self, name):
        return build(
            build_component(
                "kinemae.pretrain.noise", default_component("kinemae.pretrain.noise", name), Noise
            )
        )

    def test_the_target_is_the_clean_clip(self, name):
        model, batch = self.build(name), make_batch()
        before = batch.clip_BCTHW.clone()
        prediction, inputs = run(model, batch)
        assert torch.equal(inputs.clip_BCTHW, before)
        expected_B = (prediction.decoded_BMP - PixelTarget().compute_target(inputs)).square().mean(dim=(1, 2))
        torch.testing.assert_close(model(batch, draws_of(batch))["loss"], expected_B)

    def test_a_clips_loss_does_not_depend_on_its_batch(self, name):
        model, together, alone = self.build(name), make_batch(), make_batch((6,))
        loss_B = model(together, draws_of(together))["loss"]
        torch.testing.assert_close(loss_B[1:2], model(alone, draws_of(alone))["loss"])

    def test_with_tubes_hidden_pixels_do_not_reach_the_encoder(self, name):
        model, batch = self.build(name), make_batch()
        before_BMP = run(model, batch)[0].decoded_BMP
        is_seen = torch.zeros(3, GRID.tokens, dtype=torch.bool).scatter(1, batch.tokens["visible"], True)
        is_seen = is_seen.view(3, 1, 2, 4, 4)
        for dim, size in enumerate(PATCH, start=2):
            is_seen = is_seen.repeat_interleave(size, dim)
        batch.clip_BCTHW.copy_(torch.where(is_seen, batch.clip_BCTHW, 255 - batch.clip_BCTHW))
        assert torch.equal(run(model, batch)[0].decoded_BMP, before_BMP)

    def test_gradients_are_finite_under_bfloat16(self, name):
        model, batch = self.build(name), make_batch()
        with torch.autocast("cpu", torch.bfloat16):
            loss_B = model(batch, draws_of(batch))["loss"]
        loss_B.mean().backward()
        assert loss_B.dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", sorted(set(component_names("kinemae.pretrain.noise")) - {"none"}))
def test_every_kind_changes_the_features(name):
    model, batch = build(NoNoise()), make_batch()
    clean_BMP = run(model, batch)[0].decoded_BMP
    args = default_component("kinemae.pretrain.noise", name).args | {"strength": {"min_level": 1.0}}
    if name == "frames":
        args["drop"] = 1.0
    model.noise = build_component("kinemae.pretrain.noise", Component(name=name, args=args), Noise)
    moved_B = (run(model, batch)[0].decoded_BMP - clean_BMP).abs().amax(dim=(1, 2))
    assert (moved_B > 1e-4).all()


def test_the_schedule_follows_the_clip_index():
    model = build(GaussianNoise(strength={"min_level": 1.0, "schedule": "linear"}))
    batch = make_batch((0, 5, 10, 25))  # of 10 clips; beyond the end it keeps its last value
    seen = model.encoder_inputs(batch, draws_of(batch))
    torch.testing.assert_close(seen.level_B, torch.tensor([0, 0.5, 1, 1]))
    clean_BKP = normalize(take_patches(batch.clip_BCTHW, batch.tokens["visible"], PATCH))
    assert torch.equal(seen.patches_BKP[0], clean_BKP[0])
    assert not torch.equal(seen.patches_BKP[1], clean_BKP[1])


@pytest.mark.parametrize("level", [0.01, 1.0])
def test_the_noise_loss_is_1_for_zeros_and_0_for_the_true_noise(level):
    model, batch = build(fixed(level), target=NoiseTarget()), make_batch()
    inputs = run(model, batch)[1]
    unit_BKP = inputs.added_BKP / inputs.added_BKP.square().mean(dim=(1, 2), keepdim=True).sqrt()
    for guess_BKP, loss in ((torch.zeros_like(unit_BKP), 1.0), (unit_BKP, 0.0), (-unit_BKP, 4.0)):
        loss_B = NoiseTarget().losses(Prediction(visible_BKP=guess_BKP), inputs)["loss"]
        torch.testing.assert_close(loss_B, torch.full((3,), loss), atol=1e-3, rtol=1e-3)


def fixed(level):
    noise = {"min_level": 1.0, "schedule": "linear", "start": level, "end": level}
    return GaussianNoise(std=0.5, strength=noise)


def test_without_noise_the_target_is_zero():
    model, batch = build(fixed(0.0), target=NoiseTarget()), make_batch()
    prediction, inputs = run(model, batch)
    loss_B = model(batch, draws_of(batch))["loss"]
    assert not inputs.added_BKP.any()
    torch.testing.assert_close(loss_B, prediction.visible_BKP.square().mean(dim=(1, 2)))


def test_the_noise_target_needs_no_decoder_and_trains_all_other_parameters():
    model, batch = build(GaussianNoise(std=1.0, min_std=0.5), target=NoiseTarget()), make_batch()
    assert model.decoder is None
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(40):
        loss = model(batch, draws_of(batch))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        assert step or all(parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
    assert loss.item() < 0.7  # 1 is the loss of a constant prediction


def test_noise_and_pixels_can_be_predicted_together():
    target = WeightedTarget(parts={"pixels": {}, "noise": {"weight": 0.5}})
    model, batch = build(GaussianNoise(), target=target), make_batch()
    losses = model(batch, draws_of(batch))
    losses["loss"].mean().backward()
    torch.testing.assert_close(losses["loss"], losses["loss/pixels"] + 0.5 * losses["loss/noise"])
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_with_learned_pruning_the_target_is_the_noise_of_the_kept_tokens():
    noise = CorrelatedNoise(strength={"min_level": 1.0})  # a token's noise is a function of its place
    model, batch = build(noise, target=NoiseTarget(), pruning=LearnedPruning(keep=0.5)), make_batch()
    inputs = run(model, batch)[1]
    assert inputs.visible_BK.shape[1] < batch.tokens["visible"].shape[1]
    expected_BKP = noise.on_patches(
        torch.zeros(*inputs.visible_BK.shape, 96),
        torch.ones(3),
        draws_of(batch),
        positions=TokenPositions(grid=GRID, index_BN=inputs.visible_BK),
        patch=PATCH,
    )
    torch.testing.assert_close(inputs.added_BKP, expected_BKP)


def test_noise_on_frames_is_not_part_of_the_target():
    parts = {"frames": {"drop": 0.9}, "gaussian": {"std": 0.3}}
    model, batch = build(SeveralNoises(parts=parts), target=NoiseTarget()), make_batch()
    level_B = model.encoder_inputs(batch, draws_of(batch)).level_B
    expected_BKP = 0.3 * level_B[:, None, None] * draws_of(batch).normal("noise/values", (16, 96))
    torch.testing.assert_close(run(model, batch)[1].added_BKP, expected_BKP, atol=1e-5, rtol=0)


decoders = pytest.mark.parametrize("decoder", ["cross", "self"])


@decoders
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_noise_conditioned_decoder_learns_to_use_the_level(decoder, precision):
    model = build(GaussianNoise(), decoder=decoder, noise_conditioning=True)
    batch = make_batch()
    strong_B, weak_B = torch.ones(3), torch.full((3,), 0.1)
    before_BMP = predict_at(model, batch, strong_B)
    assert torch.equal(before_BMP, predict_at(model, batch, weak_B))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = model(batch, draws_of(batch))["loss"].mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    optimizer.step()
    assert not torch.equal(predict_at(model, batch, strong_B), predict_at(model, batch, weak_B))


@torch.no_grad()
def predict_at(model, batch, level_B):
    """Predictions from the same memory with another level."""
    visible_BK, target_BM = batch.tokens["visible"], batch.tokens["target"]
    memory_BKD = torch.randn(3, visible_BK.shape[1], 32, generator=torch.Generator().manual_seed(0))
    return model.decoder(memory_BKD, visible_BK, target_BM, level_B)


@decoders
def test_an_unconditioned_decoder_has_no_noise_embedding(decoder):
    told_keys = build(GaussianNoise(), decoder=decoder, noise_conditioning=True).state_dict().keys()
    assert told_keys - build(GaussianNoise(), decoder=decoder).state_dict().keys()


@pytest.mark.parametrize(
    "noise, target, is_conditioned, message",
    [
        (NoNoise(), NoiseTarget(), False, "set noise.name=gaussian"),
        (FrameNoise(), NoiseTarget(), False, "expected noise on patches for this target, got none"),
        (GaussianNoise(std=0.0), NoiseTarget(), False, "expected noise on patches for this target, got none"),
        (NoNoise(), PixelTarget(), True, "model.noise_conditioning must be false if the noise level"),
        (GaussianNoise(std=0.5, min_std=0.5), PixelTarget(), True, "strength.min_level below 1"),
        (GaussianNoise(), NoiseTarget(), True, "must be false if the target needs no decoder"),
    ],
)
def test_incompatible_noises_and_targets_are_refused(noise, target, is_conditioned, message):
    model = ModelConfig(**SMALL, noise_conditioning=is_conditioned)
    masking, pruning = TubeMasking(), NoPruning()
    with pytest.raises(ValueError, match=message):
        check_compatibility(model, masking=masking, pruning=pruning, noise=noise, target=target)
