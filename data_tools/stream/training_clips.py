"""Training clips; each clip is a function of the seed and its position in the run."""

from collections.abc import Callable, Mapping
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.batch import ClipBatch, SkippedClip
from kinemae.data_tools.stream.colour import colour_augment
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import ClipConfig, training_timestamps_s
from kinemae.data_tools.stream.mixture import LocatedSample, Source, locate_sample
from kinemae.data_tools.stream.video_reader import decode_sample, error_context, skip_quarantined
from kinemae.data_tools.stream.views import View, crop_views, training_view
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips, map_pixels, to_luma, to_rgb

# Computes index lists of a clip from its augmented luma_THW (see `yuv_to_rgb.to_luma`) and its position in
# the run. It is pickled for the loader workers.
Annotate = Callable[[Tensor | None, int], dict[str, Tensor]]


class TrainingClips:
    """The clips of a run, readable at any position.

    Args:
        index: the data set, or several; each epoch of a data set shows its videos in a new order.
            `BalancedClasses` shows the classes of a data set more evenly.
        seed: the run's seed.
        views: clips cut from one decoded video; they share its frames and differ in crop and flip.
        annotate: called for each clip; a skipped clip is all zeros.
        needs_luma: whether `annotate` gets the luma; otherwise it gets None.
        may_flip_R: whether each sample of the index may be flipped, for a single data set; None for all.
    """

    def __init__(  # noqa: PLR0913 - all but the index by name
        self,
        index: Source,
        *,
        clip: ClipConfig,
        augment: AugmentConfig,
        seed: int,
        views: int = 1,
        annotate: Annotate | None = None,
        needs_luma: bool = True,
        may_flip_R: np.ndarray | None = None,
    ):
        if views < 1:
            raise ValueError(f"data.views_per_video must be at least 1, got {views}")
        self.index = index
        self.clip = clip
        self.augment = augment
        self.seed = seed
        self.views = views
        self.annotate = annotate
        self.needs_luma = needs_luma
        self.may_flip_R = may_flip_R

    def batch(
        self,
        clips: range,
        *,
        quarantined: Mapping[str, str] | None = None,
        on_sample: Callable[[str], None] = lambda key: None,
    ) -> ClipBatch:
        """Read consecutive clips; each video is decoded once for all its requested views.

        Args:
            quarantined: keys of samples that must not be read, with the reasons.
            on_sample: called with the key of each sample before it is read.

        Raises:
            RuntimeError: an error that no video causes; the message names the sample.
        """
        pixels = self._empty(len(clips))
        weight_B = torch.ones(len(clips))
        time_BT = torch.full((len(clips), self.clip.frames), float("nan"), dtype=torch.float64)
        flipped_B = torch.zeros(len(clips), dtype=torch.bool)
        located: list[LocatedSample] = []
        annotations: list[dict[str, Tensor]] = []
        skipped: list[SkippedClip] = []
        for position, group in groupby(range(len(clips)), key=lambda row: clips[row] // self.views):
            rows = list(group)
            own = slice(rows[0], rows[-1] + 1)
            out = pixels[own]
            found = locate_sample(self.index, seed=self.seed, position=position)
            located += [found] * len(rows)
            try:
                skip_quarantined(found.key, quarantined or {}, on_sample)
                timestamps_s, flips = self._decode_views(out, clips[rows[0]], found)
                time_BT[own] = torch.tensor(timestamps_s, dtype=torch.float64)
                flipped_B[own] = torch.tensor(flips)
            except BadVideo as error:
                map_pixels(Tensor.zero_, out)
                weight_B[own] = 0.0
                skipped += [SkippedClip(key=found.key, reason=str(error))] * len(rows)
            # Before the next sample is read, so that an error in `annotate` is reported for this sample.
            annotations += self._annotations(out, clips[own])
        names = annotations[0] if annotations else ()
        return ClipBatch(
            pixels=pixels,
            clip_index_B=torch.tensor(clips, dtype=torch.int64),
            label_B=torch.tensor([found.sample.label for found in located], dtype=torch.int64),
            weight_B=weight_B,
            tokens={name: torch.stack([row[name] for row in annotations]) for name in names},
            sample_B=torch.tensor([found.position for found in located], dtype=torch.int64),
            time_BT=time_BT,
            flipped_B=flipped_B,
            keys=tuple(found.key for found in located),
            skipped=tuple(skipped),
        )

    def _empty(self, clips: int) -> Pixels:
        """Allocate black clips: planes, or RGB in (B, T, H, W, C) memory order for colour augmentation."""
        frames, size = self.clip.frames, self.clip.size
        if not self.augment.changes_colour:
            return YuvClips.empty(clips, frames, size)
        shape = (clips, frames, size, size, 3)
        return torch.zeros(shape, dtype=torch.uint8).permute(0, 4, 1, 2, 3)

    def _annotations(self, pixels: Pixels, clips: range) -> list[dict[str, Tensor]]:
        if self.annotate is None:
            return []
        lumas = to_luma(pixels) if self.needs_luma else [None] * len(clips)
        return [self.annotate(luma_THW, clip) for luma_THW, clip in zip(lumas, clips, strict=True)]

    def _decode_views(
        self, pixels: Pixels, first_clip: int, found: LocatedSample
    ) -> tuple[list[float], list[bool]]:
        """Decode a sample once and cut its views, the clips from `first_clip` on.

        Returns:
            The timestamps of the frames, and whether each view is flipped.
        """
        sample = found.sample
        with error_context(sample):
            draw = generator(self.seed, purpose="start", sample=first_clip // self.views)
            timestamps_s = training_timestamps_s(sample, self.clip, draw)
            draws = [
                generator(self.seed, purpose="augment", sample=first_clip + view)
                for view in range(len(pixels))
            ]

            may_flip = self.may_flip_R is None or bool(self.may_flip_R[found.position])
            views: list[View] = []

            def choose(height: int, width: int) -> list[View]:
                views[:] = [
                    training_view(height, width, self.augment, draw, may_flip=may_flip) for draw in draws
                ]
                return views

            frames = decode_sample(found.index, sample, timestamps_s)
            if isinstance(pixels, YuvClips):
                crop_views(frames, choose, pixels)
                return timestamps_s, [view.flip for view in views]
            planes = YuvClips.empty(len(pixels), self.clip.frames, self.clip.size)
            crop_views(frames, choose, planes)
            for out_CTHW, clip_CTHW, draw in zip(pixels, to_rgb(planes), draws, strict=True):
                changed_TCHW = colour_augment(clip_CTHW.transpose(0, 1), self.augment, draw)
                out_CTHW.copy_(changed_TCHW.transpose(0, 1))
            return timestamps_s, [view.flip for view in views]
