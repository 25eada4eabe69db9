"""Calibrate the plan with a short run, and compare its memory with the plan."""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.plan.machines import Resolved
from kinemae.launch.plan.memory import cut_batch, needed


class Run(NamedTuple):
    """Measurements of a run.

    Attributes:
        step_s: median seconds of a step without waiting for data, without the first report.
        wait_share: of the time in which the run waited for videos.
        memory_bytes: peak of rank 0.
    """

    path: Path
    processes: int
    step_s: float
    wait_share: float
    memory_bytes: float


def read_run(path: Path) -> Run:
    """Read `config.yaml`, `environment.json` and `metrics.jsonl` of a run.

    Raises:
        ValueError: the folder is not a run, or the run is too short.
    """
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        processes = json.loads((path / "environment.json").read_text(encoding="utf-8"))[-1]["processes"]
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError, LookupError) as error:
        raise ConfigError(
            f"--measured {path}: expected the run_dir of a pretraining run, got {error}"
        ) from error
    reports = [line for line in map(json.loads, lines) if "clips_per_s" in line]
    if len(reports) < 2:
        raise ConfigError(
            f"--measured {path}: expected at least 2 reports, got {len(reports)}; fix: run more steps, or "
            "lower log.every_steps"
        )
    waits = [report["data_wait_fraction"] for report in reports[1:]]
    clips = config["batch"]["global_clips"]
    worked = [clips / one["clips_per_s"] * (1 - one["data_wait_fraction"]) for one in reports[1:]]
    return Run(
        path=path,
        processes=processes,
        step_s=statistics.median(worked),
        wait_share=statistics.median(waits),
        memory_bytes=1e9 * reports[-1]["memory_gb"],
    )


def calibrate(run: Run, cost: dict[str, Any], machines: Resolved) -> tuple[Resolved, dict[str, Any]]:
    """Take the achieved FLOPs of a run on one node, and on the CPU the memory of an empty process.

    Args:
        cost: of the run's own config.

    Returns:
        the calibrated machines, and the comparison with the run for `--json`.

    Raises:
        ValueError: see `cut_batch`.
    """
    there = machines._replace(nodes=1, world=run.processes)
    batch, own = cut_batch(cost["run"], run.processes), cost["run"]
    parts = needed(cost, batch.micro, there, stage=own["zero_stage"], recomputes=own["recomputes"])
    is_cpu = machines.device == "cpu"
    planned = parts["all"] if is_cpu else parts["all"] - parts["process"]  # on CUDA, the allocator's peak
    flops = flops_of_step(cost) / run.step_s / run.processes
    calibrated = machines._replace(mfu=flops / (1e12 * machines.peak_tflops))
    if is_cpu:
        process = max(run.memory_bytes - parts["all"] + parts["process"], 0.0)
        calibrated = calibrated._replace(process_gb=process / 1e9)
    comparison = {
        "run": str(run.path),
        "processes": run.processes,
        "step_s": run.step_s,
        "tflops_of_a_device": flops / 1e12,
        "mfu": calibrated.mfu,
        "data_wait_fraction": run.wait_share,
        "memory_bytes": {"planned": round(planned), "measured": round(run.memory_bytes)},
    }
    return calibrated, comparison


def flops_of_step(cost: dict[str, Any]) -> float:
    """FLOPs of all clips of a step, with those that activation checkpointing repeats."""
    run, flops = cost["run"], cost["flops"]
    of_clip: float = flops["training"] + (flops["forward"] if run["recomputes"] else 0)
    return of_clip * run["global_clips"]
