"""Teacher targets (EMA and frozen) and weighted sums of targets."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component, build_component
from kinemae.pretrain.cost import parameter_counts
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.flops import count_flops
from kinemae.pretrain.model.tokens import (
    MEAN,
    STD,
    TokenGrid,
    gather_tokens,
    normalize,
    patchify,
    standardize,
)
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.base import Prediction, Target
from kinemae.pretrain.targets.features import FeatureTarget
from kinemae.pretrain.targets.motion import MotionTarget
from kinemae.pretrain.targets.noise import NoiseTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.targets.teacher import TeacherTarget, resampled
from kinemae.pretrain.targets.weighted import WeightedTarget
from tests.pretrain.target_models import (
    GRID,
    PATCH,
    TARGET,
    batch_of,
    build_model,
    draws,
    random_clip,
    save_teacher,
    target_inputs,
)


def normed_features(
    encoder: Encoder, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> torch.Tensor:
    """Layer-normalized features of the target tokens of the usual clip."""
    with torch.no_grad():
        x_BND = encoder(normalize(patchify(random_clip(), PATCH), mean, std), None)
    picked_BMD = torch.stack([x_BND[b, TARGET[b]] for b in range(2)]).double()
    spread = (picked_BMD.var(dim=2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return ((picked_BMD - picked_BMD.mean(dim=2, keepdim=True)) / spread).float()


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_the_target_values_are_the_normalized_features_of_the_whole_clip() -> None:
    model = build_model(FeatureTarget())
    with torch.no_grad():  # with initial weights, the encoder's final norm alone would suffice
        model.encoder.norm.weight.uniform_(0.5, 3.0)
        model.encoder.norm.bias.uniform_(-2.0, 2.0)
    model.target.bind(model.encoder)
    truth_BMD = model.target.compute_target(target_inputs(random_clip()))
    torch.testing.assert_close(truth_BMD, normed_features(model.encoder), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "loss, options, near, far",
    [
        ("l1", {}, 0.1, 3.0),
        ("mse", {}, 0.1**2, 3.0**2),
        ("smooth_l1", {"beta": 0.5}, 0.5 * 0.1**2 / 0.5, 3.0 - 0.5 * 0.5),
    ],
)
def test_each_loss_is_its_formula(loss: str, options: dict[str, float], near: float, far: float) -> None:
    target = FeatureTarget(loss=loss, **options)  # type: ignore[arg-type]
    truth_BMD = torch.zeros(2, 3, 4)
    near_BMD, far_BMD = (target.errors(torch.full_like(truth_BMD, off), truth_BMD) for off in (0.1, 3.0))
    torch.testing.assert_close(near_BMD, torch.full((2, 3, 4), near))
    torch.testing.assert_close(far_BMD, torch.full((2, 3, 4), far))


def test_several_last_layers_are_the_mean_of_their_outputs_normalized_over_tokens() -> None:
    model = build_model(FeatureTarget(last_layers=2), depth=3)
    outputs: list[torch.Tensor] = []
    for block in model.target.teacher.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output.double()))
    truth_BMD = model.target.compute_target(target_inputs(random_clip()))
    assert len(outputs) == 3
    mean_BND = torch.zeros_like(outputs[0])
    for x_BND in outputs[1:]:
        spread = (x_BND.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        mean_BND += (x_BND - x_BND.mean(dim=1, keepdim=True)) / spread / 2
    picked_BMD = torch.stack([mean_BND[b, TARGET[b]] for b in range(2)])
    spread = (picked_BMD.var(dim=2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected_BMD = (picked_BMD - picked_BMD.mean(dim=2, keepdim=True)) / spread
    torch.testing.assert_close(truth_BMD, expected_BMD.float(), atol=1e-4, rtol=1e-4)


def test_training_equals_a_plain_loop_of_v_jepa() -> None:
    """Two masks, L1 on layer-normalized features, an average with a linear decay: equal losses."""
    steps, batch = 4, batch_of(random_clip())
    many = {name: torch.stack([index, index.flip(0)], dim=1) for name, index in batch.tokens.items()}
    batch = replace(batch, tokens=many)
    model, plain = (build_model(FeatureTarget(decay=0.5), decoder="self") for _ in range(2))
    teacher, losses = copy.deepcopy(plain.encoder), []
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in (model, plain)
    ]
    model.noise, clip_BNP = NoNoise(), normalize(patchify(batch.clip_BCTHW, PATCH))
    for step in range(steps):
        with torch.no_grad():
            h_BND = F.layer_norm(teacher(clip_BNP, None), (24,))
        loss = torch.zeros(())
        for seen_BK, wanted_BM in zip(many["visible"].unbind(1), many["target"].unbind(1), strict=True):
            memory_BKD = plain.encoder(gather_tokens(clip_BNP, seen_BK), seen_BK)
            z_BMD = plain.decoder(memory_BKD, seen_BK, wanted_BM)
            loss = loss + (z_BMD - gather_tokens(h_BND, wanted_BM)).abs().mean() / 2
        own = model(batch, draws())["loss"].mean()
        losses.append((own.item(), loss.item()))
        for optimizer, value in zip(optimizers, (own, loss), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        decay = 0.5 + 0.5 * (step + 1) / steps
        with torch.no_grad():
            for average, weight in zip(teacher.parameters(), plain.encoder.parameters(), strict=True):
                average.mul_(decay).add_((1 - decay) * weight)
        model.after_update((step + 1) / steps)
    assert losses[-1][1] < losses[0][1]
    for own_loss, plain_loss in losses:
        assert own_loss == pytest.approx(plain_loss, rel=1e-5)


def test_collapsed_features_have_a_deviation_of_zero() -> None:
    model, batch = build_model(FeatureTarget()), batch_of(random_clip())
    assert (model(batch, draws())["target_std"] > 0.3).all()
    with torch.no_grad():
        model.target.teacher.norm.weight.zero_()
        model.target.teacher.norm.bias.normal_()
    assert (model(batch, draws())["target_std"] < 1e-3).all()


def test_the_teacher_has_no_noise_no_drop_path_and_no_training_mode() -> None:
    model = build_model(FeatureTarget(), drop_path=0.9).train()
    assert model.encoder.training and not any(m.training for m in model.target.teacher.modules())
    truths = [model.target.compute_target(target_inputs(random_clip()))]
    model(batch_of(random_clip()), draws())
    truths.append(model.eval().target.compute_target(target_inputs(random_clip())))
    assert torch.equal(*truths)


def test_an_update_moves_the_teacher_towards_the_trained_encoder() -> None:
    model = build_model(FeatureTarget(decay=0.6, final_decay=0.8))
    first = weights(model.target.teacher)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(model.encoder), strict=True))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(batch_of(random_clip()), draws())["loss"].sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(first, weights(model.target.teacher), strict=True))
    model.after_update(0.5)
    pairs = zip(first, weights(model.encoder), weights(model.target.teacher), strict=True)
    for before, own, after in pairs:
        torch.testing.assert_close(after, 0.7 * before + 0.3 * own)


def test_the_decay_goes_from_the_first_to_the_last_by_a_line_or_a_half_cosine() -> None:
    assert FeatureTarget(decay=0.9).decay_at(0.25) == pytest.approx(0.925)
    target = FeatureTarget(decay=0.9, final_decay=1.0, schedule="cosine")
    assert target.decay_at(0) == pytest.approx(0.9) and target.decay_at(1) == 1
    assert target.decay_at(0.5) == pytest.approx(0.95)
    assert target.decay_at(0.25) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)
    constant = FeatureTarget(decay=0.99, final_decay=0.99)
    assert {round(constant.decay_at(i / 7), 12) for i in range(8)} == {0.99}
    assert target.follows_progress and not constant.follows_progress


def test_the_ema_distance_is_over_all_weights() -> None:
    model = build_model(FeatureTarget())
    assert model.target.state_metrics(model.encoder)["ema_distance"] == 0
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.rand_like(parameter))
    own, taught = (
        torch.cat([p.flatten() for p in weights(m)]) for m in (model.encoder, model.target.teacher)
    )
    expected = (taught - own).norm() / own.norm()
    torch.testing.assert_close(model.target.state_metrics(model.encoder)["ema_distance"], expected)


def test_the_moving_average_is_in_the_models_state_and_a_frozen_teacher_is_not(tmp_path: Path) -> None:
    names = {f"target.teacher.{name}" for name in build_model(PixelTarget()).encoder.state_dict()}
    assert names <= set(build_model(FeatureTarget()).state_dict())
    save_teacher(tmp_path)
    taught = build_model(TeacherTarget(encoder=str(tmp_path)))
    assert not [name for name in taught.state_dict() if name.startswith("target.")]


def test_a_frozen_teacher_uses_its_own_normalization(tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    encoder, _ = save_teacher(tmp_path, mean=mean, std=std)
    target = TeacherTarget(encoder=str(tmp_path))
    model = build_model(target).train()
    assert target.target_values(model.encoder.shape) == encoder.shape.width != model.encoder.shape.width
    truth_BMD = target.compute_target(target_inputs(random_clip()))
    torch.testing.assert_close(truth_BMD, normed_features(encoder, mean, std), atol=1e-4, rtol=1e-4)
    model.after_update(1.0)
    assert torch.equal(target.compute_target(target_inputs(random_clip())), truth_BMD)


@pytest.mark.parametrize("patch", [(1, 4, 4), (4, 2, 2), (2, 8, 8)])
def test_a_teacher_may_have_another_patch_on_the_same_grid(
    tmp_path: Path, patch: tuple[int, int, int]
) -> None:
    encoder, _ = save_teacher(tmp_path, patch=patch)
    target = TeacherTarget(encoder=str(tmp_path))
    build_model(target)
    tokens = torch.arange(GRID.tokens).view(1, 1, GRID.t, GRID.h, GRID.w).expand(2, 3, -1, -1, -1)

    def of_patch(frames: int, height: int, width: int) -> torch.Tensor:
        """A clip in which each token has its own grey."""
        wide = tokens.repeat_interleave(frames, 2).repeat_interleave(height, 3).repeat_interleave(width, 4)
        return (20 + 25 * wide).to(torch.uint8)

    truth_BMD = target.compute_target(target_inputs(of_patch(*PATCH)))
    frames, height, width = (a * b for a, b in zip((GRID.t, GRID.h, GRID.w), patch, strict=True))
    own_BCTHW = resampled(of_patch(*PATCH), frames, height, width)
    assert own_BCTHW.dtype == torch.uint8
    assert torch.equal(
        own_BCTHW[:, :, :, :: height - 1, :: width - 1],
        of_patch(*patch)[:, :, :, :: height - 1, :: width - 1],
    )
    with torch.no_grad():
        x_BND = encoder(normalize(patchify(own_BCTHW, patch)), None)
    expected_BMD = F.layer_norm(gather_tokens(x_BND, TARGET), (36,))
    torch.testing.assert_close(truth_BMD, expected_BMD, atol=1e-5, rtol=1e-5)


def test_flops_and_memory_contain_the_frozen_teacher(tmp_path: Path) -> None:
    encoder, _ = save_teacher(tmp_path)
    model, batch = build_model(TeacherTarget(encoder=str(tmp_path))), batch_of(random_clip())
    with FlopCounterMode(display=False) as forward:
        encoder(normalize(patchify(random_clip(), PATCH)), None)
    assert count_flops(model, batch).target == forward.get_total_flops() // 2 > 0
    weights_of = sum(weight.numel() for weight in encoder.parameters())
    counts = parameter_counts(model)
    assert counts["unsaved_bytes"] == 4 * weights_of and counts["target"] == 0


def test_a_teacher_of_another_grid_is_refused_with_both(tmp_path: Path) -> None:
    save_teacher(tmp_path, TokenGrid(2, 3, 3))
    grids = r"the 2x2x2 tokens of this model, got one with 2x3x3 tokens"
    with pytest.raises(ValueError, match=rf"target\.args\.encoder.* {grids}"):
        build_model(TeacherTarget(encoder=str(tmp_path)))


def test_the_moving_average_sees_the_clip_that_the_encoder_sees() -> None:
    model = build_model(FeatureTarget(), standardize=True).eval()
    clip_BCTHW = standardize(random_clip() // 2 + 5)
    inputs = target_inputs(clip_BCTHW)
    with torch.no_grad():
        x_BND = model.encoder(normalize(patchify(clip_BCTHW, PATCH), MEAN, STD), None)
    expected_BMD = F.layer_norm(gather_tokens(x_BND, inputs.target_BM), x_BND.shape[2:])
    torch.testing.assert_close(model.target.compute_target(inputs), expected_BMD, rtol=0, atol=1e-6)


def test_a_frozen_teacher_sees_a_clip_that_is_standardized_once(tmp_path: Path) -> None:
    encoder, _ = save_teacher(tmp_path, standardize=True)
    model = build_model(TeacherTarget(encoder=str(tmp_path)), standardize=True).eval()
    clip_BCTHW = random_clip()
    dark_BCTHW = torch.where(clip_BCTHW > 250, 255, clip_BCTHW // 20)
    with torch.no_grad():
        _, inputs = model.predict(batch_of(dark_BCTHW), draws())
        x_BND = encoder(normalize(patchify(standardize(dark_BCTHW), PATCH), MEAN, STD), None)
    expected_BMD = F.layer_norm(gather_tokens(x_BND, inputs.target_BM), x_BND.shape[2:])
    torch.testing.assert_close(model.target.compute_target(inputs), expected_BMD, rtol=0, atol=1e-5)


def test_a_teacher_of_standardized_clips_is_refused_by_a_model_without(tmp_path: Path) -> None:
    save_teacher(tmp_path, standardize=True)
    with pytest.raises(ValueError, match=r"model\.standardize: expected true .*fix: model\.standardize=true"):
        build_model(TeacherTarget(encoder=str(tmp_path)))


def test_more_layers_than_the_teacher_has_are_refused(tmp_path: Path) -> None:
    save_teacher(tmp_path)
    message = r"target\.args\.last_layers must be at most 2, the depth of the teacher, got 3"
    with pytest.raises(ValueError, match=message):
        build_model(FeatureTarget(last_layers=3))
    with pytest.raises(ValueError, match=message):
        TeacherTarget(encoder=str(tmp_path), last_layers=3)


def test_a_folder_without_an_encoder_is_refused_with_the_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"target\.args\.encoder: .*missing: expected encoder.json"):
        TeacherTarget(encoder=str(tmp_path / "missing"))


def test_a_teacher_with_damaged_weights_is_refused_when_the_model_is_built(tmp_path: Path) -> None:
    save_teacher(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors"):
        build_model(TeacherTarget(encoder=str(tmp_path)))


def test_weighted_losses_are_those_of_the_parts_alone() -> None:
    parts = {"motion": {"weight": 0.25}, "noise": {"weight": 3}, "pixels": {"args": {"normalize": "patch"}}}
    model = build_model(WeightedTarget(parts=parts))
    prediction, known = model.predict(batch_of(random_clip()), draws())
    values = model.target.losses(prediction, known)
    size = model.encoder.shape.patch_values
    shares = {"motion": prediction.decoded_BMP[..., :size], "pixels": prediction.decoded_BMP[..., size:]}
    expected = {
        "motion": MotionTarget().losses(Prediction(decoded_BMP=shares["motion"]), known)["loss"],
        "noise": NoiseTarget().losses(Prediction(visible_BKP=prediction.visible_BKP), known)["loss"],
        "pixels": PixelTarget(normalize="patch").losses(Prediction(decoded_BMP=shares["pixels"]), known)[
            "loss"
        ],
    }
    assert set(values) == {"loss", "loss/motion", "loss/noise", "loss/pixels"}
    assert all(torch.equal(values[f"loss/{name}"], own_B) for name, own_B in expected.items())
    total_B = 0.25 * expected["motion"] + 3 * expected["noise"] + expected["pixels"]
    torch.testing.assert_close(values["loss"], total_B)


def test_weighted_parts_are_bound_and_updated_and_return_metrics() -> None:
    model = build_model(WeightedTarget(parts={"pixels": {}, "features": {"args": {"decay": 0.5}}}))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    before = model.target.state_metrics(model.encoder)["ema_distance"]
    model.after_update(0.01)
    after = model.target.state_metrics(model.encoder)["ema_distance"]
    assert 0.45 * before < after < 0.55 * before


def test_a_weighted_picture_is_that_of_the_first_part_that_has_one() -> None:
    pixels, known = PixelTarget(), target_inputs(random_clip())
    target = WeightedTarget(parts={"motion": {}, "pixels": {}})
    build_model(target)
    decoded_BMP = torch.cat([torch.zeros(2, 3, 96), pixels.compute_target(known)], dim=2)
    expected_BMP = pixels.to_pixels(pixels.compute_target(known), known, visible_only=True)
    assert torch.equal(target.to_pixels(decoded_BMP, known, visible_only=True), expected_BMP)


def test_targets_of_visible_tokens_only_need_no_decoder() -> None:
    target = WeightedTarget(parts={"noise": {}})
    assert target.needs_noise and build_model(target).decoder is None


@pytest.mark.parametrize(
    "part, message",
    [
        (
            Component(name="features", args={"decay": 1.0}),
            r"target\.args\.decay must lie in \[0, 1\), got 1\.0",
        ),
        (
            Component(name="features", args={"final_decay": 0.5}),
            r"final_decay must lie between .*0\.998 and 1",
        ),
        (Component(name="features", args={"beta": 0.0}), r"target\.args\.beta must be above 0"),
        (Component(name="features", args={"beta": 0.5}), r"beta must be omitted for target\.args\.loss=l1"),
        (
            Component(name="features", args={"loss": "l2"}),
            r"loss must be one of l1, smooth_l1, mse, got 'l2'",
        ),
        (Component(name="features", args={"schedule": "step"}), "schedule must be one of linear, cosine"),
        (Component(name="features", args={"last_layers": 0}), "last_layers must be at least 1"),
        (Component(name="teacher"), r"teacher needs encoder; set target\.args\.encoder=\.\.\."),
        (
            Component(name="weighted", args={"parts": {}}),
            r"target\.args\.parts must name at least one target",
        ),
        (
            Component(name="weighted", args={"parts": ["pixels", "pixels"]}),
            "must name at least one target, each once",
        ),
        (
            Component(name="weighted", args={"parts": {"pixel": {}}}),
            r"parts\.pixel: .* did you mean 'pixels'",
        ),
        (Component(name="weighted", args={"parts": {"weighted": {}}}), "weighted ones do not nest"),
        (Component(name="weighted", args={"parts": {"pixels": 1}}), "hold nothing but weight and args"),
        (
            Component(name="weighted", args={"parts": {"pixels": {"wait": 1}}}),
            "hold nothing but weight and args",
        ),
        (
            Component(name="weighted", args={"parts": {"pixels": {"weight": 0}}}),
            "weight must be a number above 0",
        ),
        (
            Component(name="weighted", args={"parts": {"hog": {"args": 3}}}),
            r"hog\.args must be a mapping, got 3",
        ),
        (
            Component(name="weighted", args={"parts": {"hog": {"args": {"cells": 0}}}}),
            r"target\.args\.parts\.hog: .*cells must be at least 1",
        ),
    ],
)
def test_a_wrong_argument_is_named(part: Component, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_component("kinemae.pretrain.targets", part, Target)
