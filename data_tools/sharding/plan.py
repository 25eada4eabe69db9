"""Config of `kinemae data shard`, and all checks before a video is opened."""

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
from kinemae.data_tools.manifest.class_map import class_list, read_classes, sorted_classes, warn_of_labels
from kinemae.data_tools.manifest.videos import Manifest
from kinemae.data_tools.pool import TIMEOUT_S
from kinemae.data_tools.sharding.detect_source import check_not_empty, detect_source, warn_of_one_class
from kinemae.data_tools.sources.base import Source
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class SourceComponent(Component):
    """The source in a config; without a name it is detected from SOURCE."""

    name: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Config of `kinemae data shard`.

    Attributes:
        source: the component that lists the videos; without a name it is detected from SOURCE.
        layout: the component that encodes them, a file in data_tools/layouts.
        segment_s: cut long videos after this many seconds; None does not cut.
        scene_cuts: cut videos at scene changes.
        validation_fraction: of each class, if the source has no splits.
        leaks: if given splits share a video or a group: "error" or "warn".
        classes: fixes the class numbers: an earlier OUT, a dataset.json, or a list of classes.
        seed: of the splits, the order in the shards, and the positions of reference frames.
        samples_per_shard, megabytes_per_shard: the limit that is reached first ends a shard.
        max_bad_fraction: stop if a larger fraction of the videos is unreadable; 1 never stops.
        workers: processes that decode and encode videos; 0 means one per core.
        timeout_s: reject a video after this time without progress; the next run tries it again.
        work_dir: folder for samples that are in no shard yet; None uses OUT/work.
        retry_rejected: try videos again that an earlier run rejected, also if OUT is complete.
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
        is_fraction = 0 <= self.validation_fraction < 1
        require(is_fraction, "validation_fraction", "lie in [0, 1)", self.validation_fraction)
        require(self.leaks in ("error", "warn"), "leaks", "be error or warn", self.leaks)
        for name in ("samples_per_shard", "megabytes_per_shard"):
            require(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name))
        require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", "lie in [0, 1]", self.max_bad_fraction)
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)

    @property
    def segment_rules(self) -> SegmentRules:
        """The rules for cutting videos."""
        return SegmentRules(segment_s=self.segment_s, scene_cuts=self.scene_cuts)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked config and the videos of its source.

    Attributes:
        given_classes: the classes of `classes`; empty if it is not set.
        state: identifies the data set: equal states give equal bytes.
    """

    settings: ShardConfig
    layout: Layout
    manifest: Manifest
    given_classes: tuple[str, ...]
    state: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """The config, as dataset.json holds it."""
        return self.state["config"]


def make_plan(root: Location, settings: ShardConfig) -> Plan:
    """Check everything that can be checked before a video is opened.

    Raises:
        DataError: SOURCE does not exist or holds no video, or a label is not among the given classes.
        ValueError: an unknown component, or a layout that cannot store these videos.
    """
    layout = build_component("kinemae.data_tools.layouts", settings.layout, Layout)
    given = tuple(read_classes(settings.classes)) if settings.classes else ()
    source = _source(root, settings)
    manifest = build_component("kinemae.data_tools.sources", source, Source).list_videos(root)
    check_not_empty(root, manifest, source=source.name)
    if source.name == "folder":
        warn_of_one_class(root, manifest)
    for video in manifest.videos:
        layout.check(video, settings.segment_rules)
    labels = {video.name: video.label for video in manifest.videos}
    warn_of_labels(sorted_classes(label for label in labels.values() if label is not None))
    class_list(labels, given, origin=f"classes={settings.classes}")
    record = dataclasses.asdict(settings)
    for name in ("workers", "timeout_s", "work_dir", "retry_rejected"):  # they do not change the result
        del record[name]
    record["classes"] = list(given) or None
    record["source"] = dataclasses.asdict(source) if settings.source else None
    defaults = inspect.signature(type(layout)).parameters.items()
    record["layout"]["args"] = {name: each.default for name, each in defaults} | settings.layout.args
    name = root.name if root.path is None else root.path.resolve().name
    state = {"source": name, "config": record, "manifest": _fingerprint(manifest)}
    return Plan(settings=settings, layout=layout, manifest=manifest, given_classes=given, state=state)


def _source(root: Location, settings: ShardConfig) -> Component:
    """The source; detected from SOURCE if its name is not set."""
    given = settings.source
    if given is None:
        return detect_source(root)
    if given.name:
        return Component(name=given.name, args=given.args)
    return replace(detect_source(root), args=given.args)


def _fingerprint(manifest: Manifest) -> str:
    """A digest of the metadata and sizes of all videos, independent of their location."""
    digest = hashlib.sha256()
    for video in manifest.videos:
        metadata = dataclasses.asdict(video)
        del metadata["path"]
        size = video.path.stat().st_size if not video.url and video.path.is_file() else None
        digest.update(json.dumps([metadata, size], sort_keys=True, default=dict).encode())
    return digest.hexdigest()[:16]
