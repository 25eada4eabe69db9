"""Training clips with the targets of a task."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.finetune.labels.target_flips import TargetFlip
from kinemae.finetune.tasks.base import Targets


class LabelledClips(TrainingClips):
    """The clips of a run with `ClipBatch.targets`.

    Args:
        targets: of the samples of the index.
        flip: changes the targets of clips that are flipped left to right.
        settings: those of `TrainingClips`.
    """

    def __init__(self, *arguments: Any, targets: Targets, flip: TargetFlip, **settings: Any):
        super().__init__(*arguments, **settings)
        self.targets = targets
        self.flip = flip

    def batch(
        self,
        clips: range,
        *,
        quarantined: Mapping[str, str] | None = None,
        on_sample: Callable[[str], None] = lambda key: None,
    ) -> ClipBatch:
        batch = super().batch(clips, quarantined=quarantined, on_sample=on_sample)
        targets = self.targets.of_clips(batch.sample_B, batch.time_BT)
        return replace(batch, targets=self.flip(targets, batch.flipped_B))
