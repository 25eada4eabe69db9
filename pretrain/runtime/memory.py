"""Memory model: bytes of a process at each ZeRO stage, and the largest micro-batch that fits.

DeepSpeed's estimator assumes half-precision weights with float32 copies, 18 or 20 bytes per weight. Here
weights are float32 with bfloat16 autocast. Stage 0 needs 4 (weight) + 4 (gradient) + 8 (moments) = 16 bytes.
At stages 1 to 3 DeepSpeed keeps a second float32 copy of the partition that a process updates, and its
gradients.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from torch import nn

from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.order import plan_batch
from kinemae.pretrain.runtime.settings import EngineConfig

STAGES = (0, 1, 2, 3)
FLOAT = 4
_USABLE = 0.95  # of a device's memory: the rest is fragmented
_PREFETCHED = 50_000_000  # weights that stage 3 prefetches, DeepSpeed's default
_CPU_PROCESS_GB, _GPU_PROCESS_GB = 0.87, 1.5  # of an empty process: measured on the CPU, assumed for GPUs
_ALLOCATOR_OVERHEAD = 0.1  # measured on the CPU: 0.02 to 0.2


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The processes of a run and the memory of one.

    Attributes:
        processes: of the whole run.
        memory_gb: of the device of a process; on the CPU, the memory that one process may use.
        process_gb: memory of an empty process; None for the usual value.
        allocator_overhead: extra memory of the allocator for activations, as a fraction.
    """

    processes: int
    memory_gb: float
    is_cpu: bool
    process_gb: float | None = None
    allocator_overhead: float = _ALLOCATOR_OVERHEAD

    @property
    def process_bytes(self) -> float:
        """Memory of an empty process."""
        usual_gb = _CPU_PROCESS_GB if self.is_cpu else _GPU_PROCESS_GB
        return 1e9 * (usual_gb if self.process_gb is None else self.process_gb)

    @property
    def usable_bytes(self) -> float:
        """Memory of the device without the part that fragmentation makes unusable."""
        return _USABLE * 1e9 * self.memory_gb


def state_counts(model: nn.Module, *, unsaved_bytes: int = 0, averaged: int = 0) -> dict[str, int]:
    """Counts of a model that its states depend on: parameters, and bytes of other tensors.

    `largest_layer` counts the parameters of one layer without its children.

    Args:
        unsaved_bytes: of weights that are no parameters of the model, such as those of a frozen teacher.
        averaged: parameters of a moving average outside of the model.
    """
    own_of_layers = (
        sum(weight.numel() for weight in layer.parameters(recurse=False)) for layer in model.modules()
    )
    return {
        "all": sum(weight.numel() for weight in model.parameters()) + averaged,
        "trainable": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "buffer_bytes": sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        "unsaved_bytes": unsaved_bytes,
        "largest_layer": max(own_of_layers),
    }


def run_values(engine: EngineConfig, clip: ClipConfig, *, grad_reduce_dtype: str) -> dict[str, Any]:
    """The settings of a run on which its memory depends; the precision is that of the engine."""
    pixels = clip.frames * clip.size**2
    return {
        "zero_stage": engine.zero_stage,
        "precision": engine.precision,
        "bucket_mb": engine.bucket_mb,
        "overlap_comm": engine.overlap_comm,
        "recomputes": engine.activation_checkpointing,
        "grad_reduce_dtype": grad_reduce_dtype,
        "planes_bytes": pixels * 3 // 2,
        "rgb_bytes": pixels * 3,
    }


def states(parameters: dict[str, int], run: dict[str, Any], *, stage: int, world: int) -> dict[str, float]:
    """Bytes of one process that do not depend on the micro-batch, by kind.

    Args:
        parameters, run: of `pretrain cost`. At stage 2 with `engine.overlap_comm`, DeepSpeed fills one
            bucket and sends another.
    """
    weights = FLOAT * parameters["trainable"]
    frozen = FLOAT * (parameters["all"] - parameters["trainable"])
    frozen += parameters["buffer_bytes"] + parameters["unsaved_bytes"]
    share = weights / world
    bucket = min(1e6 * run["bucket_mb"], weights)
    if stage == 0:
        return {
            "weights": weights,
            "gradients": weights,
            "moments": 2 * weights,
            "buckets": 0,
            "frozen": frozen,
        }
    gathered = min(weights, FLOAT * (_PREFETCHED + parameters["largest_layer"]))
    # Stage 1 keeps all gradients, stage 2 frees each bucket after its reduction.
    whole = {1: weights, 2: bucket, 3: bucket}[stage]
    return {
        "weights": share + gathered if stage == 3 else weights,
        "gradients": whole + share,
        "moments": 2 * share,
        # Stage 1 has none; stage 3 copies one in another layout.
        "buckets": bucket * (0 if stage == 1 else 2 if stage == 3 or run["overlap_comm"] else 1),
        "frozen": frozen / world if stage == 3 else frozen,
        "master": share,
        # The engine's full copy for pictures and exports; on a GPU, on rank 0 only.
        "readable": FLOAT * parameters["all"] if stage == 3 else 0,
    }


