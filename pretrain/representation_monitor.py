"""The health of the representation while it is learned: does it collapse, and does it tell classes apart?

The loss of a masked autoencoder says little of that. So every now and then the first process looks at a fixed
set of clips: centre crops, all tokens, no noise, no masking. Nothing of it touches the training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.stream.loader import ClipConfig, EvaluationItem, evaluation_loader
from kinemae.data_tools.stream.mixture import Mixture
from kinemae.data_tools.stream.yuv_to_rgb import on_device, to_luma
from kinemae.pretrain.callbacks import Schedule, at_rest
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.tokens import normalise, patchify
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.representation import deviation, effective_rank, knn_accuracy, mean_cosine
from kinemae.pretrain.runtime.metrics import MetricsWriter

# Bounds the memory: a clip's tokens are kept in part, and few clips are encoded at once.
_TOKENS_OF_A_CLIP = 64
_CLIPS_OF_A_VIDEO = 2


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Measures of the representation, among the metrics as `monitor/...`.

    Attributes:
        every_steps: how often they are taken, besides the last step; 0 for never.
        clips: how many videos of the training data they are taken on.
        knn_train, knn_validation: folders of labelled shards; given both, the share of the second's videos
            whose class their nearest neighbours in the first tell is measured too.
        knn_videos: the most videos of each that are used, spread over the folder.
        neighbours: how many neighbours vote.
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
                f"monitor.{lacking} must be set where the other of the two is: set both, or neither"
            )


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Some videos of a data set, read anew each time, so that they hold no memory."""

    index: ShardIndex
    positions: Sequence[int]
    clip: ClipConfig
    clips_of_each: int = 1

    def __iter__(self) -> Iterator[EvaluationItem]:
        """Those that can be read, one at a time."""
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
class Probe:
    """Labelled videos, and others to guess from them."""

    train: Videos
    validation: Videos
    neighbours: int


