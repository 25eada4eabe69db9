"""Videos that a report decodes: a seeded sample, their statistics, and near duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from kinemae.data_tools.config import require
from kinemae.data_tools.curation.duplicates import gather_hashes
from kinemae.data_tools.curation.frame_stats import HASH_BITS
from kinemae.data_tools.curation.near_duplicates import distances, hash_words, near_duplicate_groups
from kinemae.data_tools.index import NO_LABEL, Sample
from kinemae.data_tools.pool import TIMEOUT_S, Engine, check_engine, imap_unordered
from kinemae.data_tools.progress import progress
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.report.collection import Collection
from kinemae.data_tools.report.figures import short, size_text, time_text
from kinemae.data_tools.report.render import data_uri
from kinemae.data_tools.report.video_stats import (
    STRIP_FRAMES,
    VideoStats,
    compute_stats,
    failed_stats,
    timestamps_s,
)
from kinemae.data_tools.storage.location import Location

MAX_GROUPS = 1000  # of near duplicates, for which cards are made


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of a report.

    Attributes:
        seed: of the sample.
        samples: number of videos decoded for images, motion and near duplicates; all else covers every video.
        pictures: number of videos on the contact sheet.
        static_threshold: a video is static if its motion is lower, in grey levels.
        blank_threshold: a video is blank if the standard deviation of its grey levels is lower.
        near_duplicate_bits: maximum Hamming distance of the 256-bit hashes of near duplicates.
        workers: processes that decode; 0 means one per core.
        timeout_s: limit for a video without progress.
        engine: "ray" decodes on a Ray cluster.
    """

    seed: int = 0
    samples: int = 2000
    pictures: int = 24
    static_threshold: float = 0.5
    blank_threshold: float = 3.0
    near_duplicate_bits: int = 16
    workers: int = 0
    timeout_s: float = TIMEOUT_S
    engine: Engine = "local"

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", "be at least 1", self.samples)
        require(self.pictures >= 0, "pictures", "be 0 or more", self.pictures)
        require(self.static_threshold >= 0, "static_threshold", "be 0 or more", self.static_threshold)
        require(self.blank_threshold >= 0, "blank_threshold", "be 0 or more", self.blank_threshold)
        require(
            0 <= self.near_duplicate_bits <= HASH_BITS,
            "near_duplicate_bits",
            f"lie between 0 and {HASH_BITS}",
            self.near_duplicate_bits,
        )
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)
        check_engine(self.engine)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One video as shown on the page."""

    row: int
    key: str
    name: str
    split: str
    label: str
    facts: str
    strip: str
    strip_size: tuple[int, int]
    alt: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SampledVideos:
    """The decoded videos.

    Attributes:
        rows: the seeded sample, in its order.
        stats: by row, of the sample and of near duplicates.
    """

    collection: Collection
    rows: Sequence[int]
    stats: dict[int, VideoStats]

    @property
    def readable(self) -> list[int]:
        """Rows of the readable videos."""
        return [row for row in self.rows if not self.stats[row].reason]

    @property
    def unreadable(self) -> list[tuple[Card, str]]:
        """The unreadable videos with reasons."""
        return [(self.card(row), self.stats[row].reason) for row in self.rows if self.stats[row].reason]

    def card(self, row: int, note: str = "") -> Card:
        """Make the card of a video, with images if it was decoded."""
        sample, stats = self.collection.sample(row), self.stats.get(row, VideoStats())
        number, _ = self.collection.locate(row)
        shown_s = ", ".join(short(timestamp_s) for timestamp_s in timestamps_s(sample.duration_s)[::2])
        return Card(
            row=row,
            key=sample.key,
            name=sample.name,
            split=self.collection.splits[number],
            label="" if sample.label == NO_LABEL else self.collection.indexes[number].classes[sample.label],
            facts=_facts(sample),
            strip=data_uri(stats.strip, "image/jpeg") if stats.strip else "",
            strip_size=stats.strip_size,
            alt=f"{STRIP_FRAMES} frames of {sample.key}, at {shown_s} s",
            note=note,
        )


def decode_sampled_videos(
    collection: Collection, settings: ReportConfig, also: Sequence[int] = ()
) -> SampledVideos:
    """Decode a seeded sample of the videos, and the rows `also`, on several processes."""
    draw = generator(settings.seed, purpose="report/samples")
    rows = torch.randperm(len(collection), generator=draw)[: settings.samples].tolist()
    sorted_rows = sorted({*rows, *also})  # neighbours on the disk
    jobs: list[tuple[Location, int]] = []
    for row in sorted_rows:
        number, position = collection.locate(row)
        jobs.append((collection.indexes[number].folder, position))
    results = imap_unordered(
        compute_stats,
        jobs,
        workers=settings.workers,
        on_failure=failed_stats,
        timeout_s=settings.timeout_s,
        engine=settings.engine,
    )
    stats = {sorted_rows[at]: result for at, result in progress(results, total=len(jobs), what="decode")}
    return SampledVideos(collection=collection, rows=rows, stats=stats)


class NearGroup(NamedTuple):
    """Rows of near duplicates, and the distance of each in bits from the first one."""

    rows: list[int]
    bits: list[int]


def near_groups(
    collection: Collection, words_NX: np.ndarray, row_N: np.ndarray, max_bits: int
) -> list[NearGroup]:
    """Groups of rows with similar hashes: those in several splits first, then the largest."""
    found = []
    for group in near_duplicate_groups(words_NX, max_bits):
        bits = distances(words_NX[group[0]], words_NX[group])
        found.append(NearGroup(row_N[group].tolist(), bits.tolist()))
    splits = [len(set(collection.split_numbers(group.rows))) for group in found]
    order = sorted(range(len(found)), key=lambda at: (-splits[at], -len(found[at].rows)))
    return [found[at] for at in order]


def stored_near_groups(collection: Collection, settings: ReportConfig) -> list[NearGroup] | None:
    """Near duplicates among all videos by the column of hashes; None if a data set has none."""
    if not all("phash" in index.extra for index in collection.indexes):
        return None
    hashes = gather_hashes(dict(zip(collection.splits, collection.indexes, strict=True)))
    row_N = np.array(collection.offsets)[hashes.set_N] + hashes.position_N
    order = np.argsort(row_N)
    return near_groups(collection, hashes.words_NX[order], row_N[order], settings.near_duplicate_bits)


def decoded_near_groups(sampled: SampledVideos, settings: ReportConfig) -> list[NearGroup]:
    """Near duplicates among the decoded videos. Blank videos are left out, because their hashes are alike."""
    rows = [row for row in sampled.readable if sampled.stats[row].contrast >= settings.blank_threshold]
    words_NX = hash_words([sampled.stats[row].hash for row in rows])
    return near_groups(sampled.collection, words_NX, np.array(rows), settings.near_duplicate_bits)


def group_cards(sampled: SampledVideos, groups: Sequence[NearGroup]) -> list[list[Card]]:
    """The cards of the first groups."""
    return [
        [
            sampled.card(
                row, "" if row == rows[0] else f"{count} {'bit' if count == 1 else 'bits'} from the first"
            )
            for row, count in zip(rows, bits, strict=True)
        ]
        for rows, bits in groups[:MAX_GROUPS]
    ]


def _facts(sample: Sample) -> str:
    """Size, length and frame rate in one line."""
    rate = short(sample.frames / sample.duration_s) if sample.duration_s > 0 else "?"
    frames = "1 frame" if sample.frames == 1 else f"{sample.frames:,} frames"
    return (
        f"{sample.width}x{sample.height}, {time_text(sample.duration_s)}, {frames}, {rate} fps, "
        f"{sample.codec}, {size_text(sample.length)}"
    )
