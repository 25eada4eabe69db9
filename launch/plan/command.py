"""`kinemae launch plan CONFIG [a.b=c]`: estimate time, memory, communication and reading of a run."""

import argparse
import difflib
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.cluster import read_cluster
from kinemae.launch.commands import add_command
from kinemae.launch.job import JobRefused
from kinemae.launch.plan.devices import Machines, Resolved, assumptions
from kinemae.launch.plan.measured import calibrate, read_run
from kinemae.launch.plan.memory import STAGES, memory_table
from kinemae.launch.plan.step_time import (
    Batch,
    Fit,
    busy_from,
    clips_per_core,
    cut_batch,
    exchanged,
    loader_cores,
    loader_rate,
    pass_seconds,
    step_time,
    weak_scaling,
)
from kinemae.launch.plan.text import as_text
from kinemae.launch.plan.warnings import warnings_of

_KEYS = tuple(entry.name for entry in fields(Machines))
_VIDEO_MB = 0.5  # of 10 s at a short side of 256, in the layout h264: 0.2 to 0.9


def add_to(parsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        parsers,
        "plan",
        "example:\n  kinemae launch plan videomae_base nodes=2 device=h200\n\n"
        f"keys of machines: {', '.join(_KEYS)}; all other keys belong to the config",
    )
    parser.add_argument("config", help="a config file, or a name that `kinemae configs` lists")
    parser.add_argument(
        "words", nargs="*", default=[], metavar="a.b=c", help="overrides of machines and config"
    )
    parser.add_argument("--cluster", metavar="FILE", type=Path, help="a YAML file with keys of machines")
    parser.add_argument("--measured", metavar="RUN", type=Path, help="a short run for calibration")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ValueError: a key of the machines is wrong, or the devices cannot share the batch.
        JobRefused: `pretrain cost` refused the config.
    """
    own, overrides = split_words(arguments.words)
    machines = read_cluster(Machines, arguments.cluster, own)
    refuse_fine_tuning(Path(arguments.config))
    run = None if arguments.measured is None else read_run(arguments.measured)
    # Precision "auto" counts as on a GPU unless the device is the CPU.
    on_cpu = ["engine.device=cpu"] if machines.device == "cpu" else []
    cost = ask_cost([arguments.config, *on_cpu, *overrides])
    resolved, fit, measured = machines.resolved(cost["run"]["precision"]), Fit(), None
    if run is not None:
        own_cost = ask_cost([str(run.path / "config.yaml"), *on_cpu])
        fit, resolved, measured = calibrate(run, own_cost, resolved)
    plan = make_plan(cost, resolved, fit)
    plan["measured"] = measured
    plan["assumptions"] = assumptions(machines, cost["run"]["precision"])
    sys.stdout.write((json.dumps(plan) if arguments.json else as_text(plan)) + "\n")
    return 0


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate overrides of machines from those of the config.

    Raises:
        ValueError: a word is no override, or nearly a key of machines.
    """
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or word.startswith("-"):
            raise ConfigError(f"expected an override of the form key=value, got {word!r}")
        near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.8)
        if key in ("devices", "gpus", "gpus_per_node", "num_gpus"):
            near = ["devices_per_node"]
        if near and key not in _KEYS:
            raise ConfigError(f"config key {key}: unknown key; did you mean {near[0]}?")
    is_own = {word: word.partition("=")[0] in _KEYS for word in words}
    return [word for word in words if is_own[word]], [word for word in words if not is_own[word]]