@dataclass(kw_only=True)
class HealthWatch:
    """Takes the measures at the reports that the schedule names.

    Attributes:
        videos: of one data set or several of a mixture.
        pruning: says what share of the tokens is worth keeping.
        probe: None for no guessing of classes.
    """

    model: MaskedAutoencoder
    videos: Sequence[Videos]
    pruning: Pruning
    schedule: Schedule
    probe: Probe | None = None

    def is_due(self, first_step: int, last_step: int) -> bool:
        """See `runtime.loop.Watcher`."""
        return self.schedule.is_due(first_step, last_step)

    def after_step(self, step: int, writer: MetricsWriter) -> None:
        """See `runtime.loop.Watcher`."""
        with at_rest(self.model):
            watched = self.model.target.state_metrics(self.model.encoder)
            values = {**self._unlabelled(), **{name: value.item() for name, value in watched.items()}}
            if self.probe is not None:
                values["knn_accuracy"] = self._guess(self.probe)
        writer.note({f"monitor/{name}": value for name, value in values.items()})

    def _unlabelled(self) -> dict[str, float]:
        """What needs no labels; nothing where fewer than two of the clips can be read."""
        pooled, some_tokens, kept = [], [], []
        for videos in self.videos:
            for item in videos:
                x_BND = self._encode(item)
                pooled.append(x_BND.mean(dim=1))
                step = -(-x_BND.shape[1] // _TOKENS_OF_A_CLIP)
                some_tokens.append(x_BND[:, ::step].flatten(0, 1))
                kept.append(self._kept_share(item))
        if len(pooled) < 2:
            return {}
        pooled_RD, token_RD = torch.cat(pooled).cpu(), torch.cat(some_tokens).cpu()
        return {
            "feature_std": deviation(pooled_RD),
            "token_std": deviation(token_RD),
            "effective_rank": effective_rank(pooled_RD),
            "token_rank": effective_rank(token_RD),
            "cosine": mean_cosine(pooled_RD),
            "kept_tokens": sum(kept) / len(kept),
        }

    def _guess(self, probe: Probe) -> float:
        train_RD, train_label_R = self._labelled(probe.train)
        test_VD, test_label_V = self._labelled(probe.validation)
        if not len(train_RD) or not len(test_VD):
            return float("nan")
        return knn_accuracy(train_RD, train_label_R, test_VD, test_label_V, neighbours=probe.neighbours)

    def _labelled(self, videos: Videos) -> tuple[Tensor, Tensor]:
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
        """All tokens of a video's clips, one clip at a time, x_BND."""
        encoder = self.model.encoder
        return torch.cat([encoder(patches_1NP, None) for patches_1NP in self._patches(item).split(1)]).float()

    def _patches(self, item: EvaluationItem) -> Tensor:
        device = next(self.model.parameters()).device
        patches_BNP = patchify(on_device(item.pixels, device), self.model.encoder.shape.patch)
        return normalise(patches_BNP, self.model.mean, self.model.std)

    def _kept_share(self, item: EvaluationItem) -> float:
        """The share of a full grid's tokens worth keeping; by the encoder's scores where it learns them."""
        encoder = self.model.encoder
        if not self.pruning.is_learned:
            scores = self.pruning.score_tokens(to_luma(item.pixels), encoder.shape.patch)
            return scores.is_kept_BN.float().mean().item()
        score_BN = encoder.scorer(encoder.embed(self._patches(item), None))
        return (score_BN > encoder.scorer.threshold).float().mean().item()


def spread_videos(source: ShardIndex | Mixture, count: int, *, clip: ClipConfig) -> tuple[Videos, ...]:
    """So many videos of the training data, evenly over each set and over the sets of a mixture."""
    indexes = list(source.sets.values()) if isinstance(source, Mixture) else [source]
    shares = [count // len(indexes) + (i < count % len(indexes)) for i in range(len(indexes))]
    return tuple(
        Videos(index=index, positions=_spread(range(len(index)), share), clip=clip)
        for index, share in zip(indexes, shares, strict=True)
    )


def open_probe(
    config: MonitorConfig,
    *,
    clip: ClipConfig,
    cache: Cache | None,
    outage_s: float | None = None,
) -> Probe | None:
    """The labelled videos to guess from and to guess; None where the config names none.

    Args:
        outage_s: see `open_index`.

    Raises:
        DataError: a folder is no data set or has no labels, the first has one class alone, or the two have
            different classes.
    """
    if config.knn_train is None or config.knn_validation is None:
        return None
    train, validation = (
        _labelled_videos(
            f"monitor.{key}={folder}",
            open_index(folder, cache=cache, outage_s=outage_s),
            config.knn_videos,
            clip=clip,
        )
        for key, folder in (("knn_train", config.knn_train), ("knn_validation", config.knn_validation))
    )
    label_R = train.index.column("label")[list(train.positions)]
    if len(set(label_R.tolist())) < 2:
        raise DataError(
            f"monitor.knn_train={config.knn_train}: the {len(label_R)} videos that are used have one class "
            f"alone, {train.index.classes[label_R[0]]!r}, so there is nothing to guess: give more videos, "
            "or raise monitor.knn_videos"
        )
    if train.index.classes != validation.index.classes:
        raise DataError(
            f"monitor.knn_validation={config.knn_validation} has other classes than monitor.knn_train="
            f"{config.knn_train}: shard both parts with one command"
        )
    return Probe(train=train, validation=validation, neighbours=config.neighbours)


def _labelled_videos(named: str, index: ShardIndex, most: int, *, clip: ClipConfig) -> Videos:
    has_label_R = (index.column("label") >= 0) & (index.column("label") < len(index.classes))
    positions = has_label_R.nonzero()[0].tolist()
    if not positions:
        raise DataError(
            f"{named} has no labels: shard a source with one folder a class, or a csv of path,label"
        )
    return Videos(
        index=index,
        positions=_spread(positions, most),
        clip=clip,
        clips_of_each=_CLIPS_OF_A_VIDEO,
    )


def _spread(positions: Sequence[int], most: int) -> list[int]:
    """At most so many of them, at even distances."""
    count = min(most, len(positions))
    return [positions[i * len(positions) // count] for i in range(count)]
