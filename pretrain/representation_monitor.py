"""Representation monitor: collapse measures and a nearest-neighbour probe during pretraining.

The loss of a masked autoencoder does not show collapse. The first process encodes a fixed set of clips
periodically: centre crops, all tokens, no noise, no masking. The training is not affected.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.stream.loader import ClipConfig, EvaluationItem, evaluation_loader
from kinemae.data_tools.stream.mixture import SeveralSets
from kinemae.data_tools.stream.streamed_clips import StreamedClips
from kinemae.data_tools.stream.yuv_to_rgb import on_device, to_luma
from kinemae.pretrain.callbacks import Schedule, eval_mode
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.representation import (
    LEAST,
    deviation,
    effective_rank,
    knn_accuracy,
    mean_cosine,
    signs_of_collapse,
)
from kinemae.pretrain.runtime.metrics import MetricsWriter

# Bounds the memory: only some tokens of a clip are kept.
_TOKENS_OF_A_CLIP = 64
_CLIPS_OF_A_VIDEO = 2


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Measurements of the representation; the metrics are named `monitor/...`.

    Attributes:
        every_steps: steps between measurements; the last step is measured too; 0 for none.
        clips: number of training videos.
        knn_train, knn_validation: folders of labelled shards. With both, the accuracy of a nearest-neighbour
            classifier is measured too.
        knn_videos: largest number of videos of each folder, evenly spaced.
        neighbours: number of neighbours that vote.
    """

    every_steps: int = 1000
    clips: int = 32
    knn_train: str | None = None
    knn_validation: str | None = None
    knn_videos: int = 256
    neighbours: int = 10

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "monitor.every_steps", "be 0 (never) or more", self.every_steps)
        require(self.clips >= 2, "monitor.clips", "be at least 2", self.clips)
        require(self.knn_videos >= 2, "monitor.knn_videos", "be at least 2", self.knn_videos)
        require(self.neighbours >= 1, "monitor.neighbours", "be at least 1", self.neighbours)
        if (self.knn_train is None) != (self.knn_validation is None):
            lacking = "knn_train" if self.knn_train is None else "knn_validation"
            raise ValueError(
                f"monitor.{lacking}: expected a folder, got null; fix: set monitor.knn_train and "
                "monitor.knn_validation, or neither"
            )


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Some videos of a data set, read again each time to save memory."""

    index: ShardIndex
    positions: Sequence[int]
    clip: ClipConfig
    clips_of_each: int = 1

    def __iter__(self) -> Iterator[EvaluationItem]:
        """The readable videos, one at a time."""
        items = evaluation_loader(
            self.index,
            clip=self.clip,
            temporal_clips=self.clips_of_each,
            spatial_crops=1,
            rank=0,
            world=1,
            workers=0,
            samples=self.positions,
        )
        return (item for item in items if item.skipped is None)


@dataclass(frozen=True, kw_only=True)
class FirstVideos:
    """A clip of each of the first videos of a stream of tars, read again each time."""

    clips: StreamedClips
    count: int

    def __iter__(self) -> Iterator[EvaluationItem]:
        """The readable videos, one at a time."""
        for number in range(self.count):
            batch = self.clips.batch(range(number, number + 1))
            if not batch.skipped:
                yield EvaluationItem(
                    pixels=batch.pixels,
                    time_VT=batch.time_BT,
                    label=int(batch.label_B),
                    key=batch.keys[0],
                    position=number,
                )


@dataclass(frozen=True, kw_only=True)
class KnnProbe:
    """Labelled training and validation videos of a nearest-neighbour classifier."""

    train: Videos
    validation: Videos
    neighbours: int


@dataclass(kw_only=True)
class RepresentationMonitor:
    """Callback that computes the measures.

    Attributes:
        videos: of one data set, of each set of a mixture, or of a stream of tars.
        pruning: determines the fraction of tokens to keep.
        probe: None for no probe.
    """

    model: MaskedAutoencoder
    videos: Sequence[Iterable[EvaluationItem]]
    pruning: Pruning
    schedule: Schedule
    probe: KnnProbe | None = None

    def is_due(self, first_step: int, last_step: int) -> bool:
        """See `runtime.loop.Callback`."""
        return self.schedule.is_due(first_step, last_step)

    def after_step(self, step: int, writer: MetricsWriter) -> None:
        """See `runtime.loop.Callback`."""
        with eval_mode(self.model):
            statistics, signs = self._feature_statistics()
            state = self.model.target.state_metrics(self.model.encoder)
            values = {**statistics, **{name: value.item() for name, value in state.items()}}
            if self.probe is not None:
                values["knn_accuracy"] = self._knn_accuracy(self.probe)
        writer.add({f"monitor/{name}": value for name, value in values.items()})
        if signs:
            log.warning(
                "step %d: the representation collapses: %s; fix: start again with a lower optim.lr, a higher "
                "target.args.sigreg_weight (views) or target.args.decay "
                "(features), or with target.name=weighted and pixels as one part",
                step,
                "; ".join(
                    f"{name}: expected at least {100 * LEAST[name]:g} %, got {100 * fraction:.2g} %"
                    for name, fraction in signs.items()
                ),
            )

    def _feature_statistics(self) -> tuple[dict[str, float], dict[str, float]]:
        """Measures without labels, and the signs of collapse; empty if fewer than two clips are readable."""
        pooled, some_tokens, kept = [], [], []
        for videos in self.videos:
            for item in videos:
                x_BND = self._encode(item)
                pooled.append(x_BND.mean(dim=1))
                step = -(-x_BND.shape[1] // _TOKENS_OF_A_CLIP)
                some_tokens.append(x_BND[:, ::step].flatten(0, 1))
                kept.append(self._kept_fraction(item))
        if len(pooled) < 2:
            return {}, {}
        pooled_RD, token_RD = torch.cat(pooled).cpu(), torch.cat(some_tokens).cpu()
        signs = signs_of_collapse(pooled_RD, token_RD)
        return {
            "feature_std": deviation(pooled_RD),
            "token_std": deviation(token_RD),
            "effective_rank": effective_rank(pooled_RD),
            "token_rank": effective_rank(token_RD),
            "cosine": mean_cosine(pooled_RD),
            "kept_tokens": sum(kept) / len(kept),
            "collapsed": float(bool(signs)),
        }, signs

    def _knn_accuracy(self, probe: KnnProbe) -> float:
        train_RD, train_label_R = self._labelled_features(probe.train)
        test_VD, test_label_V = self._labelled_features(probe.validation)
        if not len(train_RD) or not len(test_VD):
            return float("nan")
        return knn_accuracy(train_RD, train_label_R, test_VD, test_label_V, neighbours=probe.neighbours)

    def _labelled_features(self, videos: Videos) -> tuple[Tensor, Tensor]:
        """Features and labels of videos: mean and deviation over tokens, averaged over a video's clips."""
        features, labels = [], []
        for item in videos:
            x_BND = self._encode(item)
            both_B2D = torch.cat([x_BND.mean(dim=1), x_BND.std(dim=1, correction=0)], dim=1)
            features.append(both_B2D.mean(dim=0).cpu())
            labels.append(item.label)
        width = 2 * self.model.encoder.shape.width
        return torch.stack(features) if features else torch.empty(0, width), torch.tensor(labels)

    def _encode(self, item: EvaluationItem) -> Tensor:
        """Encode all tokens of a video's clips, one clip at a time, as x_BND."""
        encoder = self.model.encoder
        return torch.cat([encoder(patches_1NP, None) for patches_1NP in self._patches(item).split(1)]).float()

    def _patches(self, item: EvaluationItem) -> Tensor:
        device = next(self.model.parameters()).device
        clip_BCTHW = on_device(item.pixels, device)
        return self.model.encoder.patches(clip_BCTHW, mean=self.model.mean, std=self.model.std)

    def _kept_fraction(self, item: EvaluationItem) -> float:
        """The fraction of a full grid's tokens to keep; from the encoder's scorer if pruning is learned."""
        encoder = self.model.encoder
        if not self.pruning.is_learned:
            scores = self.pruning.score_tokens(to_luma(item.pixels), encoder.shape.patch)
            return scores.is_kept_BN.float().mean().item()
        score_BN = encoder.scorer(encoder.embed(self._patches(item), None))
        return (score_BN > encoder.scorer.threshold).float().mean().item()