def needed(
    cost: dict[str, Any], clips: int, machine: Machine, *, stage: int, recomputes: bool
) -> dict[str, float]:
    """Peak bytes of one process by kind, and their sum. Activations include temporary tensors and clips.

    At stages 0 and 1 gradients are views of their buckets, which are all sent at once: gloo and bf16 copy
    them.

    Args:
        cost: "run", "parameters", and "plain" or "recomputed" of `pretrain cost`.
        clips: the micro-batch.
    """
    run, values, world = cost["run"], cost["parameters"]["trainable"], machine.processes
    parts = states(cost["parameters"], run, stage=stage, world=world)
    peak = cost["recomputed" if recomputes else "plain"]["peak"]
    activations = (peak["fixed"] + peak["per_clip"] * clips) * (1 + machine.allocator_overhead)
    activations += (run["rgb_bytes"] + run["planes_bytes"]) * clips
    if world > 1 and stage == 3 and machine.is_cpu:  # gloo reduces a copy
        parts["buckets"] *= 1.5
    if world > 1 and stage <= 1 and (machine.is_cpu or run["grad_reduce_dtype"] == "bf16"):
        parts["buckets"] = values * (FLOAT if machine.is_cpu else 2)
    parts = {**parts, "activations": activations, "process": machine.process_bytes}
    return {**parts, "all": sum(parts.values())}


def largest_micro_batch(cost: dict[str, Any], machine: Machine, *, stage: int, recomputes: bool) -> int:
    """The largest micro-batch whose peak fits the device; 0 if none does."""
    none, one = (needed(cost, clips, machine, stage=stage, recomputes=recomputes)["all"] for clips in (0, 1))
    return max(0, int((machine.usable_bytes - none) / (one - none)))


def memory_table(cost: dict[str, Any], micro: int, machine: Machine) -> list[dict[str, Any]]:
    """A row for each stage, with and without activation checkpointing."""
    rows = []
    for stage, recomputes in itertools.product(STAGES, (False, True)):
        parts = needed(cost, micro, machine, stage=stage, recomputes=recomputes)
        rows.append(
            {
                "stage": stage,
                "recomputes": recomputes,
                "bytes": {name: round(size) for name, size in parts.items()},
                "fits": parts["all"] <= machine.usable_bytes,
                "largest_micro_batch": largest_micro_batch(cost, machine, stage=stage, recomputes=recomputes),
            }
        )
    return rows


def on_machine(cost: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The division of the batch and the memory of a device, for JSON.

    With `batch.clips_per_device=auto` the micro-batch is the largest that fits, or the smallest if none does.

    Args:
        cost: "run", "parameters", "plain" and "recomputed" of `pretrain cost`.

    Returns:
        "machine": the assumptions; "batch": "micro" and "accumulation"; "memory": see `memory_table`;
        "warnings": texts, if the run does not fit.
    """
    run = cost["run"]
    views, limit = run["views_per_video"], run["clips_per_device"]
    settings = {"stage": run["zero_stage"], "recomputes": run["recomputes"]}
    if limit == "auto":
        limit = max(views, largest_micro_batch(cost, machine, **settings))
    batch = plan_batch(run["global_clips"], limit, machine.processes, views)
    table = memory_table(cost, batch.micro_clips, machine)
    has_room = row_of(table, **settings)["fits"]
    return {
        "machine": {
            "processes": machine.processes,
            "memory_gb": machine.memory_gb,
            "process_gb": machine.process_bytes / 1e9,
            "allocator_overhead": machine.allocator_overhead,
        },
        "batch": {"micro": batch.micro_clips, "accumulation": batch.accumulation},
        "memory": table,
        "warnings": [] if has_room else [shortage(cost, batch.micro_clips, machine, smallest=views)],
    }


def row_of(table: list[dict[str, Any]], *, stage: int, recomputes: bool) -> dict[str, Any]:
    """The row of a `memory_table` for a run's settings."""
    return next(row for row in table if (row["stage"], row["recomputes"]) == (stage, recomputes))


def shortage(cost: dict[str, Any], micro: int, machine: Machine, *, smallest: int) -> str:
    """Describe that a run with this micro-batch does not fit the device, with fixes.

    Args:
        cost: "run", "parameters", "plain" and "recomputed" of `pretrain cost`.
        smallest: the smallest micro-batch that the run allows.
    """
    run, table = cost["run"], memory_table(cost, micro, machine)
    stage, recomputes = run["zero_stage"], run["recomputes"]
    row = row_of(table, stage=stage, recomputes=recomputes)
    most = row["largest_micro_batch"]
    fixes = [f"batch.clips_per_device={most}"] if smallest <= most < micro else []
    if row_of(table, stage=stage, recomputes=True)["fits"]:
        fixes.append("engine.activation_checkpointing=true")
    fixes += [
        f"engine.zero_stage={other['stage']}"
        for other in table
        if other["stage"] > stage and other["fits"] and other["recomputes"] == recomputes
    ][:1]
    return (
        f"memory does not fit: expected at most {machine.usable_bytes / 1e9:.3g} GB, got "
        f"{row['bytes']['all'] / 1e9:.3g} GB (estimate) at micro-batch {micro}; fix: "
        + (f"set {' or '.join(fixes)}" if fixes else "use a smaller model or clip, or more memory")
    )
