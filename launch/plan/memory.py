"""Memory of a process at each ZeRO stage, and the largest micro-batch that fits.

DeepSpeed's estimator assumes half-precision weights with float32 copies, 18 or 20 bytes per weight. Here
weights are float32 with bfloat16 autocast. Stage 0 needs 4 (weight) + 4 (gradient) + 8 (moments) = 16 bytes.
At stages 1 to 3 DeepSpeed keeps a second float32 copy of the partition that a process updates, and the
reduced gradients beside the buckets.
"""

from typing import Any

from kinemae.launch.plan.devices import Resolved

STAGES = (0, 1, 2, 3)
FLOAT = 4
_USABLE = 0.95  # of a device's memory: the rest is fragmented
_PREFETCHED = 50_000_000  # weights that stage 3 prefetches, DeepSpeed's default


def states(parameters: dict[str, int], *, stage: int, world: int, bucket_mb: int) -> dict[str, float]:
    """Bytes of one process that do not depend on the micro-batch, by kind.

    Args:
        parameters: from `pretrain cost`.
        bucket_mb: `engine.bucket_mb`.
    """
    weights = FLOAT * parameters["trainable"]
    frozen = FLOAT * (parameters["all"] - parameters["trainable"])
    frozen += parameters["buffer_bytes"] + parameters["unsaved_bytes"]
    share = weights / world
    bucket = min(1e6 * bucket_mb, weights)
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
        "buckets": bucket * (2 if stage == 3 else 1),  # stage 3 copies a bucket in another layout
        "frozen": frozen / world if stage == 3 else frozen,
        "master": share,
        # The engine's full copy for pictures and exports; on a GPU, on rank 0 only.
        "readable": FLOAT * parameters["all"] if stage == 3 else 0,
    }


def passing(cost: dict[str, Any], clips: int, machines: Resolved, *, recomputes: bool) -> float:
    """Peak bytes of a micro-batch: activations, temporary tensors, clips."""
    peak = cost["recomputed" if recomputes else "plain"]["peak"]
    activations = peak["fixed"] + peak["per_clip"] * clips
    batch = (cost["run"]["rgb_bytes"] + cost["run"]["planes_bytes"]) * clips
    return activations * (1 + machines.given.allocator_overhead) + batch


def needed(
    cost: dict[str, Any], clips: int, machines: Resolved, *, stage: int, world: int, recomputes: bool
) -> dict[str, float]:
    """Peak bytes of one process by kind, and their sum.

    At stage 0 gradients are copied into one buffer after the activations are freed: the larger counts.
    """
    parts = states(cost["parameters"], stage=stage, world=world, bucket_mb=cost["run"]["bucket_mb"])
    held = passing(cost, clips, machines, recomputes=recomputes)
    if machines.is_cpu and stage == 3 and world > 1:  # gloo reduces a copy
        parts["buckets"] *= 1.5
    exchange = min(FLOAT * cost["parameters"]["trainable"], 2e9) if stage == 0 else 0
    parts = {**parts, "activations": max(held, exchange), "process": machines.process_bytes}
    return {**parts, "all": sum(parts.values())}


def largest_micro_batch(
    cost: dict[str, Any], machines: Resolved, *, stage: int, world: int, recomputes: bool
) -> int:
    """The largest micro-batch that fits a device; 0 if none does."""

    def fits(clips: int) -> bool:
        parts = needed(cost, clips, machines, stage=stage, world=world, recomputes=recomputes)
        return parts["all"] <= _USABLE * machines.memory_bytes

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 1 << 20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def memory_table(cost: dict[str, Any], micro: int, machines: Resolved, world: int) -> list[dict[str, Any]]:
    """A row for each stage, with and without activation checkpointing."""
    rows = []
    for stage in STAGES:
        for recomputes in (False, True):
            parts = needed(cost, micro, machines, stage=stage, world=world, recomputes=recomputes)
            most = largest_micro_batch(cost, machines, stage=stage, world=world, recomputes=recomputes)
            rows.append(
                {
                    "stage": stage,
                    "recomputes": recomputes,
                    "bytes": {name: round(size) for name, size in parts.items()},
                    "fits": parts["all"] <= _USABLE * machines.memory_bytes,
                    "largest_micro_batch": most,
                }
            )
    return rows
