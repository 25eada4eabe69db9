"""Training clips, each a function of the seed and its place in the run."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from data_tools.index import Sample, ShardIndex, open_index
from data_tools.randomness import generator
from data_tools.stream.augment import AugmentConfig, training_view
from data_tools.stream.batch import ClipBatch, SkippedClip
from data_tools.stream.decode import BadVideo
from data_tools.stream.order import clip_place, sample_at
from data_tools.stream.reading import naming, read_frames
from data_tools.stream.times import ClipConfig, training_instants_s

# Adds index lists to a clip, from clip_CTHW uint8 and the clip's place in the run. Workers pickle it.
Annotate = Callable[[Tensor, int], dict[str, Tensor]]


class TrainingClips:
    """The clips of a run, readable at any place.

    Args:
        index: the data set; its videos are shown in a new order each epoch.
        seed: the run's seed.
        views: clips cut from one decoded video; they share their frames and differ in crop and flip.
        annotate: called for every clip, for a skipped one on its zeros.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        clip: ClipConfig,
        augment: AugmentConfig,
        seed: int,
        views: int = 1,
        annotate: Annotate | None = None,
    ):
        if views < 1:
            raise ValueError(f"data.views_per_video must be at least 1, got {views}")
        self.index = index
        self.clip = clip
        self.augment = augment
        self.seed = seed
        self.views = views
        self.annotate = annotate

    def batch(self, clips: range) -> ClipBatch:
        """Read a run of clips; each video is decoded once for those of its views that are asked for.

        Returns:
            The batch. `clip_BCTHW` is a view of memory in (B, T, H, W, C) order. A video that cannot be
            read gives zeros of weight 0 and an entry in `skipped`.

        Raises:
            RuntimeError: a sample failed in a way that is no property of its video; the message names it.
        """
        size = self.clip.size
        clip_BTHWC = torch.zeros((len(clips), self.clip.frames, size, size, 3), dtype=torch.uint8)
        clip_BCTHW = clip_BTHWC.permute(0, 4, 1, 2, 3)
        weight_B = torch.ones(len(clips))
        samples: list[Sample] = []
        skipped: list[SkippedClip] = []
        for position, group in groupby(range(len(clips)), key=lambda row: clips[row] // self.views):
            rows = list(group)
            sample = self._sample(position)
            samples += [sample] * len(rows)
            try:
                self._fill(clip_BCTHW[rows[0] : rows[-1] + 1], clips[rows[0]], sample)
            except BadVideo as error:
                clip_BCTHW[rows[0] : rows[-1] + 1] = 0
                weight_B[rows[0] : rows[-1] + 1] = 0.0
                skipped += [SkippedClip(key=sample.key, reason=str(error))] * len(rows)
        return ClipBatch(
            clip_BCTHW=clip_BCTHW,
            clip_index_B=torch.tensor(clips, dtype=torch.int64),
            label_B=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            weight_B=weight_B,
            tokens=self._annotations(clip_BCTHW, clips),
            keys=tuple(sample.key for sample in samples),
            skipped=tuple(skipped),
        )

    def _sample(self, position: int) -> Sample:
        epoch, i, _ = clip_place(position, len(self.index), 1)
        return self.index.sample(sample_at(self.seed, epoch, i, len(self.index)))

    def _fill(self, clip_BCTHW: Tensor, first_clip: int, sample: Sample) -> None:
        """Decode a sample once and cut its views, which stand side by side from `first_clip` on."""
        with naming(sample):
            draw = generator(self.seed, purpose="start", sample=first_clip // self.views)
            start_share = torch.rand((), generator=draw, dtype=torch.float64).item()
            instants_s = training_instants_s(
                sample.frames, sample.duration_s, self.clip, start_share=start_share
            )
            frames_TCHW = read_frames(self.index, sample, instants_s)
            for view, view_CTHW in enumerate(clip_BCTHW):
                draw = generator(self.seed, purpose="augment", sample=first_clip + view)
                view_CTHW.copy_(training_view(frames_TCHW, self.clip.size, self.augment, draw))

    def _annotations(self, clip_BCTHW: Tensor, clips: range) -> dict[str, Tensor]:
        if self.annotate is None:
            return {}
        rows = [self.annotate(clip_CTHW, clip) for clip_CTHW, clip in zip(clip_BCTHW, clips, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def __getstate__(self) -> dict[str, Any]:
        # A worker maps the index file again: pickling the table would copy it into every worker.
        return {**self.__dict__, "index": self.index.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, index=open_index(state["index"]))
