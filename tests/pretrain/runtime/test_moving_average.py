"""The teacher of the feature target follows the updates and is part of the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.targets.features import FeatureTarget
from kinemae.pretrain.training import make_plan, run_pretraining

TARGET = "target={name: features, args: {decay: 0.5, final_decay: 0.9}}"


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def run(config: PretrainConfig) -> tuple[FeatureTarget, list[torch.Tensor], list[list[torch.Tensor]]]:
    """Train; return the target, the initial weights of the encoder and those after each update."""
    plan = make_plan(config)
    target = plan.model.target
    assert isinstance(target, FeatureTarget)
    first, seen = weights(plan.model.encoder), []
    update = target.after_update

    def noted(encoder: Any, progress: float) -> None:
        seen.append(weights(encoder))
        update(encoder, progress)

    target.after_update = noted  # type: ignore[method-assign]
    run_pretraining(plan)
    return target, first, seen


def losses(config: PretrainConfig) -> list[float]:
    return [line["loss"] for line in read_metrics(Path(config.run_dir) / "metrics.jsonl")]


@pytest.mark.parametrize(
    "setting",
    [
        "engine.zero_stage=0",
        "engine.zero_stage=1",
        "engine.zero_stage=2",
        "engine.precision=bf16",
        "batch.clips_per_device=2",
    ],
)
def test_the_teacher_is_the_moving_average_of_the_float32_weights(
    small_config: Callable[..., PretrainConfig], setting: str
) -> None:
    target, expected, seen = run(small_config(TARGET, setting, "steps=4"))
    assert len(seen) == 4, "once an update, however many batches it is made of"
    for step, own in enumerate(seen):
        decay = target.decay_at((step + 1) / 4)
        expected = [decay * taught + (1 - decay) * now for taught, now in zip(expected, own, strict=True)]
    assert all(not torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True) if a.ndim > 1)
    for actual, value in zip(weights(target.teacher), expected, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.nightly)])
@pytest.mark.slow
def test_a_resumed_run_has_a_bitwise_equal_teacher_and_losses(
    small_config: Callable[..., PretrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
) -> None:
    settings = (TARGET, f"engine.zero_stage={stage}", "save_in_background=false")
    unbroken = small_config(*settings, f"run_dir={tmp_path / 'unbroken'}")
    taught, _, _ = run(unbroken)
    broken = small_config(*settings, f"run_dir={tmp_path / 'broken'}")
    move = ClipBatch.to
    calls: list[int] = []

    def stop_in_the_fifth_step(batch: ClipBatch, device: torch.device, **options: Any) -> ClipBatch:
        if device.type != "meta":  # where the FLOPs of a step are counted
            calls.append(0)
        if len(calls) == 5:
            raise InterruptedError
        return move(batch, device, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ClipBatch, "to", stop_in_the_fifth_step)
        with pytest.raises(InterruptedError):
            run(broken)
    resumed, _, seen = run(broken)
    assert len(seen) == 2, "four steps were kept in a checkpoint"
    assert losses(broken) == losses(unbroken) and len(losses(broken)) == 6
    for actual, expected in zip(weights(resumed.teacher), weights(taught.teacher), strict=True):
        assert torch.equal(actual, expected)


def test_skipped_updates_do_not_change_encoder_and_teacher(
    small_config: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = FeatureTarget.errors
    monkeypatch.setattr(FeatureTarget, "errors", lambda *given: errors(*given) * float("nan"))
    target, first, seen = run(small_config(TARGET, "steps=2"))
    for kept in (seen[-1], weights(target.teacher)):
        assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_the_components_of_a_weighted_target_are_in_the_metrics(
    small_config: Callable[..., PretrainConfig],
) -> None:
    parts = "{pixels: {}, motion: {weight: 0.5, args: {normalize: patch}}}"
    config = small_config(f"target={{name: weighted, args: {{parts: {parts}}}}}", "steps=2")
    run_pretraining(make_plan(config))
    for line in read_metrics(Path(config.run_dir) / "metrics.jsonl"):
        assert line["loss"] == pytest.approx(line["loss/pixels"] + 0.5 * line["loss/motion"], rel=1e-6)


def test_a_teacher_target_uses_the_exported_encoder_of_another_run(
    small_config: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    run_pretraining(make_plan(small_config(f"run_dir={tmp_path / 'first'}", "steps=2")))
    target = f"target={{name: teacher, args: {{encoder: {tmp_path / 'first' / 'encoder'}}}}}"
    second = small_config(target, f"run_dir={tmp_path / 'second'}", "model.width=36", "steps=4")
    plan = make_plan(second)
    run_pretraining(plan)
    assert len(losses(second)) == 4 and all(torch.isfinite(torch.tensor(losses(second))))
    assert plan.model.encoder.shape.width == 36 and plan.model.decoder is not None
    assert plan.model.decoder.head.out_features == 24
