"""Numbers of a plan compared with independent sources, and its warnings."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.config import load_config
from kinemae.launch.__main__ import main
from kinemae.launch.plan.command import expected_mfu, make_plan, split_overrides
from kinemae.launch.plan.machines import Machines
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import measure_cost
from kinemae.pretrain.runtime.memory import Machine, on_machine
from tests.conftest import run_module

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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def measured_cost(config: Path) -> dict[str, Any]:
    return measure_cost(load_config(PretrainConfig, config, []))


@pytest.fixture
def cost(measured_cost: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(measured_cost)


def plan(cost: dict[str, Any], **machines: Any) -> dict[str, Any]:
    own = Machines(**machines)
    cost |= on_machine(cost, Machine(processes=own.world, memory_gb=80.0, is_cpu=own.device == "cpu"))
    return make_plan(cost, own.resolved(cost["run"]["precision"], expected_mfu(cost, own.device)))


def test_the_expected_mfu_is_that_of_the_ledger(cost: dict[str, Any]) -> None:
    cost["run"]["compiles"] = False
    eager = plan(cost, device="h200", nodes=1)["step"]
    assert eager["mfu"] == pytest.approx(cost["prediction"]["h200"]["eager"]["mfu"])
    of_clip = cost["prediction"]["h200"]["eager"]["seconds_per_clip"]
    assert eager["seconds"] == pytest.approx(1024 / 8 * of_clip)
    cost["run"]["compiles"] = True
    assert plan(cost, device="h200", nodes=1)["step"]["seconds"] < eager["seconds"]
    assert expected_mfu(cost, "cpu") == 0.6


def test_the_mfu_sets_the_time_of_a_step(cost: dict[str, Any]) -> None:
    step = plan(cost, mfu=0.25, nodes=2, devices_per_node=4, peak_tflops=100.0)["step"]
    flops = cost["flops"]["training"] * 1024 / 8
    assert step["seconds"] == pytest.approx(flops / (0.25 * 100e12))
    assert step["device_hours"] == pytest.approx(8 * 1000 * step["seconds"] / 3600)
    cost["run"]["recomputes"] = True
    again = plan(cost, mfu=0.25, nodes=2, devices_per_node=4, peak_tflops=100.0)["step"]
    assert again["seconds"] == pytest.approx(4 / 3 * step["seconds"])  # one more forward pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["node=2"], "config key node: unknown key; did you mean nodes?"),
        (["devices_per_nod=4"], "unknown key; did you mean devices_per_node?"),
        (["devise=cpu"], "unknown key; did you mean device?"),
        (["device=h300"], "h300"),
        (["nodes=0"], "nodes must be above 0, got 0"),
        (["nodes=two"], "config key nodes: expected a whole number, got 'two'"),
        (["mfu=1.5"], "mfu must be at most 1, got 1.5"),
        (["nodes"], "expected an override of the form key=value, got 'nodes'"),
    ],
)
def test_wrong_usage_exits_with_2(
    config: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_fine_tuning_config_is_refused(capsys: pytest.CaptureFixture[str], repo: Path) -> None:
    assert main(["plan", str(repo / "configs/finetune/demo.yaml")]) == 2
    assert "is a fine-tuning config" in capsys.readouterr().err


@pytest.mark.slow
def test_a_refused_config_keeps_its_message_and_exit_code(config: Path) -> None:
    ran = run_module("launch", "plan", str(config), "masking.name=tubes", check=False)
    assert ran.returncode == 2 and "did you mean 'tube'?" in ran.stderr and ran.stdout == ""


def test_keys_of_machines_and_of_the_config_are_separated() -> None:
    assert split_overrides(["nodes=2", "model.depth=3", "device=cpu"]) == (
        ["nodes=2", "device=cpu"],
        ["model.depth=3"],
    )


@pytest.mark.slow
def test_the_text_shows_numbers_and_assumptions(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", str(config), "device=h200", "steps=500", "mfu=0.4", "nodes=2", "model.size=tiny"]) == 0
    )
    page = capsys.readouterr().out
    assert page.startswith("500 steps of 1024 clips on 16 h200 in nodes: 2; ZeRO 0, bf16\n")
    for word in (
        "parameters",
        "tokens",
        "FLOPs",
        "checkpoint",
        "prediction",
        "reading",
        "assumptions",
    ):
        assert f"\n{word} " in page
    assert " mfu=0.4 " in page and " memory_gb=141 " in page


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.processes
def test_memory_of_a_real_run_is_planned_within_a_tenth(
    small_memory: Callable[..., tuple[float, float, float, float]],
) -> None:
    planned, measured, planned_checkpoint, checkpoint = small_memory()
    assert math.isclose(planned, measured, rel_tol=0.1), (planned, measured)
    assert math.isclose(planned_checkpoint, checkpoint, rel_tol=0.02)


@pytest.fixture
def small_memory(
    tmp_path: Path, synth_shards: Path, config: Path
) -> Callable[..., tuple[float, float, float, float]]:
    """Train two models on the CPU; the smaller one shows the memory of an empty process."""
    common = [f"data.shards={synth_shards / 'unlabelled'}", "data.num_workers=0", "clip.stride=1"]
    common += ["engine.precision=fp32", "engine.device=cpu", "engine.cpu_threads=1", "log.every_steps=1"]
    common += ["pictures.every_steps=0", "monitor.every_steps=0", "steps=3"]
    sizes = {
        "tiny": ["model.size=tiny", "batch.global_clips=1"],
        "small": ["batch.global_clips=8", "batch.clips_per_device=8"],
    }

    def planned(name: str, process_gb: float) -> dict[str, Any]:
        words = [str(config), "device=cpu", f"process_gb={process_gb}", *common, *sizes[name]]
        printed = run_module("launch", "plan", *words, f"run_dir={tmp_path / name}", "--json").stdout
        return dict(json.loads(printed))

    def bytes_of(name: str) -> float:
        reports = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return 1e9 * float(json.loads(reports[-1])["memory_gb"])

    def run() -> tuple[float, float, float, float]:
        for name, own in sizes.items():
            run_module("pretrain", str(config), f"run_dir={tmp_path / name}", *common, *own)
        of_tiny = planned("tiny", process_gb=1.0)["memory"][0]["bytes"]
        process_gb = (bytes_of("tiny") - of_tiny["all"]) / 1e9 + 1.0
        plan = planned("small", process_gb)
        [saved] = (tmp_path / "small" / "checkpoints").glob("step-*")
        return (
            plan["memory"][0]["bytes"]["all"],
            bytes_of("small"),
            plan["checkpoint"]["bytes"],
            sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
        )

    return run
