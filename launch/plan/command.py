"""`kinemae launch plan CONFIG [a.b=c]`: memory, parameters and FLOPs of a run; a prediction of its time."""

import argparse
import difflib
import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

from kinemae.data_tools.overrides import ConfigError, check_overrides
from kinemae.launch.cluster import add_command, read_cluster
from kinemae.launch.job import JobRefused
from kinemae.launch.plan.machines import CORE_MFU, Machines, Resolved
from kinemae.launch.plan.memory import cut_batch, memory_table
from kinemae.launch.plan.text import as_text, memory_warnings

_KEYS = tuple(entry.name for entry in fields(Machines))
# One core, 16 frames of 224x224 in the layout h264: docs/performance.md. Views share the decoding.
_DECODE_MS, _CROP_MS = 5.1, 0.9


def add_to(parsers: Any) -> None:
    """Register the command."""
    text = "estimate the memory of a run, and predict its time; nothing is started"
    example = "  kinemae launch plan videomae_base nodes=2 device=h200\n\n"
    example += f"keys of machines: {', '.join(_KEYS)}; all other keys belong to the config"
    parser = add_command(parsers, "plan", text, example)
    parser.add_argument("config", help="a config file, or a name that `kinemae configs` lists")
    parser.add_argument(
        "words", nargs="*", default=[], metavar="a.b=c", help="overrides of machines and config"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ValueError: a key of the machines is wrong, or the devices cannot share the batch.
        JobRefused: `pretrain cost` refused the config.
    """
    own, overrides = split_words(arguments.words)
    machines = read_cluster(Machines, None, own)
    # Precision "auto" counts as on a GPU unless the device is the CPU.
    on_cpu = ["engine.device=cpu"] if machines.device == "cpu" else []
    cost = ask_cost([arguments.config, *on_cpu, *overrides])
    plan = make_plan(cost, machines.resolved(cost["run"]["precision"], expected_mfu(cost, machines.device)))
    sys.stdout.write((json.dumps(plan) if arguments.json else as_text(plan)) + "\n")
    return 0


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate overrides of machines from those of the config.

    Raises:
        ValueError: a word is no override, or nearly a key of machines.
    """
    check_overrides(words)
    own: list[str] = []
    others: list[str] = []
    for word in words:
        key = word.partition("=")[0]
        near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.8)
        if near and key not in _KEYS:
            raise ConfigError(f"config key {key}: unknown key; did you mean {near[0]}?")
        (own if near else others).append(word)
    return own, others


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


def expected_mfu(cost: dict[str, Any], device: str) -> float:
    """The MFU that `pretrain cost` predicts for a GPU, and the measured one of a core.

    It counts FLOPs that activation checkpointing repeats, as the plan does.
    """
    if device == "cpu":
        return CORE_MFU
    run = cost["run"]
    predicted: float = cost["prediction"][device]["compiled" if run["compiles"] else "eager"]["mfu"]
    return predicted * flops_of_step(cost) / (run["global_clips"] * cost["flops"]["training"])


def make_plan(cost: dict[str, Any], machines: Resolved) -> dict[str, Any]:
    """All numbers of a plan, in seconds and bytes.

    Raises:
        ValueError: the devices cannot share the batch.
    """
    run, parameters = cost["run"], cost["parameters"]
    batch = cut_batch(run, machines.world)
    # Trained weights with both moments, and frozen weights, in float32.
    saved = 12 * parameters["trainable"] + 4 * (parameters["all"] - parameters["trainable"])
    saved += parameters["buffer_bytes"]
    seconds = flops_of_step(cost) / machines.world / (1e12 * machines.peak_tflops * machines.mfu)
    hours = run["steps"] * seconds / 3600
    frames = run["frames"] / 16
    crop_ms = _CROP_MS * frames * (run["size"] / 224) ** 2
    clips_per_core = 1000 / (_DECODE_MS * frames / run["views_per_video"] + crop_ms)
    plan = {
        "run": run,
        "machines": machines._asdict(),
        "batch": batch._asdict(),
        "tokens": cost["tokens"],
        "parameters": parameters,
        "flops": cost["flops"],
        "memory": memory_table(cost, batch.micro, machines),
        "checkpoint": {"bytes": saved, "on_disk_bytes": saved * run["keep_checkpoints"]},
        "step": {
            "seconds": seconds,
            "mfu": machines.mfu,
            "hours": hours,
            "device_hours": hours * machines.world,
            "clips_per_core": clips_per_core,
            "loader_cores": run["global_clips"] / seconds / clips_per_core,
        },
    }
    return {**plan, "warnings": memory_warnings(plan)}


def flops_of_step(cost: dict[str, Any]) -> float:
    """FLOPs of all clips of a step, with those that activation checkpointing repeats."""
    run, flops = cost["run"], cost["flops"]
    of_clip: float = flops["training"] + (flops["forward"] if run["recomputes"] else 0)
    return of_clip * run["global_clips"]
