"""Memory of a process at each ZeRO stage, and the largest micro-batch that fits.

DeepSpeed's estimator assumes half-precision weights with float32 copies, 18 or 20 bytes per weight. Here
weights are float32 with bfloat16 autocast. Stage 0 needs 4 (weight) + 4 (gradient) + 8 (moments) = 16 bytes.
At stages 1 to 3 DeepSpeed keeps a second float32 copy of the partition that a process updates, and its
gradients.
"""

import itertools
from typing import Any

STAGES = (0, 1, 2, 3)
FLOAT = 4
_USABLE = 0.95  # of a device's memory: the rest is fragmented
_PREFETCHED = 50_000_000  # weights that stage 3 prefetches, DeepSpeed's default


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
    cost: dict[str, Any], clips: int, machines: dict[str, Any], *, stage: int, recomputes: bool
) -> dict[str, float]:
    """Peak bytes of one process by kind, and their sum. Activations include temporary tensors and clips.

    At stages 0 and 1 gradients are views of their buckets, which are all sent at once: gloo and bf16 copy
    them.
    """
    run, values, is_cpu = cost["run"], cost["parameters"]["trainable"], machines["device"] == "cpu"
    parts = states(cost["parameters"], run, stage=stage, world=machines["world"])
    peak = cost["recomputed" if recomputes else "plain"]["peak"]
    activations = (peak["fixed"] + peak["per_clip"] * clips) * (1 + machines["allocator_overhead"])
    activations += (run["rgb_bytes"] + run["planes_bytes"]) * clips
    if machines["world"] > 1 and stage == 3 and is_cpu:  # gloo reduces a copy
        parts["buckets"] *= 1.5
    if machines["world"] > 1 and stage <= 1 and (is_cpu or run["grad_reduce_dtype"] == "bf16"):
        parts["buckets"] = values * (FLOAT if is_cpu else 2)
    parts = {**parts, "activations": activations, "process": 1e9 * machines["process_gb"]}
    return {**parts, "all": sum(parts.values())}


def memory_table(cost: dict[str, Any], micro: int, machines: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each stage, with and without activation checkpointing."""
    rows = []
    usable = _USABLE * 1e9 * machines["memory_gb"]
    for stage, recomputes in itertools.product(STAGES, (False, True)):
        none, one, parts = (
            needed(cost, clips, machines, stage=stage, recomputes=recomputes) for clips in (0, 1, micro)
        )
        rows.append(
            {
                "stage": stage,
                "recomputes": recomputes,
                "bytes": {name: round(size) for name, size in parts.items()},
                "fits": parts["all"] <= usable,
                "largest_micro_batch": max(0, int((usable - none["all"]) / (one["all"] - none["all"]))),
            }
        )
    return rows
