"""Numbers of a plan compared with independent sources, and its warnings."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.order import plan_batch
from kinemae.launch.__main__ import main
from kinemae.launch.plan.command import make_plan, split_words
from kinemae.launch.plan.devices import Machines, assumptions
from kinemae.launch.plan.measured import calibrate, read_run
from kinemae.launch.plan.memory import states
from kinemae.launch.plan.step_time import Fit, cut_batch
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import measure_cost
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


def plan(cost: dict[str, Any], fit: Fit = Fit(), **machines: Any) -> dict[str, Any]:  # noqa: B008 - frozen
    return make_plan(cost, Machines(**machines).resolved(cost["run"]["precision"]), fit)


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
    for nodes in (1, 4):
        world, bucket = 8 * nodes, 200_000_000
        ours = sum(states(parameters, stage=2, world=world, bucket_mb=200).values())
        _, theirs = estimate_zero2_model_states_mem_needs(values, 8, nodes, cpu_offload=False)
        assert ours - 2 * bucket == pytest.approx(theirs + 2 * values - 2 * values / world, rel=1e-6)
        ours = sum(states(parameters, stage=3, world=world, bucket_mb=200).values())
        _, theirs, largest = estimate_zero3_model_states_mem_needs(
            values, layer, 8, nodes, cpu_offload=False, cpu_offload_params=False
        )
        own = 4 * (50_000_000 + layer) + 4 * values  # gathered weights, and the readable copy
        assert ours - 3 * bucket - own == pytest.approx(theirs - largest + 2 * values / world, rel=1e-6)


def test_higher_stages_need_less_memory_and_more_communication(cost: dict[str, Any]) -> None:
    # Many values, so that buckets and gathered layers are relatively small.
    cost["parameters"] |= {"all": 2_000_000_000, "trainable": 2_000_000_000}
    found = plan(cost, nodes=2)
    rows = [row["bytes"] for row in found["memory"] if not row["recomputes"]]
    whole = [row["all"] - row.get("readable", 0) for row in rows]
    assert whole == sorted(whole, reverse=True)
    seconds = [row["seconds"] for row in found["exchange"]]
    assert seconds == sorted(seconds)


def test_a_batch_is_split_as_in_training() -> None:
    for global_clips in (7, 24, 64, 96):
        for most in (3, 8, 64):
            for world in (1, 2, 3, 8):
                for views in (1, 2):
                    run = {
                        "global_clips": global_clips,
                        "clips_per_device": most,
                        "views_per_video": views,
                    }
                    try:
                        real = plan_batch(global_clips, most, world, views)
                    except ValueError:
                        with pytest.raises(ValueError, match=f"to a multiple of {world} x {views}"):
                            cut_batch(run, world)
                    else:
                        cut = cut_batch(run, world)
                        assert (cut.micro, cut.accumulation) == (real.micro_clips, real.accumulation)


def test_the_largest_micro_batch_fits_and_one_more_does_not(cost: dict[str, Any]) -> None:
    [row] = [row for row in plan(cost)["memory"] if row["stage"] == 0 and not row["recomputes"]]
    most = row["largest_micro_batch"]
    for clips, fits in ((most, True), (most + 1, False)):
        cost["run"] |= {"global_clips": 8 * clips, "clips_per_device": clips}
        [row] = [row for row in plan(cost)["memory"] if row["stage"] == 0 and not row["recomputes"]]
        assert row["fits"] is fits


def test_a_larger_batch_scales_better_and_more_nodes_worse(cost: dict[str, Any]) -> None:
    small = [row["efficiency"] for row in plan(cost)["scaling"]]
    cost["run"]["global_clips"] *= 8
    large = [row["efficiency"] for row in plan(cost)["scaling"]]
    assert small == sorted(small, reverse=True) and large == sorted(large, reverse=True)
    assert all(0 < one < other <= 1 for one, other in zip(small, large, strict=True))


@pytest.mark.slow
def test_base_on_an_h200_lies_between_the_published_rates(tmp_path: Path) -> None:
    """The plan lies between eager without fused attention (756 clips/s, 20 % MFU) and fused (1625, 42 %)."""
    recipe = Path(__file__).resolve().parents[2] / "configs/pretrain/videomae_base.yaml"
    overrides = ["engine.precision=bf16", "batch.global_clips=64", "batch.clips_per_device=64"]
    base = measure_cost(load_config(PretrainConfig, recipe, overrides))
    step = plan(base, device="h200", devices_per_node=1)["step"]
    assert 756 < 64 / (step["compute"] + step["update"]) < 1625


def test_a_given_mfu_sets_the_compute_time(cost: dict[str, Any]) -> None:
    found = plan(cost, mfu=0.25, devices_per_node=1, peak_tflops=100.0)
    flops = cost["flops"]["training"] * 1024
    assert found["step"]["compute"] == pytest.approx(flops / (0.25 * 100e12))


@pytest.mark.parametrize(
    ("machines", "changes", "message"),
    [
        (
            {"memory_gb": 3.0},
            {},
            r"memory does not fit: \d.*; fix: set batch.clips_per_device=\d+ or engine.acti",
        ),
        ({"memory_gb": 1.6}, {}, "use a smaller model or clip, or more memory"),
        ({"cores_per_node": 9}, {}, "the loader is the bottleneck: 1 cores .* data.views_per_video"),
        ({"nodes": 2, "link_gbit": 1.0}, {}, r"the network is the bottleneck: \d+% .*batch.global_clips"),
        (
            {"kernel_launch_us": 5.5},
            {"clips_per_device": 1},
            "the micro-batch is too small: with 1 clips .* raise batch",
        ),
        ({"disk_gb_s": 0.001}, {"save_every_steps": 1}, "takes .* s to write .* raise save_every_steps to"),
    ],
)
def test_bottlenecks_are_reported_with_number_and_fix(
    cost: dict[str, Any], machines: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    fine = {"cores_per_node": 100_000, "disk_gb_s": 1000.0, "link_gbit": 1e6, "kernel_launch_us": 0.01}
    cost["run"]["global_clips"] *= 8
    calm = plan(cost, **fine)["warnings"]
    assert [message for message in calm if "micro-batch" not in message] == []
    cost["run"] |= changes
    warnings = plan(cost, **{**fine, **machines})["warnings"]
    assert any(re.search(message, warning) for warning in warnings), warnings


def test_without_workers_reading_adds_to_the_step(cost: dict[str, Any]) -> None:
    cost["run"]["num_workers"] = 0
    step = plan(cost)["step"]
    assert step["all"] > step["data"] + step["compute"]


def write_run(folder: Path, config: Path, *, step_s: float, wait_share: float = 0.0) -> Path:
    """Write the run folder of a training with these step times."""
    folder.mkdir()
    (folder / "config.yaml").write_text(config.read_text())
    (folder / "environment.json").write_text(json.dumps([{"processes": 8}]))
    rate = 1024 * (1 - wait_share) / step_s
    lines = [{"step": 0, "clips_per_s": 1.0, "data_wait_fraction": 0.9, "memory_gb": 1.0}]
    lines += [
        {"step": step, "clips_per_s": rate, "data_wait_fraction": wait_share, "memory_gb": 9.0}
        for step in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_calibrated_plan_predicts_its_run(cost: dict[str, Any], config: Path, tmp_path: Path) -> None:
    machines = Machines(memory_gb=80.0).resolved("bf16")
    planned = make_plan(cost, machines, Fit())["step"]
    slow_s = 3 * (planned["compute"] + planned["update"]) + planned["exchange"]
    run = read_run(write_run(tmp_path / "run", config, step_s=slow_s))
    fit, _, message = calibrate(run, cost, machines)
    assert fit.compute == pytest.approx(3) and fit.clips_per_core is None
    again = make_plan(cost, machines, fit)["step"]
    assert again["compute"] + again["update"] + again["exchange"] == pytest.approx(slow_s)
    assert message["slower_than_planned"] == pytest.approx(3) and message["step_s"]["measured"] == slow_s


def test_a_run_that_waited_calibrates_the_loader(cost: dict[str, Any], config: Path, tmp_path: Path) -> None:
    machines = Machines().resolved("bf16")
    run = read_run(write_run(tmp_path / "run", config, step_s=10.0, wait_share=0.5))
    fit, _, message = calibrate(run, cost, machines)
    assert fit.clips_per_core == pytest.approx(1024 / 20 / 104, rel=0.1)  # 112 cores less 8, in 20 s
    assert message["clips_per_core"]["is_the_limit"]


@pytest.mark.parametrize("spoilt", ["config.yaml", "metrics.jsonl", "environment.json"])
def test_a_folder_that_is_not_a_run_is_refused(config: Path, tmp_path: Path, spoilt: str) -> None:
    folder = write_run(tmp_path / "run", config, step_s=1.0)
    (folder / spoilt).unlink()
    with pytest.raises(ValueError, match=r"expected the run_dir of a pretraining run, got"):
        read_run(folder)


def test_a_run_that_is_too_short_is_refused(config: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config, step_s=1.0)
    first = (folder / "metrics.jsonl").read_text().split("\n")[0]
    (folder / "metrics.jsonl").write_text(first + "\n")
    with pytest.raises(ValueError, match="expected at least 2 reports, got 1"):
        read_run(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["node=2"], "config key node: unknown key; did you mean nodes?"),
        (["devices=4"], "unknown key; did you mean devices_per_node?"),
        (["devise=cpu"], "unknown key; did you mean device?"),
        (["device=h300"], "h300"),
        (["nodes=0"], "nodes must be above 0, got 0"),
        (["nodes=two"], "config key nodes: expected a whole number, got 'two'"),
        (["mfu=1.5"], "mfu must lie above 0 and at most at 1, got 1.5"),
        (["nodes"], "expected an override of the form key=value, got 'nodes'"),
        (["--measured", "/no/run"], "--measured /no/run: expected the run_dir"),
        (["--cluster", "/no/file.yaml"], "no config file at /no/file.yaml"),
    ],
)
def test_wrong_usage_exits_with_2(
    config: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_fine_tuning_config_is_refused(capsys: pytest.CaptureFixture[str], repo: Path) -> None:
    assert main(["plan", str(repo / "configs/finetune/demo.yaml")]) == 2
    assert "expected a pretraining config, got one of fine-tuning" in capsys.readouterr().err


@pytest.mark.slow
def test_a_refused_config_keeps_its_message_and_exit_code(config: Path) -> None:
    ran = run_module("launch", "plan", str(config), "masking.name=tubes", check=False)
    assert ran.returncode == 2 and "did you mean 'tube'?" in ran.stderr and ran.stdout == ""


def test_keys_of_machines_and_of_the_config_are_separated() -> None:
    assert split_words(["nodes=2", "model.depth=3", "device=cpu"]) == (
        ["nodes=2", "device=cpu"],
        ["model.depth=3"],
    )


@pytest.mark.slow
def test_the_text_shows_every_number_and_assumption(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "machines.yaml").write_text("nodes: 2\nlink_gbit: 3200\n")
    cluster = ["--cluster", str(tmp_path / "machines.yaml")]
    assert main(["plan", str(config), "device=h200", "steps=500", *cluster]) == 0
    page = capsys.readouterr().out
    assert page.startswith(
        "500 steps of 1024 clips on 2 x 8 h200, ZeRO 0, bf16: micro-batch 64, accumulation"
    )
    for word in (
        "parameters",
        "tokens",
        "FLOPs",
        "activations",
        "communication",
        "reading",
        "efficiency",
        "checkpoint",
    ):
        assert word in page
    for line in assumptions(Machines(), "bf16"):
        assert f"\n  {line['key']} " in page
    assert re.search(r"\n  link_gbit +3200  given", page)


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
    """Train two models on the CPU; the smaller one measures the memory of an empty process."""
    common = [f"data.shards={synth_shards / 'unlabelled'}", "data.num_workers=0", "clip.stride=1"]
    common += ["engine.precision=fp32", "engine.device=cpu", "engine.cpu_threads=1", "log.every_steps=1"]
    common += ["pictures.every_steps=0", "monitor.every_steps=0", "steps=3"]
    sizes = {
        "tiny": ["model.size=tiny", "batch.global_clips=1"],
        "small": ["batch.global_clips=8", "batch.clips_per_device=8"],
    }

    def run() -> tuple[float, float, float, float]:
        for name, own in sizes.items():
            run_module("pretrain", str(config), f"run_dir={tmp_path / name}", *common, *own)
        overrides = [*common, *sizes["small"], f"run_dir={tmp_path / 'small'}"]
        measured = ["--measured", str(tmp_path / "tiny"), "device=cpu"]
        printed = run_module("launch", "plan", str(config), *measured, "--json", *overrides).stdout
        plan = json.loads(printed)
        reports = (tmp_path / "small" / "metrics.jsonl").read_text().splitlines()
        [saved] = (tmp_path / "small" / "checkpoints").glob("step-*")
        return (
            plan["memory"][0]["bytes"]["all"],
            1e9 * json.loads(reports[-1])["memory_gb"],
            plan["checkpoint"]["bytes"],
            sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
        )

    return run
