"""Calibrate the plan with a short run, and compare the uncalibrated plan with it."""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.plan.devices import Resolved
from kinemae.launch.plan.memory import needed
from kinemae.launch.plan.step_time import Batch, Fit, cut_batch, loader_cores, step_time

_MOST_WAITING = 0.05  # of the time; above it the loader is the bottleneck


class Run(NamedTuple):
    """Measurements of a run.

    Attributes:
        step_s: median seconds of a step without waiting for data, without the first report.
        wait_share: of the time in which the run waited for videos.
        memory_bytes: peak of rank 0.
    """

    path: Path
    processes: int
    clips_per_s: float
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
    rates = [report["clips_per_s"] for report in reports[1:]]
    waits = [report["data_wait_fraction"] for report in reports[1:]]
    worked = [
        config["batch"]["global_clips"] / rate * (1 - wait) for rate, wait in zip(rates, waits, strict=True)
    ]
    return Run(
        path=path,
        processes=processes,
        clips_per_s=statistics.median(rates),
        step_s=statistics.median(worked),
        wait_share=statistics.median(waits),
        memory_bytes=1e9 * reports[-1]["memory_gb"],
    )


def calibrate(run: Run, cost: dict[str, Any], machines: Resolved) -> tuple[Fit, Resolved, dict[str, Any]]:
    """Fit the model of time to a run on one node.

    Returns:
        the fit, the machines with the measured memory of a process, and the comparison for `--json`.

    Raises:
        ValueError: see `cut_batch`.
    """
    there = machines._replace(nodes=1, per_node=run.processes)
    batch = cut_batch(cost["run"], run.processes)
    stage, recomputes = cost["run"]["zero_stage"], cost["run"]["recomputes"]
    fit, planned_s = fit_time(run.step_s, cost, batch, there)
    rate_of_core = run.clips_per_s / max(loader_cores(cost, there), run.processes)
    is_limit = run.wait_share > _MOST_WAITING and loader_cores(cost, there) > 0
    fit = Fit(compute=fit.compute, clips_per_core=rate_of_core if is_limit else None)
    parts = needed(cost, batch.micro, there, stage=stage, world=run.processes, recomputes=recomputes)
    own = parts["all"] - parts["process"]
    base = max(run.memory_bytes - own, 0.0) if machines.is_cpu else machines.process_bytes
    planned_bytes = parts["all"] if machines.is_cpu else own  # on CUDA the allocator's peak was measured
    tflops = cost["flops"]["training"] * cost["run"]["global_clips"] / run.step_s / run.processes / 1e12
    comparison = {
        "run": str(run.path),
        "processes": run.processes,
        "step_s": {"planned": planned_s, "measured": run.step_s},
        "memory_bytes": {"planned": round(planned_bytes), "measured": round(run.memory_bytes)},
        "slower_than_planned": fit.compute,
        "tflops_of_a_device": tflops,
        "data_wait_fraction": run.wait_share,
        "clips_per_core": {"measured": round(rate_of_core, 1), "is_the_limit": is_limit},
    }
    return fit, machines._replace(process_bytes=base), comparison


def fit_time(step_s: float, cost: dict[str, Any], batch: Batch, machines: Resolved) -> tuple[Fit, float]:
    """The fit of compute time, without communication, and the modelled step time."""
    time = step_time(
        cost, batch, machines, Fit(), stage=cost["run"]["zero_stage"], recomputes=cost["run"]["recomputes"]
    )
    planned_s = time.compute + time.update + time.exchange
    worked_s = time.compute + time.update
    return Fit(compute=max(step_s - time.exchange, 0.1 * step_s) / worked_s), planned_s
