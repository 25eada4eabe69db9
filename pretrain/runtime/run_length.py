"""Changes of a run's length: allowed as long as the steps so far stay the same.

A run with the schedule "constant" can be prolonged until its cool-down begins. It then equals an unbroken run
of the new length, bit by bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kinemae.pretrain.runtime.config_changes import Change
from kinemae.pretrain.runtime.optimizer import decay_start, warmup_steps
from kinemae.pretrain.runtime.settings import OptimConfig

_IN_OPTIM = ("cooldown_fraction", "warmup_fraction", "warmup_steps")
LENGTH_KEYS = ("steps", *(f"optim.{name}" for name in _IN_OPTIM))


def judge_length(
    changes: Sequence[Change], stored: Mapping[str, Any], *, done: int, by_progress: Sequence[str]
) -> list[Change]:
    """Allow changes of the length of a pretraining run if the steps so far stay the same; refused ones first.

    Args:
        stored: the config of the run, nested as in its YAML, with defaults.
        done: step of the newest checkpoint.
        by_progress: keys whose effect depends on the fraction of the run that is done.
    """
    changed = {change.key: change.new for change in changes if change.key in LENGTH_KEYS}
    if not changed:
        return list(changes)
    old, new = _schedule(stored, {}), _schedule(stored, changed)
    reason = _reason(*old, *new, done=done, by_progress=by_progress) if done else None
    effect = "the steps so far stay the same" if reason is None else f"refused: {reason}"
    judged = [
        replace(change, is_allowed=reason is None, effect=effect) if change.key in changed else change
        for change in changes
    ]
    return sorted(judged, key=lambda change: change.is_allowed)


def with_length(stored: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """The stored config with the new length."""
    changed = {change.key: change.new for change in changes if change.key in LENGTH_KEYS}
    in_optim = {name: changed[f"optim.{name}"] for name in _IN_OPTIM if f"optim.{name}" in changed}
    return {
        **stored,
        "steps": changed.get("steps", stored["steps"]),
        "optim": {**stored.get("optim", {}), **in_optim},
    }


def _schedule(stored: Mapping[str, Any], changed: Mapping[str, Any]) -> tuple[int, OptimConfig]:
    optim = {name: changed.get(f"optim.{name}", stored["optim"][name]) for name in _IN_OPTIM}
    return changed.get("steps", stored["steps"]), OptimConfig(schedule=stored["optim"]["schedule"], **optim)


def _reason(
    old_steps: int,
    old: OptimConfig,
    new_steps: int,
    new: OptimConfig,
    *,
    done: int,
    by_progress: Sequence[str],
) -> str | None:
    """The reason why the steps so far would not be the same; None if they are."""
    if by_progress:
        return f"{by_progress[0]} follows the progress of the run"
    warmup, start = warmup_steps(old_steps, old), decay_start(old_steps, old)
    if warmup_steps(new_steps, new) != warmup:
        return f"the run has a warm-up of {warmup} steps; fix: set optim.warmup_steps={warmup}"
    if done > start and old.schedule == "constant":
        return f"the cool-down began at step {start}; fix: remove the checkpoints after step {start}"
    if done > start:
        return "only a run with optim.schedule=constant can be prolonged"
    if done > decay_start(new_steps, new):
        return f"step {done} is done: it would be in the new cool-down; fix: raise steps"
    return None
