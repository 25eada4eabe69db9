"""A run with a moving average of the weights: evaluation and export use it; training does not change."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kinemae.pretrain.checkpoint_encoder import load_checkpoint_model
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.exported_model import load_decoder, load_encoder
from kinemae.pretrain.reconstructions import ReconstructionLogger
from kinemae.pretrain.representation_monitor import RepresentationMonitor
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.runtime.weight_average import WeightAverage
from kinemae.pretrain.targets.features import FeatureTarget
from kinemae.pretrain.training import make_plan, run_pretraining

DECAY = 0.7
Weights = list[torch.Tensor]


def weights(module: torch.nn.Module) -> Weights:
    return [parameter.detach().clone() for parameter in module.parameters()]


def assert_equal(ours: Weights, theirs: Weights) -> None:
    assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def run(config: PretrainConfig) -> tuple[Weights, Weights]:
    """Train; return the exported encoder, with the averaged and the last weights."""
    run_pretraining(make_plan(config))
    folders = [Path(config.run_dir) / name for name in ("encoder", "encoder_raw")]
    averaged, raw = (weights(load_encoder(folder)[0]) if folder.exists() else [] for folder in folders)
    return averaged, raw


def losses(config: PretrainConfig) -> list[float]:
    return [line["loss"] for line in read_metrics(Path(config.run_dir) / "metrics.jsonl")]


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.nightly), 3])
def test_evaluation_and_export_use_the_average_of_all_steps(
    small_config: Callable[..., PretrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
) -> None:
    """The plain average is of float32 weights that each step logs."""
    settings = ("steps=4", "target.name=features", f"engine.zero_stage={stage}", "pictures.every_steps=4")
    plain = small_config(*settings, f"run_dir={tmp_path / 'plain'}")
    config = small_config(*settings, f"ema.decay={DECAY}", f"run_dir={tmp_path / 'averaged'}")
    plan = make_plan(config)
    expected, seen, shown = weights(plan.model.encoder), [], []
    update = FeatureTarget.after_update

    def noted(target: FeatureTarget, encoder: torch.nn.Module, progress: float) -> None:
        seen.append(weights(encoder))
        update(target, encoder, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureTarget, "after_update", noted)
    for kind in (RepresentationMonitor, ReconstructionLogger):
        monkeypatch.setattr(
            kind, "after_step", lambda callback, *_: shown.append(weights(callback.model.encoder))
        )

    averaged, raw = run(config)

    for step, own in enumerate(seen):
        decay = min(DECAY, (2 + step) / (11 + step))
        expected = [
            decay * old.view_as(new) + (1 - decay) * new for old, new in zip(expected, own, strict=True)
        ]
    assert len(seen) == 4, "the feature target's teacher follows too"
    for ours, theirs in zip(averaged, expected, strict=True):
        torch.testing.assert_close(ours.flatten(), theirs.flatten(), atol=1e-6, rtol=1e-5)
    assert_equal([tensor.flatten() for tensor in raw], [tensor.flatten() for tensor in seen[-1]])
    assert not torch.equal(raw[0], averaged[0])
    assert len(shown) == 2
    for weights_of_callback in shown:
        assert_equal(weights_of_callback, averaged)

    encoder, decoder, _ = load_checkpoint_model(tmp_path / "averaged" / "checkpoints" / "step-00000004")
    assert decoder is not None
    assert_equal(weights(encoder), averaged)
    assert_equal(weights(decoder), weights(load_decoder(tmp_path / "averaged" / "encoder")[0]))

    if stage == 0:
        monkeypatch.setattr(FeatureTarget, "after_update", update)
        assert_equal(run(plain)[0], raw)
        assert losses(plain) == losses(config), "training does not change"


def test_a_killed_run_has_a_bitwise_equal_average(
    small_config: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"ema.decay={DECAY}", "save_in_background=false", "optim.optimizer=muon")
    unbroken = run(small_config(*settings, f"run_dir={tmp_path / 'unbroken'}"))
    broken = small_config(*settings, f"run_dir={tmp_path / 'broken'}")
    update = WeightAverage.after_update

    def stop_after_five_steps(average: WeightAverage, progress: float) -> None:
        if progress > 5 / 6:
            raise InterruptedError
        update(average, progress)

    with monkeypatch.context() as patch:
        patch.setattr(WeightAverage, "after_update", stop_after_five_steps)
        with pytest.raises(InterruptedError):
            run(broken)

    for ours, theirs in zip(run(broken), unbroken, strict=True):
        assert_equal(ours, theirs)
    assert losses(broken) == losses(small_config(f"run_dir={tmp_path / 'unbroken'}"))
