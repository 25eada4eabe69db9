"""Training clips with the targets of a task."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.finetune.tasks.base import Targets


class LabelledClips(TrainingClips):
    """The clips of a run with `ClipBatch.targets`.

    Args:
        targets: of the samples of the index.
        settings: those of `TrainingClips`.
    """

    def __init__(self, *arguments: Any, targets: Targets, **settings: Any):
        super().__init__(*arguments, **settings)
        self.targets = targets

    def batch(
        self,
        clips: range,
        *,
        quarantined: Mapping[str, str] | None = None,
        on_sample: Callable[[str], None] = lambda key: None,
    ) -> ClipBatch:
        batch = super().batch(clips, quarantined=quarantined, on_sample=on_sample)
        return replace(batch, targets=self.targets.of_clips(batch.sample_B, batch.time_BT))
