"""Warnings of a plan, each with numbers and a fix."""

from typing import Any

_MOST_COMMUNICATION = 0.2  # of a step


def warnings_of(plan: dict[str, Any]) -> list[str]:
    """All warnings, the most severe first."""
    checks = (_memory(plan), _loader(plan), _network(plan), _batch(plan), _saves(plan))
    return [text for text in checks if text is not None]


def _row(plan: dict[str, Any], *, recomputes: bool) -> dict[str, Any]:
    """The row of the memory table at the run's ZeRO stage."""
    stage = plan["run"]["zero_stage"]
    return next(row for row in plan["memory"] if (row["stage"], row["recomputes"]) == (stage, recomputes))


def _worked_s(plan: dict[str, Any]) -> float:
    """Seconds of a step without reading."""
    step = plan["step"]
    return float(step["compute"] + step["update"] + step["exchange"])


def _memory(plan: dict[str, Any]) -> str | None:
    run, memory = plan["run"], plan["memory"]
    row = _row(plan, recomputes=run["recomputes"])
    if row["fits"]:
        return None
    fixes = [f"batch.clips_per_device={row['largest_micro_batch']}"] if row["largest_micro_batch"] else []
    if not run["recomputes"] and _row(plan, recomputes=True)["fits"]:
        fixes.append("engine.activation_checkpointing=true")
    fixes += [
        f"engine.zero_stage={other['stage']}"
        for other in memory
        if other["stage"] > run["zero_stage"] and other["fits"] and other["recomputes"] == run["recomputes"]
    ][:1]
    return (
        f"memory does not fit: {row['bytes']['all'] / 1e9:.1f} GB of "
        f"{plan['machines']['memory_bytes'] / 1e9:.0f} GB at micro-batch {plan['batch']['micro']}; "
        "fix: " + (f"set {' or '.join(fixes)}" if fixes else "use a smaller model or clip, or more memory")
    )


def _loader(plan: dict[str, Any]) -> str | None:
    step, data, worked_s = plan["step"], plan["data"], _worked_s(plan)
    if data["cores"] and step["data"] <= worked_s:
        return None
    run = plan["run"]
    needed = run["global_clips"] / worked_s / data["clips_per_core"]
    return (
        f"the loader is the bottleneck: {data['cores']} cores read {data['clips_per_s']:.0f} clips/s, the "
        f"devices need {run['global_clips'] / worked_s:.0f}/s from {needed:.0f} cores; fix: more cores "
        "(cores_per_node, data.num_workers), or raise data.views_per_video above "
        f"{run['views_per_video']}, which shares the decoding"
    )


def _network(plan: dict[str, Any]) -> str | None:
    step = plan["step"]
    fraction = step["exchange"] / _worked_s(plan)
    if fraction <= _MOST_COMMUNICATION:
        return None
    batch = plan["batch"]
    return (
        f"the network is the bottleneck: {fraction:.0%} of a step is exposed communication "
        f"({1000 * step['exchange']:.0f} ms); fix: more clips per step (batch.global_clips, "
        f"now {batch['micro'] * batch['accumulation']} per device), a lower engine.zero_stage, "
        "engine.grad_reduce_dtype=bf16, or a faster link_gbit"
    )


def _batch(plan: dict[str, Any]) -> str | None:
    """A device that waits for its host could compute more clips in the same time."""
    batch, row = plan["batch"], _row(plan, recomputes=plan["run"]["recomputes"])
    busy_from = batch["busy_from"]
    if batch["micro"] >= busy_from or batch["micro"] >= row["largest_micro_batch"]:
        return None
    return (
        f"the micro-batch is too small: with {batch['micro']} clips the device waits for its host, up to "
        f"about {busy_from} clips ({row['largest_micro_batch']} fit); fix: raise "
        "batch.clips_per_device and batch.global_clips, or use fewer devices"
    )


def _saves(plan: dict[str, Any]) -> str | None:
    every_s = plan["run"]["save_every_steps"] * plan["step"]["all"]
    write_s = plan["checkpoint"]["write_s"]
    if write_s <= every_s:
        return None
    return (
        f"a checkpoint takes {write_s:.0f} s to write and one is due every {every_s:.0f} s; fix: raise "
        f"save_every_steps to {int(write_s / plan['step']['all']) + 1} or more, or use a faster disk "
        "(disk_gb_s)"
    )
