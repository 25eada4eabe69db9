"""A plan as tables."""

from collections.abc import Iterable, Sequence
from typing import Any


def as_text(plan: dict[str, Any]) -> str:
    """All tables, then the warnings."""
    sections = (
        _summary(plan),
        _memory(plan),
        _communication(plan),
        _time(plan),
        _scaling(plan),
        _calibration(plan),
        _assumptions(plan),
        [f"warning: {warning}" for warning in plan["warnings"]],
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _summary(plan: dict[str, Any]) -> list[str]:
    run, machines, batch = plan["run"], plan["machines"], plan["batch"]
    tokens, parameters, flops = plan["tokens"], plan["parameters"], plan["flops"]
    held, saved = plan["held_bytes_of_a_clip"], plan["checkpoint"]
    return [
        f"{run['steps']} steps of {run['global_clips']} clips on {machines['nodes']} x "
        f"{machines['devices_per_node']} {machines['device']}, ZeRO {run['zero_stage']}, {run['precision']}: "
        f"micro-batch {batch['micro']}, accumulation {batch['accumulation']}",
        "",
        f"parameters   {short(parameters['all'])}: encoder {short(parameters['encoder'])}, decoder "
        f"{short(parameters['decoder'])}, target {short(parameters['target'])}; trained "
        f"{short(parameters['trainable'])}",
        f"tokens       {tokens['grid']} per clip, {tokens['masks']} masks: {tokens['visible']} visible, "
        f"{tokens['encoded']} encoded, {tokens['predicted']} predicted",
        f"FLOPs        per clip {short(flops['forward'])} forward (encoder {short(flops['encoder'])}, "
        f"decoder {short(flops['decoder'])}, target {short(flops['target'])}), "
        f"{short(flops['backward'])} backward; per update {short(flops['update'])}",
        f"activations  per clip {short(held['plain'])}B, {short(held['recomputed'])}B with "
        "engine.activation_checkpointing",
        f"checkpoint   {saved['bytes'] / 1e9:.2f} GB: {saved['snapshot_s']:.2f} s to copy, then "
        f"{saved['write_s']:.1f} s to write in the background; {saved['on_disk_bytes'] / 1e9:.1f} GB on disk",
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
    usable = plan["machines"]["memory_bytes"] / 1e9
    return [
        f"memory of a device in GB, {usable:g} available, micro-batch {plan['batch']['micro']}",
        *table(["ZeRO", *names, "largest micro-batch"], rows),
    ]


def _communication(plan: dict[str, Any]) -> list[str]:
    if plan["batch"]["world"] == 1:
        return []
    rows = [
        [
            str(row["stage"]),
            f"{row['gradients'] / 1e6:.0f}",
            f"{row['weights'] / 1e6:.0f}",
            f"{1000 * row['seconds']:.1f}",
        ]
        for row in plan["exchange"]
    ]
    head = ["ZeRO", "gradients, MB", "weights, MB", "ms"]
    return ["communication between processes per step", *table(head, rows)]


def _time(plan: dict[str, Any]) -> list[str]:
    step, whole, data = plan["step"], plan["whole"], plan["data"]
    return [
        f"step         {1000 * step['all']:.1f} ms: {1000 * step['compute']:.1f} compute, "
        f"{1000 * step['update']:.1f} update, {1000 * step['exchange']:.1f} exposed communication; "
        f"{1000 * step['data']:.1f} reading in the background",
        f"run          {whole['clips_per_s']:.1f} clips/s, MFU {whole['mfu']:.1%}; "
        f"{whole['hours']:.2f} hours, {whole['device_hours']:.1f} device hours",
        f"reading      {data['clips_per_core']:.0f} clips/s per core ({data['clips_per_core_source']}): "
        f"{data['cores_needed']:.1f} cores needed, {data['cores']} available",
        f"             {data['read_bytes_s'] / 1e6:.1f} MB/s at {data['video_bytes'] / 1e6:.2f} MB per video "
        f"({data['video_source']})",
    ]


def _scaling(plan: dict[str, Any]) -> list[str]:
    rows = [
        [str(row["nodes"]), str(row["devices"]), f"{row['clips_per_s']:.0f}", f"{row['efficiency']:.0%}"]
        for row in plan["scaling"]
    ]
    return [
        "weak scaling, without reading videos",
        *table(["nodes", "devices", "clips/s", "efficiency"], rows),
    ]


def _calibration(plan: dict[str, Any]) -> list[str]:
    measured = plan["measured"]
    if measured is None:
        return ["not calibrated; to calibrate, add --measured RUN of a short run on the same kind of machine"]
    step, memory, rate = measured["step_s"], measured["memory_bytes"], measured["clips_per_core"]
    limit = "the loader was the bottleneck" if rate["is_the_limit"] else "a lower bound"
    return [
        f"calibrated by {measured['run']} ({measured['processes']} processes); errors before calibration:",
        f"  step        planned {1000 * step['planned']:.0f} ms, measured {1000 * step['measured']:.0f}: "
        f"{step['planned'] / step['measured'] - 1:+.0%}",
        f"  memory      planned {memory['planned'] / 1e9:.2f} GB, measured {memory['measured'] / 1e9:.2f}: "
        f"{memory['planned'] / memory['measured'] - 1:+.0%}",
        f"  achieved    {measured['tflops_of_a_device']:.4g} TFLOP/s per device; {rate['measured']} clips/s "
        f"per loader core ({limit})",
    ]


def _assumptions(plan: dict[str, Any]) -> list[str]:
    rows = [[line["key"], f"{line['value']:g}", line["source"]] for line in plan["assumptions"]]
    return ["assumptions; override each as key=value", *table(["key", "value", "source"], rows, left={0, 2})]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)) -> list[str]:
    """Align columns.

    Args:
        left: indices of left-aligned columns; the others are right-aligned.
    """
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left_columns = set(left)
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column in left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def short(count: float) -> str:
    """A number with a unit, as in `86.2 M`."""
    unit = ""
    for larger in "kMGT":
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.3g} {unit}"
