"""Prediction of the time of a micro-batch from its ledger, by a roofline model.

A kernel takes the longer of two times: its FLOPs at the reachable peak, and its bytes at the reachable
bandwidth. Kernels run one after another, and so do copies from host memory. The host launches them ahead: a
micro-batch takes the longer of the time of all kernels and the time of all launches. Caches, waits for data
and the exchange of gradients are not part of the model.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kinemae.data_tools.devices import GPUS, Gpu
from kinemae.pretrain.model.ledger import ATTENTION, CAST, FUSIBLE, MATMUL, TRANSFER, Operation, fuse


class Assumptions(NamedTuple):
    """Assumptions of the prediction, none of them measured by this project.

    Attributes:
        matmul, attention: reachable fractions of the data sheet's peak.
        bandwidth: reachable fraction of the data sheet's memory bandwidth.
        launch_us: time of the host for an operation, in microseconds.
        transfer_gb_s: from host memory to the device.
    """

    matmul: float = 0.7
    attention: float = 0.3
    bandwidth: float = 0.85
    launch_us: float = 5.0
    transfer_gb_s: float = 50.0


def predicted_seconds(
    operations: Iterable[Operation], gpu: Gpu, precision: str, assumed: Assumptions
) -> dict[str, float]:
    """Seconds of the kernels ("device") and of their launches ("host")."""
    peak = 1e12 * gpu.peak_tflops(precision)
    rates = {MATMUL: assumed.matmul * peak, ATTENTION: assumed.attention * peak}
    device = host = 0.0
    for one in operations:
        bandwidth = assumed.transfer_gb_s if one.kind == TRANSFER else assumed.bandwidth * gpu.bandwidth_gb_s
        # A copy from host memory is read there and written here.
        moved = sum(one.writes.values()) if one.kind == TRANSFER else one.bytes
        device += max(one.flops / rates.get(one.kind, peak), moved / (1e9 * bandwidth))
        host += 1e-6 * assumed.launch_us
    return {"device": device, "host": host}


def ledgers(operations: list[Operation]) -> dict[str, list[Operation]]:
    """The ledger of a step, and those of changes of it.

    Keys: "eager", "compiled" (`engine.compile`: blocks, conversion to RGB, target and loss of pixels), and
    "all_compiled", in which the whole forward and backward pass is one graph and the copy to the device takes
    no time.
    """
    moved = (one for one in operations if one.kind != TRANSFER)
    everything = [_in_graph(one, int(one.place.part != "update")) for one in moved]
    return {
        "eager": operations,
        "compiled": fuse(operations),
        "all_compiled": fuse(everything),
    }


def _in_graph(operation: Operation, region: int) -> Operation:
    """The operation in another compiled graph; 0 for none."""
    return operation._replace(place=operation.place._replace(region=region))


def count_by_part(operations: Iterable[Operation], clips: int) -> dict[str, dict[str, float]]:
    """Sums by part of the model, and of all ("all"): operations of the step; bytes and FLOPs of a clip."""
    sums: dict[str, dict[str, float]] = {}
    for one in operations:
        is_elementwise = one.kind in FUSIBLE
        values = {
            "operations": 1,
            "casts": int(one.kind == CAST),
            "elementwise_bytes": one.bytes / clips if is_elementwise else 0,
            "matmul_flops": one.flops / clips if one.kind == MATMUL else 0,
            "attention_flops": one.flops / clips if one.kind == ATTENTION else 0,
        }
        for part in (one.place.part, "all"):
            before = sums.setdefault(part, dict.fromkeys(values, 0))
            sums[part] = {name: before[name] + value for name, value in values.items()}
    everything = sums.pop("all")
    return {**sums, "all": everything}


def predict(
    variants: Mapping[str, list[Operation]], *, clips: int, clip_flops: int, precision: str
) -> dict[str, Any]:
    """Predictions for each GPU and ledger: seconds of a clip, what limits it, and the MFU.

    Args:
        clips: of the micro-batch; each step has one.
        clip_flops: training FLOPs of a clip, without repeated ones.
    """
    assumed = Assumptions()
    found: dict[str, dict[str, Any]] = {}
    for name, gpu in GPUS.items():
        found[name] = {}
        for variant, operations in variants.items():
            seconds = predicted_seconds(operations, gpu, precision, assumed)
            limit = max(seconds, key=lambda side: seconds[side])
            of_clip = seconds[limit] / clips
            mfu = clip_flops / of_clip / (1e12 * gpu.peak_tflops(precision))
            found[name][variant] = {"seconds_per_clip": of_clip, "limit": limit, "mfu": mfu}
    return {"assumptions": assumed._asdict(), **found}
