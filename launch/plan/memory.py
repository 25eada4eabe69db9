"""How much memory a process needs at each ZeRO stage, and the largest micro-batch that fits.

DeepSpeed's own estimator counts 2 bytes a weight for half precision and 4 + 8 + 4 + 2 for the float32 copies:
18 or 20 in all. Here weights are float32 and bfloat16 is autocast over them, so there is no half copy of the
weights that lasts. At stage 0 that makes 4 (weight) + 4 (gradient) + 8 (moments) = 16. At stages 1 to 3
DeepSpeed keeps a second float32 copy of what a process updates, and the reduced gradients beside the buckets.
"""

from typing import Any

from kinemae.launch.plan.devices import Resolved

STAGES = (0, 1, 2, 3)
FLOAT = 4
_USABLE = 0.95  # of a device's memory: the rest is lost in pieces
_PREFETCHED = 50_000_000  # weights that stage 3 gathers ahead, DeepSpeed's default


def states(parameters: dict[str, int], *, stage: int, world: int, bucket_mb: int) -> dict[str, float]:
    """Bytes of one process that do not depend on the micro-batch, by what they are.

    Args:
        parameters: as `pretrain cost` counts them.
        bucket_mb: `engine.bucket_mb`.
    """
    weights = FLOAT * parameters["trainable"]
    frozen = FLOAT * (parameters["all"] - parameters["trainable"]) + parameters["buffer_bytes"]
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
    # Stage 1 reduces whole gradients, stage 2 drops each bucket once it is reduced.
    whole = {1: weights, 2: bucket, 3: bucket}[stage]
    return {
        "weights": share + gathered if stage == 3 else weights,
        "gradients": whole + share,
        "moments": 2 * share,
        "buckets": bucket * (2 if stage == 3 else 1),  # stage 3 lays a bucket out anew, by processes
        "frozen": frozen / world if stage == 3 else frozen,
        "master": share,
        # The engine's plain copy, gathered for pictures and exports; on a GPU, on the first process's alone.
        "readable": FLOAT * parameters["all"] if stage == 3 else 0,
    }


def passing(cost: dict[str, Any], clips: int, machines: Resolved, *, recomputes: bool) -> float:
    """Bytes that a micro-batch needs at its peak: what autograd holds, what is in work, the clips."""
    peak = cost["recomputed" if recomputes else "plain"]["peak"]
    activations = peak["fixed"] + peak["per_clip"] * clips
    batch = (cost["run"]["rgb_bytes"] + cost["run"]["planes_bytes"]) * clips
    return activations * (1 + machines.given.slack) + batch


def needed(
    cost: dict[str, Any], clips: int, machines: Resolved, *, stage: int, world: int, recomputes: bool
) -> dict[str, float]:
    """Bytes of one process at its peak, by what they are, and their sum.

    At stage 0 gradients are copied into one buffer for the exchange once the activations are gone, so the
    larger of the two counts.
    """
    parts = states(cost["parameters"], stage=stage, world=world, bucket_mb=cost["run"]["bucket_mb"])
    held = passing(cost, clips, machines, recomputes=recomputes)
    if machines.is_cpu and stage == 3 and world > 1:  # gloo scatters sums by reducing a copy
        parts["buckets"] *= 1.5
    exchange = min(FLOAT * cost["parameters"]["trainable"], 2e9) if stage == 0 else 0
    parts = {**parts, "activations": max(held, exchange), "process": machines.base_bytes}
    return {**parts, "all": sum(parts.values())}


def largest_micro_batch(
    cost: dict[str, Any], machines: Resolved, *, stage: int, world: int, recomputes: bool
) -> int:
    """The most clips that fit a device at once; 0 where not even one does."""

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
    """A row for each stage, with and without recomputing blocks."""
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
