"""A plan as tables, and its warnings."""

from typing import Any

from kinemae.data_tools.text_table import short, table


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


def memory_warnings(plan: dict[str, Any]) -> list[str]:
    """The warning that the run does not fit the device's memory, with its fixes."""
    run, memory = plan["run"], plan["memory"]
    row, recomputed = (
        next(row for row in memory if (row["stage"], row["recomputes"]) == (run["zero_stage"], recomputes))
        for recomputes in (run["recomputes"], True)
    )
    if row["fits"]:
        return []
    fixes = [f"batch.clips_per_device={row['largest_micro_batch']}"] if row["largest_micro_batch"] else []
    fixes += ["engine.activation_checkpointing=true"] if recomputed["fits"] else []
    fixes += [
        f"engine.zero_stage={other['stage']}"
        for other in memory
        if other["stage"] > run["zero_stage"] and other["fits"] and other["recomputes"] == run["recomputes"]
    ][:1]
    return [
        f"memory does not fit: {row['bytes']['all'] / 1e9:.1f} GB of "
        f"{plan['machines']['memory_gb']:.0f} GB at micro-batch {plan['batch']['micro']}; fix: "
        + (f"set {' or '.join(fixes)}" if fixes else "use a smaller model or clip, or more memory")
    ]
