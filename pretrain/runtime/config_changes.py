"""Changes of a run's config between starts: which ones are allowed, and the effect of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Allowed in a continued run: the clips of every step stay the same, and the checkpoint still fits.
ALLOWED_CHANGES = {
    "run_dir": "the folder has moved",
    "save_every_steps": "other checkpoints",
    "keep_checkpoints": "other checkpoints stay",
    "keep_every_steps": "other checkpoints stay",
    "save_in_background": "speed and memory",
    "data.num_workers": "speed",
    "data.timeout_s": "when a video is skipped",
    "data.outage_s": "how long to wait for a storage",
    "data.cache_dir": "speed",
    "data.cache_gb": "speed",
    "data.read_ahead": "speed",
    "data.max_bad_fraction": "when the run stops",
    "batch.clips_per_device": "speed and memory; sums are rounded differently",
    "engine.cpu_threads": "speed; sums are rounded differently",
    "engine.device": "speed; sums are rounded differently",
    "engine.bucket_mb": "speed and memory; sums are rounded differently",
    "engine.overlap_comm": "speed and memory",
    "engine.zero_stage": "speed and memory; sums are rounded differently",
    "engine.activation_checkpointing": "speed and memory",
    "engine.compile": "speed; sums are rounded differently",
    # Checkpoints hold float32 weights and moments at every precision.
    "engine.grad_reduce_dtype": "gradients are rounded differently from here on",
    "engine.residual_dtype": "everything is rounded differently from here on",
    "engine.precision": "everything is rounded differently from here on",
    # Remedies for a run that diverges.
    "optim.lr": "another learning rate from here on",
    "optim.final_lr": "another learning rate from here on",
    "optim.clip_norm": "gradients are clipped differently from here on",
    "validate.patience": "when the run stops",
    "validate.pause_after": "when the process stops",
    "validate.min_delta": "when the run stops",
    "data.test": "how the result is scored",
    "data.test_where": "how the result is scored",
    "loss_guard": "other updates are left out from here on",
    "timeouts": "time limits",
    "evaluate": "how the result is scored",
    "log": "output",
    "profile": "output",
    "report": "output",
    "pictures": "output",
    "monitor": "output",
}

# The reasons for refusing the others. Longer keys come before their own prefixes.
# `run_length.py` judges the length of a pretraining run.
REFUSED = {
    "save_to": "the checkpoints of the run are elsewhere",
    "seed": "other clips, masks and noise from here on",
    "epochs": "the schedules of learning rate and noise would jump",
    "data": "other clips: some would be repeated or missed",
    "batch.global_clips": "other clips in every step",
    "clip": "other clips",
    "augment": "other clips",
    "mix": "other clips",
    "optim": "the optimizer state belongs to other settings",
    "model": "another model: the checkpoint does not fit",
    "adapt": "other weights are trained: the checkpoint does not fit",
    "head": "another model: the checkpoint does not fit",
    "ema": "another model: the checkpoint does not fit",
    "validate": "another history of validations",
    "final_norm": "another model: the checkpoint does not fit",
    "init_from": "other initial weights",
    "encoder": "other initial weights",
    "weights": "other initial weights",
    "masking": "another task",
    "masks_per_clip": "another task",
    "pruning": "another task",
    "noise": "another task",
    "target": "another task",
}
_OTHER_KEYS = "another run"
_LONGEST_VALUE = 40


@dataclass(frozen=True, kw_only=True)
class Change:
    """A key whose value differs from the run's.

    Attributes:
        old: the value in the run folder's config; None if it has none.
        new: the present value.
        is_allowed: whether a run may continue with it.
        effect: the effect of the change, or the reason why it is refused.
    """

    key: str
    old: Any
    new: Any
    is_allowed: bool
    effect: str

    @classmethod
    def of(cls, key: str, old: Any, new: Any) -> "Change":
        """A change that only its key judges; see also `inputs.py` and `run_length.py`."""
        allowed = _prefix(key, ALLOWED_CHANGES)
        refused = f"refused: {REFUSED.get(_prefix(key, REFUSED) or '', _OTHER_KEYS)}"
        effect = refused if allowed is None else ALLOWED_CHANGES[allowed]
        return cls(key=key, old=old, new=new, is_allowed=allowed is not None, effect=effect)


def find_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Keys in which two configs differ, including keys of only one of them; refused ones first.

    Args:
        old: the run's config, nested as in its YAML.
        new: the present config.
    """
    flat_old, flat_new = _flat(old), _flat(new)
    changes = [
        Change.of(key, flat_old.get(key), flat_new.get(key))
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key) != flat_new.get(key)
    ]
    return sorted(changes, key=lambda change: change.is_allowed)


def table_of(changes: Sequence[Change]) -> list[str]:
    """Changes as lines of text with aligned columns: key, old, new, effect."""
    rows = [("key", "old", "new", "effect")]
    rows += [(change.key, _shown(change.old), _shown(change.new), change.effect) for change in changes]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _prefix(key: str, keys: Mapping[str, str]) -> str | None:
    return next((known for known in keys if key == known or key.startswith(f"{known}.")), None)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    return {
        name: leaf
        for child_key, child in value.items()
        for name, leaf in _flat(child, f"{key}.{child_key}" if key else str(child_key)).items()
    }
