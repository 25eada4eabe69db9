"""Reports hold the achieved FLOP/s of the run, and its MFU on a GPU with a known peak."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import step_flops
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.runtime.processes import find_processes
from kinemae.pretrain.runtime.settings import EngineConfig
from kinemae.pretrain.runtime.utilization import utilization
from kinemae.pretrain.training import make_plan, run_pretraining


def test_the_metrics_of_a_run_hold_its_flops_per_second(
    small_config: Callable[..., PretrainConfig],
) -> None:
    config = small_config("steps=4", "log.every_steps=2")
    run_pretraining(make_plan(config))
    lines = read_metrics(Path(config.run_dir) / "metrics.jsonl")
    assert ["tflops_per_device" in line for line in lines] == [False, True, False, True]
    for line in lines[1::2]:
        steps_per_s = line["clips_per_s"] / config.batch.global_clips
        assert line["tflops_per_device"] == pytest.approx(step_flops(config) * steps_per_s / 1e12, rel=0.01)
        assert "mfu" not in line  # the peak of a CPU is not known


@pytest.mark.parametrize(
    ("name", "precision", "mfu"),
    [("NVIDIA H200", "bf16", 0.3), ("NVIDIA H200", "fp32", 4.428), ("T4", "bf16", None)],
)
def test_the_mfu_is_the_fraction_of_the_peak_of_a_known_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, mfu: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    processes = replace(find_processes("cpu"), device=torch.device("cuda"), world=4)
    flops = 4 * 2.0 * 0.3 * 989e12  # 4 GPUs, 2 seconds
    values = utilization(flops, 2.0, processes, EngineConfig(precision=precision))
    assert values["tflops_per_device"] == pytest.approx(0.3 * 989, rel=1e-3)
    assert values.get("mfu") == (None if mfu is None else pytest.approx(mfu, rel=1e-3))
