"""`batch.clips_per_device=auto`: the choice by memory, the trial, and runs with it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinemae.data_tools.command import log
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.order import BatchPlan, plan_batch
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import black_clips
from kinemae.pretrain.runtime import micro_batch
from kinemae.pretrain.runtime.memory import needed
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.runtime.micro_batch import AutoMicroBatch, available, fits
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.training import make_plan, run_pretraining
from tests.simulated_ranks import run_simulated

MB = 1_000_000
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
AUTO = "batch.clips_per_device=auto"
CLIPS = 24


class Module(nn.Module):
    """Runs out of memory above a number of clips."""

    def __init__(self, most: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.most = most
        self.tried: list[int] = []

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        clips = len(batch.clip_index_B)
        self.tried.append(clips)
        if clips > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"loss": self.weight.sum() * torch.ones(clips)}


def clips(count: int) -> ClipBatch:
    index_B = torch.arange(count)
    pixels = torch.zeros(count, 3, 1, 2, 2, dtype=torch.uint8)
    return ClipBatch(pixels=pixels, clip_index_B=index_B, label_B=index_B, weight_B=torch.ones(count))


def cost(**run: Any) -> dict[str, Any]:
    """One clip needs 100 MB, and the states nearly nothing."""
    line = {"fixed": 0, "per_clip": 100 * MB}
    counts = {"all": 3, "trainable": 3, "buffer_bytes": 0, "unsaved_bytes": 0, "largest_layer": 3}
    values = {
        "zero_stage": 0,
        "precision": "fp32",
        "bucket_mb": 50,
        "overlap_comm": True,
        "recomputes": False,
    }
    values |= {"grad_reduce_dtype": "fp32", "planes_bytes": 0, "rgb_bytes": 0}
    lower = {"fixed": 0, "per_clip": 10 * MB}
    return {
        "run": {**values, **run},
        "parameters": counts,
        "plain": {"peak": line},
        "recomputed": {"peak": lower},
    }


def auto(processes: Processes, *, smallest: int = 1, **run: Any) -> AutoMicroBatch:
    return AutoMicroBatch(
        measure=lambda: cost(**run),
        divide=lambda limit: plan_batch(CLIPS * processes.world, limit, processes.world, smallest),
        smallest=smallest,
        clips=clips,
        processes=processes,
    )


def one(device: torch.device) -> Processes:
    return Processes(rank=0, world=1, device=device)


def with_free_memory(monkeypatch: pytest.MonkeyPatch, bytes_: float) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(bytes_), 10**12))
    monkeypatch.setattr(micro_batch, "available_memory", lambda: int(bytes_))


@pytest.mark.parametrize(
    ("free_gb", "clips_at_once"),
    [(80.0, 24), (3.6, 12), (2.7, 8), (1.9, 2)],
)
def test_on_cuda_the_free_memory_decides(
    free_gb: float, clips_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty process takes 1.5 GB, a clip 110 MB, and 5 % of the memory stay free."""
    with_free_memory(monkeypatch, 1e9 * free_gb)
    plan, reason = auto(one(CUDA)).estimate()
    assert plan == BatchPlan(
        global_clips=CLIPS, world=1, micro_clips=clips_at_once, accumulation=CLIPS // clips_at_once
    )
    assert f"auto: {clips_at_once} clips need " in reason and f"of {0.95 * free_gb:.3g} GB" in reason


