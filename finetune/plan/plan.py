"""Plan of a fine-tuning run: facts about its data, advice, and what to expect."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kinemae.data_tools.command import log
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.overrides import as_yaml_override
from kinemae.finetune.build import clip_config, describe_encoder
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.labels.labelled_data import open_labelled
from kinemae.finetune.plan.facts import ClassCounts, Facts, gather_facts
from kinemae.finetune.plan.rules import apply_rules, directed_classes
from kinemae.finetune.tasks.base import Task, build_task
from kinemae.finetune.tasks.classification import Classification, class_numbers, classes_of
from kinemae.pretrain.advise.rule_table import (
    Advice,
    Settings,
    fixed_values,
    is_given,
    settings_of,
    value_at,
)

KEYS = (
    *("adapt.method", "adapt.rank", "adapt.dropout", "head", "batch.global_clips", "batch.clips_per_device"),
    *("epochs", "optim.lr", "optim.weight_decay", "optim.warmup_fraction", "optim.layer_decay", "drop_path"),
    *("task.args.label_smoothing", "augment.min_scale", "augment.max_scale", "augment.flip", "mix.mixup"),
    *(
        "augment.rand_augment.operations",
        "augment.erase.probability",
        "mix.cutmix",
        "task.args.class_weights",
    ),
    *(
        "clip.stride",
        "clip.sampling",
        "validate.fraction",
        "validate.patience",
        "evaluate.temporal_clips",
        "evaluate.spatial_crops",
    ),
)
"""Every key that a rule can set."""

# A choice of the user that excludes a planned key, besides the key itself.
_FRAMES = ("clip.stride", "clip.sampling", "clip.fps")
_EXCLUDING = {
    "clip.stride": _FRAMES,
    "clip.sampling": _FRAMES,
    "augment.flip": ("augment.flip_pairs", "augment.flip_except"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Facts and advice for a config.

    Attributes:
        fixed: settings that the user has chosen.
        notes: warnings and expectations, one line each.
    """

    facts: Facts
    advice: Sequence[Advice]
    fixed: Settings
    notes: Sequence[str]

    @property
    def settings(self) -> Settings:
        """The planned values by config key."""
        return settings_of(self.advice)

    def overrides(self) -> list[str]:
        """The planned values as overrides."""
        return [as_yaml_override(key, value) for key, value in self.settings.items()]

    def summary(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {
            "facts": self.facts.summary(),
            "settings": self.settings,
            "advice": [vars(each) for each in self.advice],
            "chosen_by_the_user": self.fixed,
            "notes": list(self.notes),
        }


def make_plan(config: FinetuneConfig, overrides: Sequence[str]) -> Plan:
    """Measure the training data of a config and plan its other keys.

    Args:
        overrides: the user's, whose keys are not changed.

    Raises:
        DataError: unusable shards or labels.
        CheckpointError: unusable encoder.
    """
    description = describe_encoder(config)
    task = build_task(config.task)
    train = open_labelled(config.data, "train", task=task, clip=clip_config(config, description))
    validation, data = None, config.data
    if data.validation is not None:
        held_out = open_index(data.validation, cache=data.cache, outage_s=data.outage_s)
        validation = len(data.selected("validation", held_out))
    facts = gather_facts(
        train,
        seed=config.seed,
        classes=count_classes(train, task, key=f"data.train={config.data.train}"),
        validation=validation,
        description=description,
        has_weights=not config.from_scratch,
        output=task.output,
        chunks=config.clip.chunks,
        keeps_tokens=config.pruning.name == "none" and config.merge.per_block == 0,
    )
    fixed = fixed_values(config, overrides, KEYS, _EXCLUDING)
    advice = apply_rules(facts, fixed)
    return Plan(facts=facts, advice=advice, fixed=fixed, notes=notes(facts))


def follow_plan(config: FinetuneConfig, path: Path | None, overrides: Sequence[str]) -> FinetuneConfig:
    """Return the config with the planned values; `overrides` replace them.

    A run that exists already keeps its values.
    """
    stored = Path(config.run_dir) / "config.yaml"
    if stored.is_file():
        content = yaml.safe_load(stored.read_text(encoding="utf-8"))
        given = [override.partition("=")[0] for override in overrides]
        values = {key: value_at(content, key) for key in KEYS if not is_given(key, given, _EXCLUDING)}
        planned = [as_yaml_override(key, value) for key, value in values.items() if value is not None]
    else:
        plan = make_plan(config, overrides)
        for each in plan.advice:
            chosen = " ".join(as_yaml_override(key, value) for key, value in each.settings.items())
            log.info("plan: %s: %s", chosen, each.why)
        planned = plan.overrides()
    return load_config(FinetuneConfig, path, [*planned, *overrides])


def count_classes(index: ShardIndex, task: Task, *, key: str) -> ClassCounts | None:
    """Count the videos of each class; None for a task other than classification."""
    if not isinstance(task, Classification):
        return None
    names = classes_of(index, task.label, key=key)
    label_R = class_numbers(index, task.label, names, key=key, may_miss=True)
    counts = np.bincount(label_R[label_R >= 0], minlength=len(names))
    return ClassCounts(names=names, videos=tuple(counts.tolist()), unlabelled=int((label_R < 0).sum()))


def notes(facts: Facts) -> list[str]:
    """Expected scores and necessary checks, one line each."""
    return [text(facts) for applies, text in _NOTES if applies(facts)]


_Note = tuple[Callable[[Facts], bool], Callable[[Facts], str]]
_NOTES: tuple[_Note, ...] = (
    (
        lambda f: f.classes is not None,
        lambda f: (
            f"floors: chance {100 * f.floors()['chance']:.1f} %, always the largest class "
            f"{100 * f.floors()['largest_class']:.1f} %; compare with adapt.method=frozen weights=random too"
        ),
    ),
    (
        lambda f: f.validation is not None and f.classes is not None,
        lambda f: (
            f"{f.validation} validation videos: the 95 % interval of an accuracy is about "
            f"{100 * f.interval(f.validation or 1):.0f} points wide to each side"
        ),
    ),
    (
        lambda f: f.validation is None,
        lambda f: "no validation set: a fifth of the training videos is held out, in whole groups",
    ),
    (
        lambda f: f.classes is not None and f.classes.median < 20,
        lambda f: (
            f"the median class has {f.classes.median:g} videos: repeat the run with several seeds, "
            "since scores vary with the choice of the videos"
            if f.classes
            else ""
        ),
    ),
    (
        lambda f: f.classes is not None and min(f.classes.videos) == 0,
        lambda f: "some classes have no training video",
    ),
    (
        lambda f: f.classes is not None and f.classes.unlabelled > 0,
        lambda f: (
            f"{f.classes.unlabelled if f.classes else 0} videos have no label: remove them, or use "
            "them for pretraining"
        ),
    ),
    (
        lambda f: f.groups == 0,
        lambda f: (
            "the index has no groups: check that videos of one subject or one recording are not in "
            "both training and validation"
        ),
    ),
    (
        lambda f: f.static > 0.5,
        lambda f: (
            f"{100 * f.static:.0f} % of the decoded videos are static: the label may be visible in "
            "one frame, so compare with clip.frames=2"
        ),
    ),
    (
        lambda f: f.clip_frames > 0 and f.frames > 10 * f.clip_frames,
        lambda f: (
            f"the median video has {f.frames:g} frames and a clip spans {f.clip_frames:g}: label "
            "segments (data.segments) if an event is short, and score whole videos (evaluate.sliding)"
        ),
    ),
    (
        lambda f: bool(directed_classes(f)),
        lambda f: (
            f"classes with a side or a sense of rotation, for example {directed_classes(f)[0]!r}: "
            "no flips, or augment.flip_pairs"
        ),
    ),
)
