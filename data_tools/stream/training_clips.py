"""Training clips, each a function of the seed and its place in the run."""

from collections.abc import Callable, Mapping
from itertools import groupby

import torch
from torch import Tensor

from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.batch import ClipBatch, SkippedClip
from kinemae.data_tools.stream.colour import colour_augment
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import ClipConfig, training_timestamps_s
from kinemae.data_tools.stream.mixture import LocatedSample, Mixture, locate_sample
from kinemae.data_tools.stream.video_reader import (
    check_decoder,
    decode_sample,
    empty_clips,
    error_context,
    skip_quarantined,
)
from kinemae.data_tools.stream.views import View, crop_views, training_view
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, map_pixels, to_luma, to_rgb

# Adds index lists to a clip, from its grey levels luma_THW (see `pixels.to_luma`) and the clip's place in the
# run. The levels are those of the clip as the model gets it, so after augmentation. Workers pickle it.
Annotate = Callable[[Tensor | None, int], dict[str, Tensor]]


class TrainingClips:
    """The clips of a run, readable at any place.

    Args:
        index: the data set, or several; the videos of each are shown in a new order in each of its epochs.
        seed: the run's seed.
        views: clips cut from one decoded video; they share their frames and differ in crop and flip.
        annotate: called for every clip, for a skipped one on its zeros.
        needs_luma: whether `annotate` gets the grey levels, or None in their place.
        decoder: `data.decoder`, a key of `reading.DECODERS`.
    """

    def __init__(  # noqa: PLR0913 - all but the index by name
        self,
        index: ShardIndex | Mixture,
        *,
        clip: ClipConfig,
        augment: AugmentConfig,
        seed: int,
        views: int = 1,
        annotate: Annotate | None = None,
        needs_luma: bool = True,
        decoder: str = "pyav",
    ):
        if views < 1:
            raise ValueError(f"data.views_per_video must be at least 1, got {views}")
        check_decoder(decoder)
        self.index = index
        self.clip = clip
        self.augment = augment
        self.seed = seed
        self.views = views
        self.annotate = annotate
        self.needs_luma = needs_luma
        self.decoder = decoder

    def batch(
        self,
        clips: range,
        *,
        quarantined: Mapping[str, str] | None = None,
        reading: Callable[[str], None] = lambda key: None,
    ) -> ClipBatch:
        """Read a run of clips; each video is decoded once for those of its views that are asked for.

        Args:
            quarantined: samples that are not to be touched, by key, and why.
            reading: told the key of each sample right before it is read.

        Raises:
            RuntimeError: a sample failed in a way that is no property of its video; the message names it.
        """
        pixels = empty_clips(len(clips), self.clip, decoder=self.decoder, rgb=self.augment.changes_colour)
        weight_B = torch.ones(len(clips))
        shown: list[LocatedSample] = []
        annotations: list[dict[str, Tensor]] = []
        skipped: list[SkippedClip] = []
        for position, group in groupby(range(len(clips)), key=lambda row: clips[row] // self.views):
            rows = list(group)
            filled = pixels[rows[0] : rows[-1] + 1]
            found = locate_sample(self.index, seed=self.seed, position=position)
            shown += [found] * len(rows)
            try:
                skip_quarantined(found.key, quarantined or {}, reading)
                self._fill(filled, clips[rows[0]], found)
            except BadVideo as error:
                map_pixels(Tensor.zero_, filled)
                weight_B[rows[0] : rows[-1] + 1] = 0.0
                skipped += [SkippedClip(key=found.key, reason=str(error))] * len(rows)
            # Before the next sample is read, so that what goes wrong here is put down to this one.
            annotations += self._annotations(filled, clips[rows[0] : rows[-1] + 1])
        return ClipBatch(
            pixels=pixels,
            clip_index_B=torch.tensor(clips, dtype=torch.int64),
            label_B=torch.tensor([found.sample.label for found in shown], dtype=torch.int64),
            weight_B=weight_B,
            tokens=_stacked(annotations),
            keys=tuple(found.key for found in shown),
            skipped=tuple(skipped),
        )

    def _annotations(self, pixels: Pixels, clips: range) -> list[dict[str, Tensor]]:
        if self.annotate is None:
            return []
        lumas = to_luma(pixels) if self.needs_luma else [None] * len(clips)
        return [self.annotate(luma_THW, clip) for luma_THW, clip in zip(lumas, clips, strict=True)]

    def _fill(self, pixels: Pixels, first_clip: int, found: LocatedSample) -> None:
        """Decode a sample once and cut its views, which stand side by side from `first_clip` on."""
        sample = found.sample
        with error_context(sample):
            draw = generator(self.seed, purpose="start", sample=first_clip // self.views)
            timestamps_s = training_timestamps_s(sample, self.clip, draw)
            draws = [
                generator(self.seed, purpose="augment", sample=first_clip + view)
                for view in range(len(pixels))
            ]

            def choose(height: int, width: int) -> list[View]:
                return [training_view(height, width, self.augment, draw) for draw in draws]

            pictures = decode_sample(found.index, sample, timestamps_s, decoder=self.decoder)
            if not self.augment.changes_colour:
                crop_views(pictures, choose, pixels)
                return
            cut = empty_clips(len(pixels), self.clip, decoder=self.decoder)
            crop_views(pictures, choose, cut)
            assert isinstance(pixels, Tensor)
            for out_CTHW, clip_CTHW, draw in zip(pixels, to_rgb(cut), draws, strict=True):
                changed_TCHW = colour_augment(clip_CTHW.transpose(0, 1), self.augment, draw)
                out_CTHW.copy_(changed_TCHW.transpose(0, 1))


def _stacked(annotations: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The index lists of all clips, by name; none without annotations."""
    names = annotations[0] if annotations else ()
    return {name: torch.stack([row[name] for row in annotations]) for name in names}
