"""`kinemae launch plan CONFIG [a.b=c]`: memory, parameters and FLOPs of a run; a prediction of its time."""

import argparse
import difflib
import json
import sys
from dataclasses import fields
from typing import Any

from kinemae.data_tools.overrides import ConfigError
from kinemae.data_tools.text_table import short, table
from kinemae.launch.cluster import read_cluster
from kinemae.launch.job import read_output
from kinemae.launch.plan.machines import CORE_MFU, Machines

_KEYS = tuple(entry.name for entry in fields(Machines))
# One core, 16 frames of 224x224 in the layout h264: docs/performance.md. Views share the decoding.
_DECODE_MS, _CROP_MS = 5.1, 0.9


def run_plan(arguments: argparse.Namespace) -> int:
    """Run the command."""
    own, overrides = split_overrides(arguments.overrides)
    machines = read_cluster(Machines, None, own)
    # Precision "auto" counts as on a GPU unless the device is the CPU.
    on_cpu = ["engine.device=cpu"] if machines.device == "cpu" else []
    words = ["pretrain", "cost", arguments.config, *on_cpu, *overrides, *machines.options(), "--json"]
    cost = read_output(words, {})
    plan = make_plan(cost, machines.resolved(cost["run"]["precision"], expected_mfu(cost, machines.device)))
    sys.stdout.write((json.dumps(plan) if arguments.json else as_text(plan)) + "\n")
    return 0


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate overrides of machines from those of the config."""
    own: list[str] = []
    others: list[str] = []
    for word in words:
        key = word.partition("=")[0]
        near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.8)
        if near and key not in _KEYS:
            raise ConfigError(f"config key {key}: unknown key; did you mean {near[0]}?")
        (own if near else others).append(word)
    return own, others


def expected_mfu(cost: dict[str, Any], device: str) -> float:
    """The MFU that `pretrain cost` predicts for a GPU, and the measured one of a core.

    It counts FLOPs that activation checkpointing repeats, as the plan does.
    """
    if device == "cpu":
        return CORE_MFU
    run = cost["run"]
    predicted: float = cost["prediction"][device]["compiled" if run["compiles"] else "eager"]["mfu"]
    return predicted * flops_of_step(cost) / (run["global_clips"] * cost["flops"]["training"])


def make_plan(cost: dict[str, Any], machines: dict[str, Any]) -> dict[str, Any]:
    """All numbers of a plan, in seconds and bytes."""
    run, parameters, world = cost["run"], cost["parameters"], machines["world"]
    # Trained weights with both moments, and frozen weights, in float32.
    saved = 12 * parameters["trainable"] + 4 * (parameters["all"] - parameters["trainable"])
    saved += parameters["buffer_bytes"]
    seconds = flops_of_step(cost) / world / (1e12 * machines["peak_tflops"] * machines["mfu"])
    hours = run["steps"] * seconds / 3600
    frames = run["frames"] / 16
    crop_ms = _CROP_MS * frames * (run["size"] / 224) ** 2
    clips_per_core = 1000 / (_DECODE_MS * frames / run["views_per_video"] + crop_ms)
    return {
        "run": run,
        "machines": {**machines, **cost["machine"]},
        "batch": cost["batch"],
        "tokens": cost["tokens"],
        "parameters": parameters,
        "flops": cost["flops"],
        "memory": cost["memory"],
        "checkpoint": {"bytes": saved, "on_disk_bytes": saved * run["keep_checkpoints"]},
        "step": {
            "seconds": seconds,
            "mfu": machines["mfu"],
            "hours": hours,
            "device_hours": hours * world,
            "clips_per_core": clips_per_core,
            "loader_cores": run["global_clips"] / seconds / clips_per_core,
        },
        "warnings": cost["warnings"],
    }


def flops_of_step(cost: dict[str, Any]) -> float:
    """FLOPs of all clips of a step, with those that activation checkpointing repeats."""
    run, flops = cost["run"], cost["flops"]
    of_clip: float = flops["training"] + (flops["forward"] if run["recomputes"] else 0)
    return of_clip * run["global_clips"]


def as_text(plan: dict[str, Any]) -> str:
    """All tables, then the warnings."""
    warnings = [f"warning: {warning}" for warning in plan["warnings"]]
    sections = (_summary(plan), _memory(plan), _time(plan), warnings)
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _summary(plan: dict[str, Any]) -> list[str]:
    run, machines, batch = plan["run"], plan["machines"], plan["batch"]
    tokens, parameters, flops = plan["tokens"], plan["parameters"], plan["flops"]
    saved = plan["checkpoint"]
    return [
        f"{run['steps']} steps of {run['global_clips']} clips on {machines['world']} {machines['device']} in "
        f"nodes: {machines['nodes']}; ZeRO {run['zero_stage']}, {run['precision']}",
        f"each process: micro-batch {batch['micro']}, accumulation {batch['accumulation']}",
        "",
        f"parameters   {short(parameters['all'])}: encoder {short(parameters['encoder'])}, decoder "
        f"{short(parameters['decoder'])}, target {short(parameters['target'])}; trained "
        f"{short(parameters['trainable'])}",
        f"tokens       {tokens['grid']} per clip, {tokens['masks']} masks: {tokens['visible']} visible, "
        f"{tokens['encoded']} encoded, {tokens['predicted']} predicted",
        f"FLOPs        per clip {short(flops['forward'])} forward (encoder {short(flops['encoder'])}, "
        f"decoder {short(flops['decoder'])}, target {short(flops['target'])}), "
        f"{short(flops['backward'])} backward; per update {short(flops['update'])}",
        f"checkpoint   {saved['bytes'] / 1e9:.2f} GB, {saved['on_disk_bytes'] / 1e9:.1f} GB on disk",
    ]


def _memory(plan: dict[str, Any]) -> list[str]:
    names = [
        *("weights", "master", "readable", "gradients", "moments", "buckets", "frozen", "activations"),
        *("process", "all"),
    ]
    rows = [
        [
            f"{row['stage']}{' checkpointing' if row['recomputes'] else ''}",
            *(f"{row['bytes'].get(name, 0) / 1e9:.2f}" for name in names),
            str(row["largest_micro_batch"]),
        ]
        for row in plan["memory"]
    ]
    available, micro = plan["machines"]["memory_gb"], plan["batch"]["micro"]
    return [
        f"memory of a device in GB, {available:g} available, micro-batch {micro}",
        *table(["ZeRO", *names, "largest micro-batch"], rows),
    ]


def _time(plan: dict[str, Any]) -> list[str]:
    step, run, machines = plan["step"], plan["run"], plan["machines"]
    return [
        f"prediction   {step['seconds']:.3g} s per step at MFU {step['mfu']:.2f}, without communication and "
        f"waits for videos: {run['global_clips'] / step['seconds']:.0f} clips/s, {step['hours']:.2f} hours, "
        f"{step['device_hours']:.1f} device hours",
        f"reading      {step['loader_cores']:.1f} cores in all at {step['clips_per_core']:.0f} clips/s each",
        f"assumptions  peak_tflops={machines['peak_tflops']:g} memory_gb={machines['memory_gb']:g} "
        f"mfu={machines['mfu']:.3g} process_gb={machines['process_gb']:g} "
        f"allocator_overhead={machines['allocator_overhead']:g}; set them to measured values",
    ]
