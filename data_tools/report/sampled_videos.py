"""The videos that a report decodes: a seeded choice, what was seen of them, and which look alike."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kinemae.data_tools.config import require
from kinemae.data_tools.index import NO_LABEL, Sample
from kinemae.data_tools.pool import TIMEOUT_S, imap_unordered
from kinemae.data_tools.progress import progress
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.report.collection import Collection
from kinemae.data_tools.report.duplicates import distance, most_bits_found, near_groups
from kinemae.data_tools.report.figures import short, size_text, time_text
from kinemae.data_tools.report.video_stats import HASH_BITS, PICTURES, Look, failed, look_at, timestamps_s
from kinemae.data_tools.storage.location import Location, location


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report looks at.

    Attributes:
        samples: videos decoded for pictures, motion and look-alikes; all else is told of every video.
        pictures: videos on the contact sheet.
        static_threshold: a video is called static where successive frames differ by less, in grey levels.
        blank_threshold: a video is called blank where its grey levels spread by less.
        near_duplicate_bits: look-alikes differ in at most so many of the 256 bits of their hashes.
        workers: processes that decode; 0 means one for each core.
        timeout_s: limit for a video without progress.
    """

    seed: int = 0
    samples: int = 2000
    pictures: int = 24
    static_threshold: float = 0.5
    blank_threshold: float = 3.0
    near_duplicate_bits: int = 16
    workers: int = 0
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", "be at least 1", self.samples)
        require(self.pictures >= 0, "pictures", "be 0 or more", self.pictures)
        require(self.static_threshold >= 0, "static_threshold", "be 0 or more", self.static_threshold)
        require(self.blank_threshold >= 0, "blank_threshold", "be 0 or more", self.blank_threshold)
        most = most_bits_found(HASH_BITS)
        require(
            0 <= self.near_duplicate_bits <= most,
            "near_duplicate_bits",
            f"lie between 0 and {most}",
            self.near_duplicate_bits,
        )
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One video as the page shows it."""

    place: int
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
class Looked:
    """The videos that were decoded, in the seeded order of the choice."""

    collection: Collection
    looks: dict[int, Look]

    @property
    def readable(self) -> list[int]:
        """Places of the videos that could be read."""
        return [place for place, look in self.looks.items() if not look.reason]

    @property
    def unreadable(self) -> list[tuple[Card, str]]:
        """Videos that could not be read, and why."""
        return [(self.card(place), look.reason) for place, look in self.looks.items() if look.reason]

    def card(self, place: int, note: str = "") -> Card:
        """A video with its pictures, where it has any."""
        sample, look = self.collection.sample(place), self.looks.get(place, Look())
        shown_s = ", ".join(short(timestamp_s) for timestamp_s in timestamps_s(sample.duration_s)[::2])
        return Card(
            place=place,
            key=sample.key,
            name=sample.name,
            split=self.collection.splits[self.collection.locate(place)[0]],
            label=label_of(self.collection, place, sample),
            facts=facts(sample),
            strip=data_uri(look.strip),
            strip_size=look.strip_size,
            alt=f"{PICTURES} frames of {sample.key}, at {shown_s} s",
            note=note,
        )


def look_at_some(collection: Collection, settings: ReportConfig) -> Looked:
    """Decode a seeded choice of the samples, on several processes."""
    draw = generator(settings.seed, purpose="report/samples")
    places = torch.randperm(len(collection), generator=draw)[: settings.samples].tolist()
    in_order = sorted(places)  # neighbours on the disk
    jobs: list[tuple[Location, int]] = []
    for place in in_order:
        number, position = collection.locate(place)
        jobs.append((location(collection.indexes[number].folder), position))
    done = imap_unordered(
        look_at, jobs, workers=settings.workers, on_failure=failed, timeout_s=settings.timeout_s
    )
    found = {in_order[number]: look for number, look in progress(done, total=len(jobs), what="look at")}
    return Looked(collection=collection, looks={place: found[place] for place in places})


def near_duplicates(looked: Looked, settings: ReportConfig) -> list[list[Card]]:
    """Groups of videos with nearly the same pictures; those in several splits first, then the largest.

    Blank videos are left out: their hashes tell nothing.
    """
    places = [p for p in looked.readable if looked.looks[p].contrast >= settings.blank_threshold]
    groups = near_groups([looked.looks[place].hash for place in places], settings.near_duplicate_bits)
    cards = [_alike(looked, sorted(places[position] for position in group)) for group in groups]
    return sorted(cards, key=lambda group: (-len({card.split for card in group}), -len(group)))


def label_of(collection: Collection, place: int, sample: Sample) -> str:
    """The name of a sample's class, "" for none."""
    classes = collection.indexes[collection.locate(place)[0]].classes
    return "" if sample.label == NO_LABEL else classes[sample.label]


def facts(sample: Sample) -> str:
    """Size, length and rate of a video in one line."""
    rate = short(sample.frames / sample.duration_s) if sample.duration_s > 0 else "?"
    frames = "1 frame" if sample.frames == 1 else f"{sample.frames:,} frames"
    return (
        f"{sample.width}x{sample.height}, {time_text(sample.duration_s)}, {frames}, {rate} fps, "
        f"{sample.codec}, {size_text(sample.length)}"
    )


def data_uri(jpeg: bytes) -> str:
    """A picture that stands in the page itself."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""


def _alike(looked: Looked, places: Sequence[int]) -> list[Card]:
    first = looked.looks[places[0]].hash
    bits = [distance(first, looked.looks[place].hash) for place in places[1:]]
    notes = [f"{count} {'bit' if count == 1 else 'bits'} from the first" for count in bits]
    return [looked.card(place, note) for place, note in zip(places, ["", *notes], strict=True)]
