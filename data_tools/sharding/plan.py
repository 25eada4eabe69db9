"""The config of `data_tools shard`, and what can be said of a collection before a video is opened."""

import dataclasses
import hashlib
import inspect
import json
from dataclasses import dataclass, field, replace
from typing import Any

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.config import require
from kinemae.data_tools.encoding.resample import SegmentRules
from kinemae.data_tools.layouts.base import Layout
from kinemae.data_tools.manifest.class_map import class_list, read_classes, sorted_classes
from kinemae.data_tools.manifest.labels import warn_of_labels
from kinemae.data_tools.manifest.videos import Listing
from kinemae.data_tools.pool import TIMEOUT_S
from kinemae.data_tools.sharding.detect_source import refuse_empty, source_of, warn_of_one_class
from kinemae.data_tools.sources.base import Source
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class SourceComponent(Component):
    """The source in a config; without a name it is inferred from SOURCE."""

    name: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How a collection becomes shards.

    Attributes:
        source: the part that lists the videos; without a name it is inferred from SOURCE.
        layout: the part that stores them, a file in data_tools/layouts.
        segment_s: cut long videos every so many seconds; None cuts none.
        scene_cuts: cut videos where a new scene begins.
        validation_fraction: of each class, where the source has no splits of its own.
        leaks: what to do where given splits share a video or a group, "error" or "warn".
        classes: fixes the label numbers: an earlier OUT, a dataset.json, or a list of classes.
        samples_per_shard, megabytes_per_shard: whichever is reached first ends a shard.
        max_bad_fraction: stop where more than this share of the videos cannot be read; 1 never stops.
        workers: processes that decode and encode videos; 0 means one for each core.
        timeout_s: a video that shows no sign of progress for so long is left out; a rerun tries it again.
        work_dir: where samples lie until their shard is written; None takes OUT/work.
        retry_rejected: try videos again that an earlier start rejected, also where OUT is complete.
    """

    source: SourceComponent | None = None
    layout: Component = field(default_factory=lambda: Component(name="stride_aligned"))
    segment_s: float | None = None
    scene_cuts: bool = False
    seed: int = 0
    validation_fraction: float = 0.2
    leaks: str = "error"
    classes: str | None = None
    samples_per_shard: int = 1000
    megabytes_per_shard: int = 256
    max_bad_fraction: float = 1.0
    workers: int = 0
    timeout_s: float = TIMEOUT_S
    work_dir: str | None = None
    retry_rejected: bool = False

    def __post_init__(self) -> None:
        is_length = self.segment_s is None or self.segment_s > 0
        require(is_length, "segment_s", "be above 0, or null", self.segment_s)
        require(
            0 <= self.validation_fraction < 1,
            "validation_fraction",
            "lie in [0, 1)",
            self.validation_fraction,
        )
        require(self.leaks in ("error", "warn"), "leaks", "be error or warn", self.leaks)
        require(self.samples_per_shard >= 1, "samples_per_shard", "be at least 1", self.samples_per_shard)
        require(
            self.megabytes_per_shard >= 1, "megabytes_per_shard", "be at least 1", self.megabytes_per_shard
        )
        require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", "lie in [0, 1]", self.max_bad_fraction)
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)

    @property
    def segment_rules(self) -> SegmentRules:
        """Where videos are cut."""
        return SegmentRules(segment_s=self.segment_s, scene_cuts=self.scene_cuts)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked config, and what it is applied to.

    Attributes:
        given_classes: what `classes` names; empty where it names nothing.
        state: names the data set that will be made: equal states make equal bytes.
    """

    settings: ShardConfig
    layout: Layout
    listing: Listing
    given_classes: tuple[str, ...]
    state: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """The config as it is written down."""
        return self.state["config"]


def make_plan(root: Location, settings: ShardConfig) -> Plan:
    """Check everything that can be checked before a video is opened.

    Raises:
        DataError: nothing is there, no video is, or a label is not among the classes asked for.
        ValueError: a part that does not exist, or a layout that cannot store these videos.
    """
    layout = build_component("kinemae.data_tools.layouts", settings.layout, Layout)
    given = tuple(read_classes(settings.classes)) if settings.classes else ()
    part = _source_component(root, settings)
    listing = build_component("kinemae.data_tools.sources", part, Source).listing(root)
    refuse_empty(root, listing, source=part.name)
    if part.name == "folder":
        warn_of_one_class(root, listing)
    for video in listing.videos:
        layout.check(video, settings.segment_rules)
    warn_of_labels(sorted_classes([video.label for video in listing.videos if video.label is not None]))
    if given:
        class_list(listing.videos, given, of=f"classes={settings.classes}")
    record = dataclasses.asdict(settings)
    for name in ("workers", "timeout_s", "work_dir", "retry_rejected"):  # they change no byte of the result
        del record[name]
    record["classes"] = list(given) or None
    record["source"] = dataclasses.asdict(part) if settings.source else None
    record["layout"]["args"] = _all_arguments(layout) | settings.layout.args
    state = {"source": _name(root), "config": record, "listing": _fingerprint(listing)}
    return Plan(settings=settings, layout=layout, listing=listing, given_classes=given, state=state)


def _source_component(root: Location, settings: ShardConfig) -> Component:
    """The source; inferred from SOURCE if its name is not given."""
    given = settings.source
    if given is None:
        return source_of(root)
    return (
        Component(name=given.name, args=given.args)
        if given.name
        else replace(source_of(root), args=given.args)
    )


def _name(root: Location) -> str:
    return root.name if root.path is None else root.path.resolve().name


def _all_arguments(layout: Layout) -> dict[str, Any]:
    """The defaults of a part, so that what made a data set is written down in full."""
    parameters = inspect.signature(type(layout)).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _fingerprint(listing: Listing) -> str:
    """Names the collection: what the source says of each video and its size, not where it lies."""
    digest = hashlib.sha256()
    for video in listing.videos:
        about = dataclasses.asdict(video)
        del about["path"]
        size = video.path.stat().st_size if not video.url and video.path.is_file() else None
        digest.update(json.dumps([about, size], sort_keys=True, default=dict).encode())
    return digest.hexdigest()[:16]