def refuse_fine_tuning(path: Path) -> None:
    """Refuse a config of fine-tuning.

    Raises:
        ValueError: the file is a config of fine-tuning.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return  # `pretrain cost` reports it
    if isinstance(tree, dict) and ("head" in tree or "encoder" in tree):
        raise ConfigError(
            f"{path}: expected a pretraining config, got one of fine-tuning; fix: measure a short run "
            "(clips_per_s and memory_gb in its metrics.jsonl)"
        )


def ask_cost(arguments: list[str]) -> dict[str, Any]:
    """The output of `kinemae pretrain cost`.

    Raises:
        JobRefused: it failed.
    """
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "kinemae", "pretrain", "cost", *arguments, "--json"],
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise JobRefused(ran.returncode, ran.stderr.strip())
    cost: dict[str, Any] = json.loads(ran.stdout)
    return cost


def make_plan(cost: dict[str, Any], machines: Resolved, fit: Fit) -> dict[str, Any]:
    """All numbers of a plan, in seconds and bytes.

    Raises:
        ValueError: the devices cannot share the batch.
    """
    run = cost["run"]
    batch = cut_batch(run, machines.world)
    stage, recomputes = run["zero_stage"], run["recomputes"]
    time = step_time(cost, batch, machines, fit, stage=stage, recomputes=recomputes)
    plan = {
        "run": run,
        "machines": {
            "device": machines.given.device,
            "nodes": machines.nodes,
            "devices_per_node": machines.per_node,
            "memory_bytes": machines.memory_bytes,
        },
        "batch": {
            **batch._asdict(),
            "busy_from": busy_from(cost, batch, machines, stage=stage, recomputes=recomputes),
        },
        "tokens": cost["tokens"],
        "parameters": cost["parameters"],
        "flops": cost["flops"],
        "held_bytes_of_a_clip": {name: cost[name]["held"]["per_clip"] for name in ("plain", "recomputed")},
        "memory": memory_table(cost, batch.micro, machines, batch.world),
        "exchange": _exchange_table(cost, batch, machines),
        "step": {name: float(value) for name, value in time._asdict().items()},
        "whole": _whole(cost, batch, machines, time.all),
        "data": _data(cost, machines, fit, time.all),
        "scaling": weak_scaling(cost, batch, machines, fit, stage=stage, recomputes=recomputes),
        "checkpoint": _checkpoint(cost, batch, machines),
    }
    plan["warnings"] = warnings_of(plan)
    return plan


def _exchange_table(cost: dict[str, Any], batch: Batch, machines: Resolved) -> list[dict[str, Any]]:
    rows = []
    for stage in STAGES:
        moved = exchanged(cost, stage=stage, accumulation=batch.accumulation)
        whole_s = pass_seconds(sum(moved.values()), machines, bucket_mb=cost["run"]["bucket_mb"])
        rows.append({"stage": stage, **moved, "seconds": whole_s if batch.world > 1 else 0.0})
    return rows


def _whole(cost: dict[str, Any], batch: Batch, machines: Resolved, step_s: float) -> dict[str, float]:
    """Time of the whole run; checkpoints are written in the background."""
    run = cost["run"]
    hours = run["steps"] * step_s / 3600
    flops = cost["flops"]["training"] * run["global_clips"]
    return {
        "clips_per_s": run["global_clips"] / step_s,
        "mfu": flops / (step_s * batch.world * machines.peak_flops),
        "hours": hours,
        "device_hours": hours * batch.world,
    }


def _data(cost: dict[str, Any], machines: Resolved, fit: Fit, step_s: float) -> dict[str, Any]:
    run, stored, given = cost["run"], cost["data"], machines.given.video_mb
    video = 1e6 * (_VIDEO_MB if given is None else given)
    source = "assumed" if given is None else "given"
    if given is None and stored is not None:
        video, source = stored["bytes_per_video"], "mean of the data set"
    rate = run["global_clips"] / step_s
    of_core = clips_per_core(cost, machines, fit)
    is_assumed = machines.given.clips_per_core is None and fit.clips_per_core is None
    return {
        "clips_per_core": of_core,
        "clips_per_core_source": "docs/performance.md, scaled to the clip"
        if is_assumed
        else "given or measured",
        "cores": machines.nodes * loader_cores(cost, machines),
        "cores_needed": run["global_clips"] / (step_s * of_core),
        "clips_per_s": loader_rate(cost, machines, fit),
        "video_bytes": video,
        "video_source": source,
        "read_bytes_s": rate / run["views_per_video"] * video,
    }


def _checkpoint(cost: dict[str, Any], batch: Batch, machines: Resolved) -> dict[str, float]:
    """Trained weights with both moments, and frozen weights, in float32; all nodes write."""
    parameters, given = cost["parameters"], machines.given
    size = 12 * parameters["trainable"] + 4 * (parameters["all"] - parameters["trainable"])
    size += parameters["buffer_bytes"]
    return {
        "bytes": size,
        "snapshot_s": size / batch.world / (1e9 * given.device_to_host_gb_s),
        "write_s": size / machines.nodes / (1e9 * given.disk_gb_s),
        "on_disk_bytes": size * cost["run"]["keep_checkpoints"],
    }