def spread_videos(source: ShardIndex | SeveralSets, count: int, *, clip: ClipConfig) -> tuple[Videos, ...]:
    """Select `count` training videos, evenly over each set and over several sets."""
    indexes = list(source.sets.values()) if isinstance(source, SeveralSets) else [source]
    counts = [count // len(indexes) + (i < count % len(indexes)) for i in range(len(indexes))]
    return tuple(
        Videos(index=index, positions=_spread(range(len(index)), count_of_set), clip=clip)
        for index, count_of_set in zip(indexes, counts, strict=True)
    )


def open_probe(
    config: MonitorConfig,
    clip: ClipConfig,
    cache: Cache | None,
    *,
    check_shards: bool = True,
    outage_s: float | None = None,
) -> KnnProbe | None:
    """Open the labelled videos of the probe; None if the config names none.

    Args:
        check_shards, outage_s: see `open_index`.

    Raises:
        DataError: a folder is no data set or has no labels, the first has only one class, or the two have
            different classes.
    """
    if config.knn_train is None or config.knn_validation is None:
        return None
    train, validation = (
        _labelled_videos(
            f"monitor.{key}={folder}",
            open_index(folder, cache=cache, check_shards=check_shards, outage_s=outage_s),
            config.knn_videos,
            clip=clip,
        )
        for key, folder in (("knn_train", config.knn_train), ("knn_validation", config.knn_validation))
    )
    label_R = train.index.column("label")[list(train.positions)]
    if len(set(label_R.tolist())) < 2:
        raise DataError(
            f"monitor.knn_train={config.knn_train}: expected at least two classes, got only "
            f"{train.index.classes[label_R[0]]!r} in the {len(label_R)} selected videos; fix: add videos, or "
            "raise monitor.knn_videos"
        )
    if train.index.classes != validation.index.classes:
        raise DataError(
            f"monitor.knn_validation={config.knn_validation}: expected the classes of monitor.knn_train="
            f"{config.knn_train}, got others; fix: shard both parts with one command"
        )
    return KnnProbe(train=train, validation=validation, neighbours=config.neighbours)


def _labelled_videos(named: str, index: ShardIndex, most: int, *, clip: ClipConfig) -> Videos:
    has_label_R = (index.column("label") >= 0) & (index.column("label") < len(index.classes))
    positions = has_label_R.nonzero()[0].tolist()
    if not positions:
        raise DataError(
            f"{named}: expected labelled videos, got none; fix: shard a source with one folder per class, or "
            "a csv of path,label"
        )
    return Videos(index=index, positions=_spread(positions, most), clip=clip, clips_of_each=_CLIPS_OF_A_VIDEO)


def _spread(positions: Sequence[int], most: int) -> list[int]:
    """At most `most` positions, evenly spaced."""
    count = min(most, len(positions))
    return [positions[i * len(positions) // count] for i in range(count)]
