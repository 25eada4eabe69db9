"""Runs with several masks per clip: killed and resumed, and with other micro-batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import measure_cost
from kinemae.pretrain.runtime.config_changes import find_changes
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan, run_pretraining

RUN = [
    "masks_per_clip=2", "target=features", "pruning={name: learned, args: {keep: 0.75}}",
    "model.drop_path=0.3", "save_in_background=false", "steps=4",
]  # fmt: skip


def losses(config: PretrainConfig) -> list[float]:
    run_pretraining(make_plan(config))
    return [line["loss"] for line in read_metrics(Path(config.run_dir) / "metrics.jsonl")]


def test_a_resumed_run_repeats_the_unbroken_one_and_micro_batches_do_not_matter(
    small_config: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = losses(small_config(*RUN, f"run_dir={tmp_path / 'unbroken'}"))
    broken = small_config(*RUN, f"run_dir={tmp_path / 'broken'}")
    move, steps = ClipBatch.to, iter(range(3))

    def stop_in_the_fourth_step(batch: ClipBatch, device: Any, **options: Any) -> ClipBatch:
        if next(steps, None) is None:
            raise InterruptedError
        return move(batch, device, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ClipBatch, "to", stop_in_the_fourth_step)
        with pytest.raises(InterruptedError):
            losses(broken)
    assert losses(broken) == unbroken and len(unbroken) == 4
    small = losses(small_config(*RUN, f"run_dir={tmp_path / 'small'}", "batch.clips_per_device=1"))
    assert small == pytest.approx(unbroken, rel=1e-5)


def test_the_cost_counts_every_mask(small_config: Callable[..., PretrainConfig]) -> None:
    one, two = (measure_cost(small_config("target=features", f"masks_per_clip={n}")) for n in (1, 2))
    assert two["tokens"] == {**one["tokens"], "masks": 2}
    assert two["flops"]["encoder"] == 2 * one["flops"]["encoder"]
    assert two["flops"]["decoder"] == 2 * one["flops"]["decoder"]
    assert two["flops"]["target"] == one["flops"]["target"] > 0
    held = [cost["plain"]["held"]["per_clip"] for cost in (one, two)]
    assert 1.9 * held[0] < held[1] <= 2 * held[0]


def test_a_wrong_number_of_masks_and_another_one_on_resuming_are_refused(
    small_config: Callable[..., PretrainConfig],
) -> None:
    with pytest.raises(ValueError, match="masks_per_clip must be at least 1, got 0"):
        small_config("masks_per_clip=0")
    [change] = find_changes({"masks_per_clip": 1}, {"masks_per_clip": 2})
    assert change.effect == "refused: another task"
