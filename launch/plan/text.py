"""A plan as a page of tables."""

from collections.abc import Iterable, Sequence
from typing import Any


def as_text(plan: dict[str, Any]) -> str:
    """All tables, the warnings last, where they are seen."""
    sections = (
        _head(plan),
        _model(plan),
        _memory(plan),
        _exchange(plan),
        _step(plan),
        _data(plan),
        _scaling(plan),
        _checkpoint(plan),
        _measured(plan),
        _assumptions(plan),
        _warnings(plan),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _head(plan: dict[str, Any]) -> list[str]:
    run, machines, batch = plan["run"], plan["machines"], plan["batch"]
    return [
        f"{run['steps']} steps of {run['global_clips']} clips on {machines['nodes']} x "
        f"{machines['devices_per_node']} {machines['device']}, ZeRO {run['zero_stage']}, {run['precision']}: "
        f"{batch['micro']} clips at once, {batch['accumulation']} times a step"
    ]


def _model(plan: dict[str, Any]) -> list[str]:
    tokens, parameters, flops = plan["tokens"], plan["parameters"], plan["flops"]
    held = plan["held_bytes_of_a_clip"]
    return [
        f"parameters   {short(parameters['all'])}: encoder {short(parameters['encoder'])}, decoder "
        f"{short(parameters['decoder'])}, target {short(parameters['target'])}; trained "
        f"{short(parameters['trainable'])}",
        f"tokens       {tokens['grid']} of a clip: {tokens['visible']} seen, {tokens['encoded']} encoded, "
        f"{tokens['predicted']} predicted",
        f"FLOPs        of a clip {short(flops['forward'])} forward (encoder {short(flops['encoder'])}, "
        f"decoder {short(flops['decoder'])}, target {short(flops['target'])}), "
        f"{short(flops['backward'])} backward; of an update {short(flops['update'])}",
        f"activations  of a clip {short(held['plain'])}B held for the backward pass, "
        f"{short(held['recomputed'])}B with engine.activation_checkpointing",
    ]


def _memory(plan: dict[str, Any]) -> list[str]:
    names = (
        "weights",
        "master",
        "readable",
        "gradients",
        "moments",
        "buckets",
        "frozen",
        "activations",
        "process",
        "all",
    )
    usable = plan["machines"]["memory_bytes"] / 1e9
    rows = [
        [
            f"{row['stage']}{' recomputing' if row['recomputes'] else ''}",
            *(f"{row['bytes'].get(name, 0) / 1e9:.2f}" for name in names),
            str(row["largest_micro_batch"]),
        ]
        for row in plan["memory"]
    ]
    head = ["ZeRO", *names, "most clips"]
    return [
        f"memory of a device, GB of {usable:g}, {plan['batch']['micro']} clips at once",
        *table(head, rows),
    ]


def _exchange(plan: dict[str, Any]) -> list[str]:
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
    return [
        "exchange between processes in a step: bytes passed around, and how long that takes",
        *table(head, rows),
    ]


def _step(plan: dict[str, Any]) -> list[str]:
    step, whole = plan["step"], plan["whole"]
    return [
        f"a step       {1000 * step['all']:.1f} ms: {1000 * step['compute']:.1f} computing, "
        f"{1000 * step['update']:.1f} update, {1000 * step['exchange']:.1f} exchange that nothing hides; "
        f"reading {1000 * step['data']:.1f} meanwhile",
        f"the run      {whole['clips_per_s']:.1f} clips/s, {whole['mfu']:.1%} of the peak; "
        f"{whole['hours']:.2f} hours, {whole['device_hours']:.1f} device hours",
    ]


def _data(plan: dict[str, Any]) -> list[str]:
    data = plan["data"]
    return [
        f"reading      {data['clips_per_core']:.0f} clips/s of a core ({data['clips_per_core_source']}): "
        f"{data['cores_needed']:.1f} cores needed of {data['cores']} that read",
        f"             {data['read_bytes_s'] / 1e6:.1f} MB/s at {data['video_bytes'] / 1e6:.2f} MB a video "
        f"({data['video_source']})",
    ]


def _scaling(plan: dict[str, Any]) -> list[str]:
    rows = [
        [str(row["nodes"]), str(row["devices"]), f"{row['clips_per_s']:.0f}", f"{row['efficiency']:.0%}"]
        for row in plan["scaling"]
    ]
    return [
        "more nodes, each device with the same clips (videos set aside)",
        *table(["nodes", "devices", "clips/s", "efficiency"], rows),
    ]


def _checkpoint(plan: dict[str, Any]) -> list[str]:
    saved = plan["checkpoint"]
    return [
        f"checkpoint   {saved['bytes'] / 1e9:.2f} GB: {saved['snapshot_s']:.2f} s to copy, then "
        f"{saved['write_s']:.1f} s to write while training goes on; "
        f"{saved['on_disk_bytes'] / 1e9:.1f} GB on disk"
    ]


def _measured(plan: dict[str, Any]) -> list[str]:
    measured = plan["measured"]
    if measured is None:
        return ["not calibrated: `--measured RUN` learns from a short run on the same kind of machine"]
    step, memory, rate = measured["step_s"], measured["memory_bytes"], measured["clips_per_core"]
    limit = (
        "the loader was the limit" if rate["is_the_limit"] else "the loader was not the limit: at least this"
    )
    return [
        f"calibrated by {measured['run']} ({measured['processes']} processes), before calibration",
        f"  a step      planned {1000 * step['planned']:.0f} ms, measured {1000 * step['measured']:.0f}: "
        f"off by {step['planned'] / step['measured'] - 1:+.0%}",
        f"  memory      planned {memory['planned'] / 1e9:.2f} GB, measured {memory['measured'] / 1e9:.2f}: "
        f"off by {memory['planned'] / memory['measured'] - 1:+.0%}",
        f"  reached     {measured['tflops_of_a_device']:.4g} TFLOP/s of a device; {rate['measured']} clips/s "
        f"of a core of the loader ({limit})",
    ]


def _assumptions(plan: dict[str, Any]) -> list[str]:
    rows = [[line["key"], f"{line['value']:g}", line["source"]] for line in plan["assumptions"]]
    return [
        "assumptions, each to be given as key=value",
        *table(["key", "value", "source"], rows, left={0, 2}),
    ]


def _warnings(plan: dict[str, Any]) -> list[str]:
    return [f"warning: {said}" for said in plan["warnings"]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)) -> list[str]:
    """Columns as wide as they need to be.

    Args:
        left: columns that are flush left; the others hold numbers.
    """
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    to_the_left = set(left)
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column in to_the_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def short(count: float) -> str:
    """A large number, as in `86.2 M`."""
    unit = ""
    for larger in "kMGT":
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.3g} {unit}"
