"""Training clips; each clip is a function of the seed and its position in the run."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.command import log
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.orders.base import Order, OrderFacts, SampleOrder, SourceOrder
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.batch import ClipBatch, SkippedClip
from kinemae.data_tools.stream.colour import colour_augment
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.frame_sampling import ClipConfig, check_stride, training_timestamps_s
from kinemae.data_tools.stream.mixture import (
    FoundSample,
    LocatedSample,
    Mixture,
    Source,
    data_sets,
    locate_sample,
)
from kinemae.data_tools.stream.read_ahead import Request
from kinemae.data_tools.stream.setting_names import CONFIG_KEYS, SettingNames
from kinemae.data_tools.stream.video_reader import (
    decode_sample,
    decode_video,
    described,
    error_context,
    read_requests,
    read_video,
    skip_quarantined,
)
from kinemae.data_tools.stream.views import View, crop_views, training_view
from kinemae.data_tools.stream.yuv_planes import YuvFrame
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, YuvClips, map_pixels, to_luma, to_rgb

# Computes index lists of a clip from its augmented luma_THW (see `yuv_to_rgb.to_luma`) and its position in
# the run. It is pickled for the loader workers.
Annotate = Callable[[Tensor | None, int], dict[str, Tensor]]
Frames = Iterator[tuple[YuvFrame, list[int]]]
Found = TypeVar("Found", bound=FoundSample)


class _ReadClip(NamedTuple):
    """A clip whose pixels are in the batch; black if it was skipped."""

    found: FoundSample
    timestamps_s: list[float]
    is_flipped: bool
    skipped: SkippedClip | None = None


class RunClips(ABC, Generic[Found]):
    """The clips of a run.

    Args:
        seed: the run's seed.
        views: clips cut from one decoded video; they share its frames and differ in crop and flip.
        annotate: called for each clip; a skipped clip is all zeros.
        needs_luma: whether `annotate` gets the luma; otherwise it gets None.
        may_flip_R: whether each sample of the index may be flipped, for a single data set; None for all.

    Raises:
        ValueError: no views.
    """

    def __init__(  # noqa: PLR0913 - all by name
        self,
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
        self.clip = clip
        self.augment = augment
        self.seed = seed
        self.views = views
        self.annotate = annotate
        self.needs_luma = needs_luma
        self.may_flip_R = may_flip_R
        self._located: dict[int, Found] = {}  # of `upcoming`

    @abstractmethod
    def locate(self, position: int) -> Found:
        """The sample at a position of the run; positions count videos."""

    @abstractmethod
    def decode(self, found: Found, timestamps_s: list[float]) -> Frames:
        """Decode frames of a sample, see `yuv_frames_at`."""

    @abstractmethod
    def read(self, found: Found) -> bytes:
        """Read the bytes of a sample."""

    def keys(self, clips: range) -> list[str]:
        """The sample key of each clip of the run; none if they are known only after reading."""
        return []

    def upcoming(self, clips: range) -> list[Request]:
        """The reads of consecutive clips, for a read-ahead; `batch` is called for the same clips later."""
        return []

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
        read: list[_ReadClip] = []
        annotations: list[dict[str, Tensor]] = []
        for position, group in groupby(range(len(clips)), key=lambda row: clips[row] // self.views):
            rows = list(group)
            own = slice(rows[0], rows[-1] + 1)
            found = self._located.pop(position, None) or self.locate(position)
            read += self._read_views(pixels[own], clips[rows[0]], found, quarantined or {}, on_sample)
            # Before the next sample is read, so that an error in `annotate` is reported for this sample.
            annotations += self._annotations(pixels[own], clips[own])
        names = annotations[0] if annotations else ()
        return ClipBatch(
            pixels=pixels,
            clip_index_B=torch.tensor(clips, dtype=torch.int64),
            label_B=torch.tensor([each.found.sample.label for each in read], dtype=torch.int64),
            weight_B=torch.tensor([float(each.skipped is None) for each in read]),
            tokens={name: torch.stack([row[name] for row in annotations]) for name in names},
            sample_B=torch.tensor([each.found.position for each in read], dtype=torch.int64),
            time_BT=torch.tensor([each.timestamps_s for each in read], dtype=torch.float64),
            flipped_B=torch.tensor([each.is_flipped for each in read], dtype=torch.bool),
            keys=tuple(each.found.key for each in read),
            skipped=tuple(each.skipped for each in read if each.skipped is not None),
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

    def _read_views(
        self,
        pixels: Pixels,
        first_clip: int,
        found: Found,
        quarantined: Mapping[str, str],
        on_sample: Callable[[str], None],
    ) -> list[_ReadClip]:
        """Read all views of a sample, the clips from `first_clip` on; black if it cannot be read."""
        try:
            skip_quarantined(found.key, quarantined, on_sample)
            timestamps_s, views = self._decode_views(pixels, first_clip, found)
            return [_ReadClip(found, timestamps_s, view.flip) for view in views]
        except BadVideo as error:
            map_pixels(Tensor.zero_, pixels)
            skipped = SkippedClip(key=found.key, reason=str(error))
            return [_ReadClip(found, [math.nan] * self.clip.frames, False, skipped)] * len(pixels)

    def _decode_views(self, pixels: Pixels, first_clip: int, found: Found) -> tuple[list[float], list[View]]:
        """Decode a sample once and cut its views; return its timestamps and the views.

        The number of frames of a video that was not read before comes from its container. If the video ends
        earlier, its frames are counted by decoding.
        """
        if found.sample.is_read:
            return self._decode_read(pixels, first_clip, found)
        video = self.read(found)
        stated = described(found.sample, video, is_counted=False)
        try:
            return self._decode_read(pixels, first_clip, replace(found, sample=stated, video=video))
        except BadVideo:
            counted = described(found.sample, video, is_counted=True)
            if counted == stated:
                raise
            return self._decode_read(pixels, first_clip, replace(found, sample=counted, video=video))

    def _decode_read(self, pixels: Pixels, first_clip: int, found: Found) -> tuple[list[float], list[View]]:
        """Decode a sample whose number of frames is known."""
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

            frames = self.decode(found, timestamps_s)
            if isinstance(pixels, YuvClips):
                crop_views(frames, choose, pixels)
                return timestamps_s, views
            planes = YuvClips.empty(len(pixels), self.clip.frames, self.clip.size)
            crop_views(frames, choose, planes)
            for out_CTHW, clip_CTHW, draw in zip(pixels, to_rgb(planes), draws, strict=True):
                changed_TCHW = colour_augment(clip_CTHW.transpose(0, 1), self.augment, draw)
                out_CTHW.copy_(changed_TCHW.transpose(0, 1))
            return timestamps_s, views


class TrainingClips(RunClips[LocatedSample]):
    """The clips of a run over data sets, readable at any position.

    Args:
        index: the data set, or several; each epoch of a data set shows its videos in a new order.
            `BalancedClasses` shows the classes of a data set more evenly.
        order: the order of the samples; None for random order.
        videos_per_step: of all processes, on which some orders depend.
        settings: those of `RunClips`.

    Raises:
        ValueError: invalid arguments, a stride below the distance of the stored frames, or an order that does
            not apply.
    """

    def __init__(
        self, index: Source, *, order: Order | None = None, videos_per_step: int = 1, **settings: Any
    ):
        super().__init__(**settings)
        for each in data_sets(index):
            check_stride(each, self.clip)
        self.index = index
        self.order = sample_order(order, index, videos_per_step)

    def locate(self, position: int) -> LocatedSample:
        """See `RunClips.locate`."""
        return locate_sample(self.index, seed=self.seed, position=position, order=self.order)

    def decode(self, found: LocatedSample, timestamps_s: list[float]) -> Frames:
        """See `RunClips.decode`."""
        if found.video is not None:
            return decode_video(found.video, found.sample, timestamps_s)
        return decode_sample(found.index, found.sample, timestamps_s, found.block)

    def read(self, found: LocatedSample) -> bytes:
        """See `RunClips.read`."""
        return read_video(found.index, found.sample, found.block)

    def keys(self, clips: range) -> list[str]:
        """See `RunClips.keys`."""
        positions = [clip // self.views for clip in clips]
        key_of = {position: self.locate(position).key for position in set(positions)}
        return [key_of[position] for position in positions]

    def upcoming(self, clips: range) -> list[Request]:
        """See `RunClips.upcoming`."""
        positions = dict.fromkeys(clip // self.views for clip in clips)
        found = {position: self.locate(position) for position in positions}
        self._located |= found
        return read_requests((each.index, each.sample, each.block) for each in found.values())


def sample_order(
    order: Order | None, source: Source, videos_per_step: int, names: SettingNames = CONFIG_KEYS
) -> SourceOrder:
    """Adapt an order to a data set or to each one of a mixture; None for random order.

    Args:
        names: of the settings, for errors.

    Raises:
        ValueError: the order cannot be used with this data.
    """
    if order is None or not order.is_local:
        return None
    if isinstance(source, Mixture) and source.weight is None:
        indexes = [*source.sets.values()]
        plain = [_order_of(order, index, 1, names) for index in indexes]
        windows = [block.window_bytes for each in plain if (block := each.block(0)) is not None]
        found = [
            replace(each, other_window_bytes=sum(windows) - own)
            for each, own in zip(plain, windows, strict=True)
        ]
        _warn_of_small_cache(indexes, windows)
        return tuple(found)
    is_one = isinstance(source, ShardIndex)
    require(is_one, f"{names.order}.name", f"be random with {names.unordered}", "blocks")
    assert isinstance(source, ShardIndex)
    one = _order_of(order, source, videos_per_step, names)
    block = one.block(0)
    _warn_of_small_cache([source], [0 if block is None else block.window_bytes])
    return one


def _order_of(order: Order, index: ShardIndex, videos_per_step: int, names: SettingNames) -> SampleOrder:
    shards = index.shards
    facts = OrderFacts(
        samples=len(index),
        bytes_per_sample=shards.bytes / max(int(shards.column("samples").sum()), 1),
        videos_per_step=videos_per_step,
    )
    order.check(facts, names)
    return SampleOrder(order=order, facts=facts)


def _warn_of_small_cache(indexes: Sequence[ShardIndex], windows: Sequence[int]) -> None:
    """Log that blocks are downloaded more than once, if half of the cache cannot hold the windows."""
    cache = indexes[0].cache
    in_use = sum(min(window, index.shards.bytes) for index, window in zip(indexes, windows, strict=True))
    if cache is not None and in_use > cache.size // 2:
        log.warning(
            "data.order: the blocks of a window have %.3g GB, and half of data.cache_gb=%.3g holds fewer: if "
            "one node reads them all, it downloads blocks more than once; fix: raise data.cache_gb to %.3g, "
            "or lower data.order.args.window or block_mb",
            *(in_use / 1e9, cache.size / 1e9, 2 * in_use / 1e9),
        )
