"""Time of a step: compute, kernel launches, communication between processes, reading videos."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.plan.devices import Resolved

HOOK_US = (60.0, 110.0, 130.0, 350.0)
"""Microseconds of DeepSpeed's hooks per weight tensor and step, by ZeRO stage; measured on one slow core."""

_LATENCY_S = 30e-6
# One core, 16 frames of 224x224 in the layout h264: docs/performance.md. Views share the decoding.
_DECODE_MS, _CROP_MS = 5.1, 0.9


class Batch(NamedTuple):
    """Micro-batch and accumulation, as in `kinemae.data_tools.stream.order.plan_batch`."""

    world: int
    micro: int
    accumulation: int


def cut_batch(run: dict[str, Any], world: int) -> Batch:
    """Split the global batch into the fewest equal micro-batches.

    Raises:
        ValueError: the processes cannot share it.
    """
    share, rest = divmod(run["global_clips"], world)
    views = run["views_per_video"]
    if rest == 0:
        for accumulation in range(-(-share // run["clips_per_device"]), share + 1):
            if accumulation and share % accumulation == 0 and (share // accumulation) % views == 0:
                return Batch(world, share // accumulation, accumulation)
    raise ConfigError(
        f"batch.global_clips={run['global_clips']} cannot be split by {world} processes into equal "
        f"micro-batches of at most batch.clips_per_device={run['clips_per_device']} clips, in multiples of "
        f"data.views_per_video={views}; fix: set it to a multiple of {world} x {views} = {world * views}, or "
        "change nodes and devices_per_node"
    )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Calibration by a measured run; 1 and None without one.

    Attributes:
        compute: measured over modelled compute time.
        clips_per_core: measured if the loader was the bottleneck.
    """

    compute: float = 1.0
    clips_per_core: float | None = None


def compute_seconds(
    cost: dict[str, Any], batch: Batch, machines: Resolved, *, stage: int, recomputes: bool
) -> float:
    """Forward and backward of all micro-batches of a step on one device.

    An operation takes the longer of its arithmetic and its memory traffic. A GPU computes while its host
    launches the next operations and runs DeepSpeed's hooks; a CPU does both in sequence.
    """
    given = machines.given
    if given.mfu is not None:
        flops = cost["flops"]["training"] + (cost["flops"]["forward"] if recomputes else 0)
        return flops * batch.micro * batch.accumulation / (machines.peak_flops * given.mfu)
    busy_s, host_s = _busy_and_host(cost, batch.micro, machines, recomputes=recomputes)
    host_s += hook_seconds(cost, stage) / batch.accumulation
    return batch.accumulation * (busy_s + host_s if machines.is_cpu else max(busy_s, host_s))


def hook_seconds(cost: dict[str, Any], stage: int) -> float:
    """Seconds of DeepSpeed's hooks per step."""
    return cost["parameters"]["tensors"] * HOOK_US[stage] * 1e-6


def _busy_and_host(
    cost: dict[str, Any], clips: int, machines: Resolved, *, recomputes: bool
) -> tuple[float, float]:
    given = machines.given
    shares = {"product": given.matmul_efficiency, "attention": machines.attention_efficiency, "other": 1.0}
    busy_s, calls = 0.0, 0
    for work in cost["recomputed" if recomputes else "plain"]["work"]:
        (flops, flops_clip), (moved, moved_clip) = work["flops"], work["bytes"]
        arithmetic_s = (flops + flops_clip * clips) / (machines.peak_flops * shares[work["kind"]])
        memory_s = (moved + moved_clip * clips) / (machines.memory_bytes_s * given.memory_efficiency)
        busy_s += max(arithmetic_s, memory_s)
        calls += work["calls"]
    return busy_s, calls * given.kernel_launch_us * 1e-6


def busy_from(cost: dict[str, Any], batch: Batch, machines: Resolved, *, stage: int, recomputes: bool) -> int:
    """The micro-batch from which on a GPU does not wait for its host; 0 on the CPU."""
    if machines.is_cpu or machines.given.mfu is not None:
        return 0
    clips = 1
    while clips < 1 << 14:
        busy_s, host_s = _busy_and_host(cost, clips, machines, recomputes=recomputes)
        if busy_s >= host_s + hook_seconds(cost, stage) / batch.accumulation:
            break
        clips *= 2
    return clips


def update_seconds(cost: dict[str, Any], machines: Resolved, *, stage: int, world: int) -> float:
    """The optimizer's update; from stage 1 on, each process updates its partition."""
    share = 1 if stage == 0 else world
    return cost["update_bytes"] / share / (machines.memory_bytes_s * machines.given.memory_efficiency)


def exchanged(cost: dict[str, Any], *, stage: int, accumulation: int) -> dict[str, float]:
    """Bytes sent around all processes per step: gradients and weights.

    An all-reduce sends its bytes around twice, a reduce-scatter or an all-gather once. At stages 1 and 2
    DeepSpeed 0.19 all-reduces buckets (its `allreduce_and_scatter`), at stage 2 after every micro-batch, and
    gathers weights once. Stage 3 gathers weights for each forward and backward pass.
    """
    values = cost["parameters"]["trainable"]
    gradients = values * (2 if cost["run"]["grad_reduce_dtype"] == "bf16" else 4)
    if stage == 3:
        return {"gradients": accumulation * gradients, "weights": accumulation * 2 * 4 * values}
    times = accumulation if stage == 2 else 1
    return {"gradients": times * 2 * gradients, "weights": 0 if stage == 0 else 4 * values}


def pass_seconds(moved: float, machines: Resolved, *, bucket_mb: int) -> float:
    """Seconds to send bytes once around all devices, within and between nodes."""
    inner_s = moved * (1 - 1 / machines.per_node) / machines.intra_node_bytes_s
    outer_s = moved * (1 - 1 / machines.nodes) / machines.link_bytes_s
    hops = (machines.per_node > 1) + math.ceil(math.log2(machines.nodes))
    return inner_s + outer_s + hops * _LATENCY_S * math.ceil(moved / (1e6 * bucket_mb))


class StepTime(NamedTuple):
    """Seconds of one step of all processes.

    Attributes:
        compute: forward, backward and recomputation of all micro-batches.
        exchange: exposed communication. DeepSpeed communicates after compute at stages 0 to 2, during compute
            at stage 3.
        data: reading the step's clips on all loader cores, in the background.
        all: the longer of compute and reading, with jitter.
    """

    compute: float
    update: float
    exchange: float
    data: float
    all: float


def step_time(
    cost: dict[str, Any], batch: Batch, machines: Resolved, fit: Fit, *, stage: int, recomputes: bool
) -> StepTime:
    """The time of a step on all devices of the machines."""
    compute_s = fit.compute * compute_seconds(cost, batch, machines, stage=stage, recomputes=recomputes)
    update_s = fit.compute * update_seconds(cost, machines, stage=stage, world=batch.world)
    moved = sum(exchanged(cost, stage=stage, accumulation=batch.accumulation).values())
    exchange_s = pass_seconds(moved, machines, bucket_mb=cost["run"]["bucket_mb"]) if batch.world > 1 else 0.0
    if stage == 3:
        exchange_s = max(exchange_s - compute_s, 0.1 * exchange_s)
    clips = batch.world * batch.micro * batch.accumulation
    data_s = clips / loader_rate(cost, machines, fit)
    worked_s = _with_jitter(compute_s + update_s + exchange_s, machines, batch.world)
    # Without workers the process reads its clips before it computes.
    whole_s = worked_s + data_s if loader_cores(cost, machines) == 0 else max(worked_s, data_s)
    return StepTime(compute_s, update_s, exchange_s, data_s, whole_s)


def _with_jitter(worked_s: float, machines: Resolved, world: int) -> float:
    """A step of several processes waits for the slowest."""
    return worked_s * (1 + machines.given.jitter) if world > 1 else worked_s


def clips_per_core(cost: dict[str, Any], machines: Resolved, fit: Fit) -> float:
    """Clips per second of one core: given, measured, or estimated by the clip's size."""
    if machines.given.clips_per_core is not None:
        return machines.given.clips_per_core
    if fit.clips_per_core is not None:
        return fit.clips_per_core
    run = cost["run"]
    frames = run["frames"] / 16
    crop_ms = _CROP_MS * frames * (run["size"] / 224) ** 2
    return 1000 / (_DECODE_MS * frames / run["views_per_video"] + crop_ms)


def loader_cores(cost: dict[str, Any], machines: Resolved) -> int:
    """Loader cores of a node: `data.num_workers` of each process, if available."""
    left = max(machines.cores_per_node - machines.per_node, 0)
    workers = cost["run"]["num_workers"]
    return left if workers < 0 else min(workers * machines.per_node, left)


def loader_rate(cost: dict[str, Any], machines: Resolved, fit: Fit) -> float:
    """Clips per second of all nodes' loaders."""
    cores = loader_cores(cost, machines) or machines.per_node
    return machines.nodes * cores * clips_per_core(cost, machines, fit)


def weak_scaling(
    cost: dict[str, Any], batch: Batch, machines: Resolved, fit: Fit, *, stage: int, recomputes: bool
) -> list[dict[str, float]]:
    """Weak-scaling efficiency relative to one device, for 1 to 128 nodes."""

    def rate(machines: Resolved) -> float:
        """Clips per second of one device, without reading."""
        of = batch._replace(world=machines.world)
        time = step_time(cost, of, machines, fit, stage=stage, recomputes=recomputes)
        worked_s = _with_jitter(time.compute + time.update + time.exchange, machines, of.world)
        return of.micro * of.accumulation / worked_s

    alone = machines._replace(nodes=1, per_node=1)
    best = rate(alone)
    rows = []
    for nodes in (1, 2, 4, 8, 16, 32, 64, 128):
        there = machines._replace(nodes=nodes)
        reached = rate(there)
        rows.append(
            {
                "nodes": nodes,
                "devices": there.world,
                "clips_per_s": reached * there.world,
                "efficiency": reached / best,
            }
        )
    return rows
