"""Facts about a labelled data set on which the rules of a plan depend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from kinemae.data_tools.index import Sample, ShardIndex, open_index
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.report.video_stats import compute_stats
from kinemae.pretrain.exported_model import EncoderDescription

DECODED_VIDEOS = 32
MEASURED_SAMPLES = 2000  # whose lengths are compared
STATIC = 0.5  # grey levels; as `static_threshold` of `kinemae data report`


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Labelled videos per class.

    Attributes:
        names: the classes.
        videos: their numbers of training videos.
        unlabelled: videos without a label.
    """

    names: tuple[str, ...]
    videos: tuple[int, ...]
    unlabelled: int = 0

    @property
    def labelled(self) -> int:
        """Number of labelled videos."""
        return sum(self.videos)

    @property
    def median(self) -> float:
        """Videos of the median class."""
        return float(np.median(self.videos))

    @property
    def imbalance(self) -> float:
        """Videos of the largest class divided by those of the smallest; infinite for an empty class."""
        return max(self.videos) / min(self.videos) if min(self.videos) else float("inf")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A labelled data set, and the encoder that will be adapted to it.

    Attributes:
        videos: number of training videos.
        classes: of a classification; None for other tasks.
        groups: number of groups; 0 if the index has none.
        frames, seconds: length of the median video.
        fps: frame rate of the median video.
        aspect: width divided by height of the median video.
        motion: median of the decoded videos' motion, in grey levels; None if none could be decoded.
        static: fraction of the decoded videos that are static.
        validation: number of validation videos; None if there is no validation set.
        description: the encoder with its clips.
        has_weights: true for a pretrained encoder.
        output: see `Task.output`.
        chunks: parts of a clip, each with the frames of `description`.
        keeps_tokens: whether the encoder neither prunes nor merges tokens.
    """

    videos: int
    classes: ClassCounts | None
    groups: int
    frames: float
    seconds: float
    fps: float
    aspect: float
    motion: float | None
    static: float
    validation: int | None
    description: EncoderDescription
    has_weights: bool
    output: str = "clip"
    chunks: int = 1
    keeps_tokens: bool = True

    @property
    def labelled(self) -> int:
        """Number of videos that can be trained on."""
        return self.videos if self.classes is None else self.classes.labelled

    @property
    def clip_frames(self) -> float:
        """Length of the encoder's clip in frames of the median video; 0 if it takes the whole video."""
        if self.description.sampling == "uniform":
            return 0.0
        between = float(self.description.stride)
        if self.description.fps is not None:
            between = max(1.0, self.fps / self.description.fps)
        return (self.description.frames * self.chunks - 1) * between + 1

    def floors(self) -> dict[str, float]:
        """Scores without any learning, as fractions: chance, and the largest class."""
        if self.classes is None:
            return {}
        largest = max(self.classes.videos) / max(1, self.classes.labelled)
        return {"chance": 1 / len(self.classes.names), "largest_class": largest}

    def interval(self, videos: int) -> float:
        """Half the width of the 95 % interval of an accuracy of 0.5 on this many videos."""
        interval = binomtest(videos // 2, videos).proportion_ci(0.95, method="wilson")
        return float(interval.high - interval.low) / 2

    def summary(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        classes = self.classes
        return {
            "videos": self.videos,
            "labelled": self.labelled,
            "unlabelled": 0 if classes is None else classes.unlabelled,
            "classes": None if classes is None else len(classes.names),
            "videos_per_class": None
            if classes is None
            else {"smallest": min(classes.videos), "median": classes.median, "largest": max(classes.videos)},
            "groups": self.groups,
            "median_frames": self.frames,
            "median_seconds": round(self.seconds, 3),
            "median_fps": round(self.fps, 3),
            "clip_frames": self.clip_frames,
            "motion": self.motion,
            "static_fraction": self.static,
            "validation_videos": self.validation,
            "floors": self.floors(),
        }


def gather_facts(train: ShardIndex, *, seed: int, **others: Any) -> Facts:
    """Read the index of at most `MEASURED_SAMPLES` samples and decode `DECODED_VIDEOS` videos.

    Args:
        others: the facts that do not come from the videos.
    """
    groups = set(train.column("group").tolist()) - {""}
    motions = _motions(train, seed)
    samples = [train.sample(position) for position in _drawn(len(train), MEASURED_SAMPLES, seed)]
    seconds_R = np.array([_seconds(sample) for sample in samples])
    fps_R = np.array([sample.source_fps for sample in samples])
    return Facts(
        videos=len(train),
        groups=len(groups),
        frames=float(np.median(np.rint(seconds_R * fps_R))),
        seconds=float(np.median(seconds_R)),
        fps=float(np.median(fps_R)),
        aspect=float(np.median([sample.width / max(sample.height, 1) for sample in samples])),
        motion=round(float(np.median(motions)), 3) if motions else None,
        static=float(np.mean([motion < STATIC for motion in motions])) if motions else 0.0,
        **others,
    )


def _seconds(sample: Sample) -> float:
    """Length of a sample: its time window, or the whole video."""
    begin, end = sample.window_s or (0.0, sample.duration_s)
    return end - begin


def _drawn(count: int, most: int, seed: int) -> list[int]:
    """At most `most` of the positions up to `count`, as a function of the seed."""
    order: list[int] = torch.randperm(count, generator=generator(seed, purpose="plan"))[:most].tolist()
    return order


def _motions(train: ShardIndex, seed: int) -> Sequence[float]:
    """Motion of a few readable videos, see `VideoStats`."""
    videos = open_index(train.folder)  # `train` may be a view of it, with segments as samples
    found = [
        compute_stats((train.folder, position)) for position in _drawn(len(videos), DECODED_VIDEOS, seed)
    ]
    return [stats.motion for stats in found if not stats.reason]
