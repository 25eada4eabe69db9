"""A run that goes on with a changed config: what each change would do, and whether it may."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A continued run may differ in these: the clips of every step stay the same, and what was saved still fits.
FREE_KEYS = {
    "run_dir": "the folder has moved",
    "save_every_steps": "other checkpoints",
    "keep_checkpoints": "other checkpoints stay",
    "keep_every_steps": "other checkpoints stay",
    "save_in_background": "speed and memory",
    "data.num_workers": "speed",
    "data.timeout_s": "when a video is given up",
    "data.outage_s": "how long a storage is waited for",
    "data.cache_dir": "speed",
    "data.cache_gb": "speed",
    "data.max_bad_fraction": "when the run gives up",
    "batch.clips_per_device": "speed and memory; sums are rounded otherwise",
    "engine.cpu_threads": "speed; sums are rounded otherwise",
    "engine.device": "speed; sums are rounded otherwise",
    "engine.bucket_mb": "speed and memory; sums are rounded otherwise",
    "engine.zero_stage": "speed and memory; sums are rounded otherwise",
    "engine.activation_checkpointing": "speed and memory",
    "engine.compile": "speed; sums are rounded otherwise",
    # Weights and moments are float32 whatever is computed in, so they fit.
    "engine.grad_reduce_dtype": "gradients are rounded otherwise from here on",
    "engine.precision": "everything is rounded otherwise from here on",
    # What one does against a run that diverges; like every config, a function of the step.
    "optim.lr": "another learning rate from here on",
    "optim.final_lr": "another learning rate from here on",
    "optim.clip_norm": "gradients are clipped otherwise from here on",
    "loss_guard": "other updates are left out from here on",
    "timeouts": "when the run is taken to hang",
    "evaluate": "how the result is scored",
    "log": "what is written",
    "pictures": "what is written",
    "monitor": "what is written",
}

# Why the others may not. Longer keys come before the shorter ones that they begin with.
REFUSED = {
    "seed": "other clips, masks and noise from here on",
    "steps": "the schedules of learning rate and noise would jump",
    "epochs": "the schedules of learning rate and noise would jump",
    "data": "other clips: what was seen would be seen again, or never",
    "batch.global_clips": "other clips in every step",
    "clip": "other clips",
    "augment": "other clips",
    "mix": "other clips",
    "optim": "the moments were gathered under other settings",
    "model": "another model: what was saved does not fit it",
    "head": "another model: what was saved does not fit it",
    "final_norm": "another model: what was saved does not fit it",
    "init_from": "another beginning",
    "encoder": "another beginning",
    "weights": "another beginning",
    "masking": "another task",
    "pruning": "another task",
    "noise": "another task",
    "target": "another task",
}
_OTHERWISE = "another run"
_LONGEST_VALUE = 40


@dataclass(frozen=True, kw_only=True)
class Change:
    """A key whose value is not the run's.

    Attributes:
        there: the value in the run folder's config; None where it has none.
        here: the value now.
        is_moved: both name the same content, see `inputs.py`.
    """

    key: str
    there: Any
    here: Any
    is_moved: bool = False

    @property
    def is_free(self) -> bool:
        """Whether a run may go on with it."""
        return self.is_moved or _begin(self.key, FREE_KEYS) is not None

    @property
    def effect(self) -> str:
        """What it would do."""
        if self.is_moved:
            return "the same content, elsewhere"
        if self.is_free:
            return FREE_KEYS[_begin(self.key, FREE_KEYS) or ""]
        return f"refused: {REFUSED.get(_begin(self.key, REFUSED) or '', _OTHERWISE)}"


def find_changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[Change]:
    """Keys in which two configs differ, those that only one of them has among them; the refused ones first.

    Args:
        there: the run's, nested as in its YAML.
        here: the one wanted.
    """
    flat_there, flat_here = _flat(there), _flat(here)
    changes = [
        Change(key=key, there=flat_there.get(key), here=flat_here.get(key))
        for key in sorted(flat_there.keys() | flat_here.keys())
        if flat_there.get(key) != flat_here.get(key)
    ]
    return sorted(changes, key=lambda change: change.is_free)


def table_of(changes: Sequence[Change]) -> list[str]:
    """Changes as lines of text with aligned columns: key, there, here, what it would do."""
    rows = [("key", "there", "here", "what it would do")]
    rows += [(change.key, _shown(change.there), _shown(change.here), change.effect) for change in changes]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _begin(key: str, keys: Mapping[str, str]) -> str | None:
    return next((known for known in keys if key == known or key.startswith(f"{known}.")), None)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    return {
        name: leaf
        for child_key, child in value.items()
        for name, leaf in _flat(child, f"{key}.{child_key}" if key else str(child_key)).items()
    }