def test_on_the_cpu_the_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 10e9)
    alone = available(one(CPU)).memory_gb
    assert alone == pytest.approx(7.0)
    four = Processes(rank=0, world=4, device=CPU)
    assert available(four).memory_gb == pytest.approx(alone / 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available(four).memory_gb == pytest.approx(alone / 2)


def test_if_nothing_fits_the_error_has_both_numbers_and_a_fix(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_free_memory(monkeypatch, 1.75e9)
    message = (
        "batch.clips_per_device=auto: memory does not fit: expected at most 1.66 GB, got 1.72 GB .estimate. "
        "at micro-batch 2; fix: set engine.activation_checkpointing=true"
    )
    with pytest.raises(ValueError, match=message):
        auto(one(CUDA), smallest=2).estimate()
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level(logging.WARNING):
        plan, reason = auto(one(CUDA), smallest=2).estimate(must_fit=False)
    assert plan.micro_clips == 2 and reason in caplog.text


def test_the_smallest_device_decides_for_all_processes() -> None:
    def chosen(processes: Processes) -> int:
        choice = auto(processes)
        return choice.confirm(choice.divide([24, 8, 12][processes.rank]), Module(CLIPS)).micro_clips

    found, _ = run_simulated(3, chosen)
    assert found == [8, 8, 8]


def test_a_trial_that_runs_out_of_memory_on_one_process_lowers_the_micro_batch_of_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(AutoMicroBatch, "_has_trial", True)
    monkeypatch.setattr(log, "propagate", True)

    def chosen(processes: Processes) -> tuple[int, list[int]]:
        module, choice = Module([24, 7][processes.rank]), auto(processes)
        return choice.confirm(choice.divide(12), module).micro_clips, module.tried

    with caplog.at_level(logging.WARNING):
        found, _ = run_simulated(2, chosen)
    assert found == [(6, [12, 8, 6])] * 2
    assert "12 clips do not fit; trying 8" in caplog.text


def test_a_trial_of_the_smallest_micro_batch_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoMicroBatch, "_has_trial", True)
    choice = auto(one(CPU), smallest=2)
    with pytest.raises(ValueError, match="of 2 clips to fit the device, got out of memory; fix: set"):
        choice.confirm(choice.divide(4), Module(1))


@pytest.mark.parametrize(
    ("device", "stage", "has_trial"), [(CPU, 0, False), (CUDA, 0, True), (CUDA, 2, True), (CUDA, 3, False)]
)
def test_only_devices_that_hold_all_weights_have_a_trial(
    device: torch.device, stage: int, has_trial: bool
) -> None:
    assert auto(one(device), zero_stage=stage)._has_trial is has_trial


def test_the_trial_reserves_the_states_that_do_not_exist_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def observed(*given: Any, reserved: int, **options: Any) -> bool:
        sizes.append(reserved)
        return True

    monkeypatch.setattr(AutoMicroBatch, "_has_trial", True)
    monkeypatch.setattr(micro_batch, "fits", observed)
    choice = auto(one(CPU))
    choice.confirm(choice.divide(4), Module(CLIPS))
    assert sizes == [3 * (4 + 8)]  # gradients and moments of three weights


def test_a_trial_changes_nothing(small_config: Callable[..., PretrainConfig]) -> None:
    config = small_config()
    module = make_plan(config, is_run=False).model.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert fits(module, black_clips(config)(2), CPU, reserved=1000, is_bf16=False)
    assert torch.equal(torch.rand(1), expected) and not module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())
    assert not any(weight._post_accumulate_grad_hooks for weight in module.parameters())


def test_a_run_with_auto_trains_as_one_with_this_number(
    small_config: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops, and continues where the memory allows another micro-batch."""
    measured = make_plan(small_config(AUTO)).with_micro_batch().auto
    assert measured is not None
    values, machine, move, calls = measured.measure(), available(one(CPU)), ClipBatch.to, iter(range(14))

    def train(*changes: str, clips_at_once: int = 1) -> tuple[int, list[float]]:
        size = needed(values, clips_at_once, machine, stage=0, recomputes=False)["all"]
        with_free_memory(monkeypatch, 1.001 * size / 0.95 / 0.7)
        config = small_config(*changes)
        plan = run_pretraining(make_plan(config))
        lines = read_metrics(Path(config.run_dir) / "metrics.jsonl")
        return plan.batch.micro_clips, [line["loss"] for line in lines]

    def stop_in_the_fourth_step(batch: ClipBatch, device: Any, **options: Any) -> ClipBatch:
        if next(calls, None) is None:
            raise InterruptedError
        return move(batch, device, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ClipBatch, "to", stop_in_the_fourth_step)
        with pytest.raises(InterruptedError):
            train(AUTO)
    micro, losses = train(AUTO, clips_at_once=2)
    _, expected = train(f"run_dir={tmp_path / 'fixed'}")
    assert micro == 2 and len(losses) == 6
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_dry_run_prints_the_value_and_the_reason(
    small_config: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = make_plan(small_config(AUTO)).with_micro_batch(must_fit=False).summary()
    assert summary["clips_per_process_at_once"] == 4 and "auto: 4 clips need" in str(summary["micro_batch"])
    assert "micro_batch" not in make_plan(small_config()).with_micro_batch().summary()
    with_free_memory(monkeypatch, 1)
    plan = make_plan(small_config(AUTO))
    assert plan.with_micro_batch(must_fit=False).summary()["clips_per_process_at_once"] == 1
    with pytest.raises(ValueError, match="memory does not fit"):
        run_pretraining(plan)
    assert not Path(plan.config.run_dir).exists()


def test_auto_is_refused_with_a_target_that_needs_one_micro_batch(
    small_config: Callable[..., PretrainConfig],
) -> None:
    message = "expected a number with target.name=views.*got auto; fix: set batch.clips_per_device to"
    with pytest.raises(ValueError, match=message):
        make_plan(small_config(AUTO, "target=views", "noise=none"))


@pytest.mark.parametrize(
    ("value", "message"),
    [("0", "must be at least 1, or auto, got 0"), ("full", "'full'"), ("true", "[Tt]rue"), ("1.5", "1.5")],
)
def test_another_value_is_refused(
    value: str, message: str, small_config: Callable[..., PretrainConfig]
) -> None:
    with pytest.raises(ValueError, match=rf"batch.clips_per_device.*{message}"):
        small_config(f"batch.clips_per_device={value}")


def test_a_batch_that_cannot_be_divided_is_refused_without_a_limit(
    small_config: Callable[..., PretrainConfig],
) -> None:
    with pytest.raises(ValueError, match=r"equal micro-batches that are multiples of .* = 3$"):
        make_plan(small_config(AUTO, "data.views_per_video=3"))
