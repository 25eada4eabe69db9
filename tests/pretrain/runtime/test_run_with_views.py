"""A run with the view target: its batch, its metrics and its export."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan, run_pretraining

ARGUMENTS = "{local_views: 2, local_drop: 0.5, slices: 64, hidden: 32, width: 16}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "batch.clips_per_device=2",
            "batch.clips_per_device: .* got 2 micro-batches; fix: .*clips_per_device=4",
        ),
        ("batch.global_clips=1", "batch.global_clips must be at least 2"),
    ],
)
def test_batches_that_cannot_be_compared_are_errors(
    small_config: Callable[..., PretrainConfig], override: str, message: str
) -> None:
    for target in (
        "views",
        f"{{name: weighted, args: {{parts: {{pixels: {{}}, views: {{args: {ARGUMENTS}}}}}}}}}",
    ):
        with pytest.raises(ValueError, match=message):
            make_plan(
                small_config(f"target={target}" if "{" in target else f"target.name={target}", override)
            )


def test_a_run_without_a_decoder_learns_and_exports_the_encoder_alone(
    small_config: Callable[..., PretrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = f"target={{name: views, args: {ARGUMENTS}}}"
    run_pretraining(make_plan(small_config(target, "monitor.every_steps=3", "pictures.every_steps=6")))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) == 6 and all(math.isfinite(line["loss"]) for line in lines)
    for line in lines:
        assert line["loss"] == pytest.approx(line["invariance"] + 0.02 * line["sigreg"], rel=1e-5)
    assert [line.get("monitor/collapsed") for line in lines] == [None, None, 0.0] * 2
    weights = load_file(tmp_path / "run" / "encoder" / "encoder.safetensors")
    assert weights and not any("projector" in name for name in weights)
    assert not (tmp_path / "run" / "encoder" / "decoder.safetensors").exists()


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_sums_are_over_all_processes_with_and_without_a_moving_average(
    small_config: Callable[..., PretrainConfig], average: float
) -> None:
    target = f"target={{name: views, args: {ARGUMENTS}}}"
    plan = make_plan(small_config(target, f"ema.decay={average}", "steps=1"))
    run_pretraining(plan)
    assert plan.model.total == plan.processes.total
