"""The memory model compared with DeepSpeed's estimator, the largest micro-batch, and its warnings."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.pretrain.__main__ import PROGRAM
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import measure_cost, memory_cost
from kinemae.pretrain.runtime.memory import Machine, on_machine, row_of, states

CONFIG = """
run_dir: /no/run
steps: 1000
data: {shards: /no/shards, num_workers: -1}
clip: {frames: 16, size: 112}
batch: {global_clips: 1024, clips_per_device: 64}
model: {size: small}
masking: {name: tube, args: {ratio: 0.9}}
engine: {precision: bf16}
"""
GPUS = Machine(processes=8, memory_gb=80.0, is_cpu=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def measured_cost(config: Path) -> dict[str, Any]:
    return memory_cost(load_config(PretrainConfig, config, []))


@pytest.fixture
def cost(measured_cost: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(measured_cost)


def test_states_agree_with_deepspeeds_estimator() -> None:
    """DeepSpeed counts 2 bytes each for half-precision weights and gradients; KineMAE has only fp32."""
    values, layer = 86_000_000, 2_400_000
    parameters = {
        "all": values,
        "trainable": values,
        "buffer_bytes": 0,
        "unsaved_bytes": 0,
        "largest_layer": layer,
    }
    run = {"bucket_mb": 200, "overlap_comm": False}
    for nodes in (1, 4):
        world, bucket = 8 * nodes, 200_000_000
        ours = sum(states(parameters, run, stage=2, world=world).values())
        _, theirs = estimate_zero2_model_states_mem_needs(values, 8, nodes, cpu_offload=False)
        assert ours - 2 * bucket == pytest.approx(theirs + 2 * values - 2 * values / world, rel=1e-6)
        ours = sum(states(parameters, run, stage=3, world=world).values())
        _, theirs, largest = estimate_zero3_model_states_mem_needs(
            values, layer, 8, nodes, cpu_offload=False, cpu_offload_params=False
        )
        own = 4 * (50_000_000 + layer) + 4 * values  # gathered weights, and the readable copy
        assert ours - 3 * bucket - own == pytest.approx(theirs - largest + 2 * values / world, rel=1e-6)


def test_higher_stages_need_less_memory(cost: dict[str, Any]) -> None:
    # Many values, so that buckets and gathered layers are relatively small.
    cost["parameters"] |= {"all": 2_000_000_000, "trainable": 2_000_000_000}
    found = on_machine(cost, Machine(processes=16, memory_gb=80.0, is_cpu=False))
    rows = [row["bytes"] for row in found["memory"] if not row["recomputes"]]
    whole = [row["all"] - row.get("readable", 0) for row in rows]
    assert whole == sorted(whole, reverse=True)


def test_the_largest_micro_batch_fits_and_one_more_does_not(cost: dict[str, Any]) -> None:
    row = row_of(on_machine(cost, GPUS)["memory"], stage=0, recomputes=False)
    most = row["largest_micro_batch"]
    for clips, fits in ((most, True), (most + 1, False)):
        cost["run"] |= {"global_clips": 8 * clips, "clips_per_device": clips}
        assert row_of(on_machine(cost, GPUS)["memory"], stage=0, recomputes=False)["fits"] is fits


def test_a_batch_that_the_processes_cannot_share_is_refused(cost: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"batch.global_clips=1024 cannot be shared by 24 processes"):
        on_machine(cost, Machine(processes=24, memory_gb=80.0, is_cpu=False))


@pytest.mark.parametrize(
    ("memory_gb", "message"),
    [
        (
            3.0,
            r"memory does not fit: expected at most 2.85 GB, .*; fix: set batch.clips_per_device=\d+ or eng",
        ),
        (1.6, "use a smaller model or clip, or more memory"),
    ],
)
def test_memory_that_does_not_fit_is_a_warning_with_a_fix(
    cost: dict[str, Any], memory_gb: float, message: str
) -> None:
    assert on_machine(cost, GPUS)["warnings"] == []
    small = Machine(processes=8, memory_gb=memory_gb, is_cpu=False)
    [warning] = on_machine(cost, small)["warnings"]
    assert re.search(message, warning)


def test_auto_takes_the_largest_divisor_that_fits(cost: dict[str, Any]) -> None:
    cost["run"]["clips_per_device"] = "auto"
    chosen = []
    for memory_gb in (2.3, 4.0, 8.0, 80.0):
        found = on_machine(cost, Machine(processes=8, memory_gb=memory_gb, is_cpu=False))
        most = row_of(found["memory"], stage=0, recomputes=False)["largest_micro_batch"]
        micro, accumulation = found["batch"]["micro"], found["batch"]["accumulation"]
        assert micro * accumulation == 128 and found["warnings"] == []
        assert micro <= most and (accumulation == 1 or 2 * micro > most)
        chosen.append(micro)
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1] == 128


def test_auto_on_a_machine_without_room_warns_about_the_smallest_micro_batch(cost: dict[str, Any]) -> None:
    cost["run"] |= {"clips_per_device": "auto", "views_per_video": 2}
    found = on_machine(cost, Machine(processes=8, memory_gb=1.6, is_cpu=False))
    assert found["batch"] == {"micro": 2, "accumulation": 64}
    assert "at micro-batch 2; fix: use a smaller model" in found["warnings"][0]


@pytest.mark.slow
def test_the_ledger_of_auto_has_the_chosen_micro_batch(config: Path) -> None:
    auto = load_config(PretrainConfig, config, ["batch.clips_per_device=auto"])
    cost = measure_cost(auto, GPUS)
    assert cost["ledger"]["clips"] == cost["batch"]["micro"] == 128
    assert measure_cost(auto)["ledger"]["clips"] == 64


def test_the_command_prints_the_memory_of_a_device(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cost", str(config), "--processes", "8", "--memory-gb", "3", "model.size=tiny"]
    assert run_program(PROGRAM, words) == 0
    assert re.search(
        r"memory of a device in GB, 3 available, micro-batch 64\n +ZeRO +all +largest",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "8"], "--memory-gb must be given with the other options of the machine"),
        (["--memory-gb", "much"], "--memory-gb must be a number above 0, got 'much'"),
        (["--memory-gb", "80", "--processes", "1.5"], "--processes must be a whole number above 0"),
    ],
)
def test_a_wrong_machine_exits_with_2(
    config: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(PROGRAM, ["cost", str(config), *words]) == 2
    assert message in capsys.readouterr().err
