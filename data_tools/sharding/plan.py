"""Config of `kinemae data shard`, and all checks before a video is opened."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.config import require
from kinemae.data_tools.curation.frame_stats import COLUMNS
from kinemae.data_tools.encoding.resample import SegmentRules
from kinemae.data_tools.layouts.base import Layout
from kinemae.data_tools.manifest.class_map import class_list, read_classes, sorted_classes, warn_of_labels
from kinemae.data_tools.manifest.videos import PROVENANCE, Manifest, SourceVideo
from kinemae.data_tools.pool import TIMEOUT_S, Engine, check_engine
from kinemae.data_tools.sharding.detect_source import check_not_empty, detect_source, warn_of_one_class
from kinemae.data_tools.sharding.parts import Part, parse_part
from kinemae.data_tools.sharding.sketches import sketches
from kinemae.data_tools.sharding.splits import assign_splits, leaks, safe_keys
from kinemae.data_tools.sharding.video_list import Listing, is_list, read_list
from kinemae.data_tools.sources.base import Source
from kinemae.data_tools.storage.location import Location

_AUTO, _AUTO_S = "auto", 10.0
_PROVENANCE = {*chain(*PROVENANCE.values())}
# Keys that do not change the stored bytes.
_NO_EFFECT = (
    *("workers", "timeout_s", "work_dir", "retry_rejected", "leaks", "max_bad_fraction"),
    *("part", "engine", "parts"),
)


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
        segment_s: cut long videos after this many seconds; None does not cut; "auto" cuts videos that have no
            label and no columns about their content after 10 s.
        scene_cuts: cut videos at scene changes.
        curate: add the curation columns, see `curation.frame_stats`.
        validation_fraction: of each class, if the source has no splits.
        leaks: if given splits share a video or a group: "error" or "warn".
        classes: fixes the class numbers: an earlier OUT, a dataset.json, or a list of classes.
        seed: of the splits and the order in the shards.
        part: store one part of the videos, NUMBER/COUNT; see `parts.py`.
        engine: "ray" stores the parts on a Ray cluster and merges them.
        parts: their number.
        samples_per_shard, megabytes_per_shard: the limit that is reached first ends a shard.
        max_bad_fraction: stop if a larger fraction of the videos is unreadable; 1 never stops.
        workers: processes that decode and encode videos; 0 means one per core.
        timeout_s: reject a video after this time without progress; the next run tries it again.
        work_dir: folder for samples that are in no shard yet; None uses OUT/work.
        retry_rejected: try videos again that an earlier run rejected, also if OUT is complete.
    """

    source: SourceComponent | None = None
    layout: Component = field(default_factory=lambda: Component(name="h264"))
    segment_s: int | float | str | None = "auto"
    scene_cuts: bool = False
    curate: bool = True
    seed: int = 0
    validation_fraction: float = 0.2
    leaks: str = "error"
    classes: str | None = None
    part: str | None = None
    engine: Engine = "local"
    parts: int = 64
    samples_per_shard: int = 10_000
    megabytes_per_shard: int = 1000
    max_bad_fraction: float = 1.0
    workers: int = 0
    timeout_s: float = TIMEOUT_S
    work_dir: str | None = None
    retry_rejected: bool = False

    def __post_init__(self) -> None:
        given = self.segment_s
        is_length = given in (None, _AUTO) or (isinstance(given, int | float) and given > 0)
        require(is_length, "segment_s", f"be above 0, {_AUTO}, or null", given)
        is_fraction = 0 <= self.validation_fraction < 1
        require(is_fraction, "validation_fraction", "lie in [0, 1)", self.validation_fraction)
        require(self.leaks in ("error", "warn"), "leaks", "be error or warn", self.leaks)
        for name in ("samples_per_shard", "megabytes_per_shard"):
            require(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name))
        if self.part is not None:
            parse_part(self.part)
            require(self.engine == "local", "engine", "be local if part is set", self.engine)
        require(self.parts >= 1, "parts", "be at least 1", self.parts)
        check_engine(self.engine)
        require(0 <= self.max_bad_fraction <= 1, "max_bad_fraction", "lie in [0, 1]", self.max_bad_fraction)
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)

    def segment_rules(self, video: SourceVideo, layout: Layout) -> SegmentRules:
        """The rules for cutting a video."""
        seconds = self.segment_s
        if isinstance(seconds, str):  # a label, or times in a column, may not hold for a part of the video
            is_whole = video.label is not None or not set(video.extra) <= _PROVENANCE
            seconds = _AUTO_S if layout.can_cut and not is_whole else None
        return SegmentRules(segment_s=seconds, scene_cuts=self.scene_cuts)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked config and the videos of its source.

    Splits, classes, keys and columns are functions of the whole source, so that parts agree on them.

    Attributes:
        manifest: the videos of the part, or all.
        keys, splits: by the position of a video in the manifest.
        columns: the types of the additional columns: int, float or str.
        state: identifies the data set: equal states give equal bytes.
    """

    settings: ShardConfig
    layout: Layout
    manifest: Manifest
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    columns: Mapping[str, type]
    state: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """The config, as dataset.json holds it."""
        return self.state["config"]

    @property
    def part(self) -> Part | None:
        return parse_part(self.settings.part) if self.settings.part else None


def make_plan(root: Location, settings: ShardConfig) -> Plan:
    """Check everything that can be checked before a video is opened.

    Raises:
        DataError: SOURCE does not exist or holds no video, a label is not among the given classes, or given
            splits share a group and the config does not allow it.
        ValueError: an unknown component, or a layout that cannot store these videos.
    """
    layout = build_component("kinemae.data_tools.layouts", settings.layout, Layout)
    part = parse_part(settings.part) if settings.part else Part(0, 1)
    if is_list(root):
        listing = read_list(root, part)
        settings = _with_list(settings, listing, root)
        _check_layout(listing.videos, settings, layout)
    else:
        listing = list_collection(root, settings, layout).of_part(part)
    return Plan(
        settings=settings,
        layout=layout,
        manifest=Manifest(videos=tuple(listing.videos), ignored=listing.ignored),
        keys=tuple(listing.keys),
        splits=tuple(listing.splits),
        classes=listing.classes,
        columns=_columns(listing.columns, settings),
        state={
            "source": listing.source,
            "config": {**_record(settings, layout), **listing.settings},
            "manifest": listing.fingerprint,
            "videos": len(listing.videos),
            "sizes": _sum_of_sizes(listing.videos),
        },
    )


def list_collection(root: Location, settings: ShardConfig, layout: Layout) -> Listing:
    """List all videos of a collection, with their splits, classes and keys.

    Raises:
        DataError, ValueError: see `make_plan`.
    """
    given = tuple(read_classes(settings.classes)) if settings.classes else ()
    source = _source(root, settings)
    manifest = build_component("kinemae.data_tools.sources", source, Source).list_videos(root)
    check_not_empty(root, manifest, source=source.name)
    if source.name == "folder":
        warn_of_one_class(root, manifest)
    videos = manifest.videos
    _check_layout(videos, settings, layout)
    types = {name: type(value) for video in videos for name, value in video.extra.items()}
    _columns(types, settings)
    of_list = {
        "source": dataclasses.asdict(source) if settings.source else None,
        "classes": list(given) or None,
        **{name: getattr(settings, name) for name in ("validation_fraction", "seed")},
    }
    return Listing(
        source=root.name if root.path is None else root.path.resolve().name,
        settings=of_list,
        classes=tuple(_classes(manifest, given, settings)),
        columns=types,
        fingerprint=_fingerprint(_metadata(video) for video in videos),
        ignored=manifest.ignored,
        total=len(videos),
        videos=videos,
        keys=safe_keys([video.name for video in videos]),
        splits=_splits(videos, settings),
    )


def _check_layout(videos: Iterable[SourceVideo], settings: ShardConfig, layout: Layout) -> None:
    for video in videos:
        layout.check(video, settings.segment_rules(video, layout))


def _with_list(settings: ShardConfig, listing: Listing, root: Location) -> ShardConfig:
    """The config with the keys of a list.

    Raises:
        ValueError: a key has another value than in the list, and not its default.
    """
    for name, default in (("source", None), ("classes", None), ("validation_fraction", 0.2), ("seed", 0)):
        given = getattr(settings, name)
        if given not in (default, listing.settings[name]):
            raise ValueError(
                f"{name}: expected no value, since SOURCE {root} is a list with {listing.settings[name]!r}, "
                f"got {given!r}; fix: leave it out, or list the collection again with this value"
            )
    return replace(settings, **{name: listing.settings[name] for name in ("validation_fraction", "seed")})


def _classes(manifest: Manifest, given: Sequence[str], settings: ShardConfig) -> list[str]:
    labels = {video.name: video.label for video in manifest.videos}
    warn_of_labels(sorted_classes(label for label in labels.values() if label is not None))
    origin = f"classes={settings.classes}" if given else "the source"
    return class_list(labels, given or manifest.classes, origin=origin)


def _record(settings: ShardConfig, layout: Layout) -> dict[str, Any]:
    """The config without what does not change the result, with all arguments of the layout."""
    record = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _NO_EFFECT}
    defaults = inspect.signature(type(layout)).parameters.items()
    record["layout"]["args"] = {name: each.default for name, each in defaults} | settings.layout.args
    return record


def _splits(videos: Sequence[SourceVideo], settings: ShardConfig) -> list[str]:
    """The split of each video, without groups in two of them.

    Raises:
        DataError: the source's own splits share a group, and the config does not allow it.
    """
    fraction = settings.validation_fraction
    drawn = [video for video in videos if video.split is None and video.label is not None and fraction > 0]
    if not drawn and len({video.split for video in videos}) == 1:
        return [videos[0].split or "train"] * len(videos)
    copies = sketches(drawn, workers=settings.workers, timeout_s=settings.timeout_s)
    members = assign_splits(videos, copies, validation_fraction=fraction, seed=settings.seed)
    check_leaks(leaks(members, copies), settings)
    split_of = {video.name: split for split, some in members.items() for video in some}
    return [split_of[video.name] for video in videos]


def check_leaks(found: Sequence[str], settings: ShardConfig) -> None:
    """Reject splits with common videos or groups, or warn of them.

    Raises:
        DataError: there are some, and the config does not allow it.
    """
    if not found:
        return
    message = f"expected splits without common videos or groups, got {len(found)} leaks, first {found[0]}"
    if settings.leaks == "error":
        raise DataError(f"leaks=error: {message}; fix: remove one of them, or set leaks=warn")
    log.warning("%s", message)


def _columns(of_source: Mapping[str, type], settings: ShardConfig) -> dict[str, type]:
    """The columns of the source and of curation by name.

    Raises:
        ValueError: a name is used twice.
    """
    types = dict(of_source)
    if settings.curate:
        taken = sorted(types.keys() & COLUMNS.keys())
        if taken:
            raise ValueError(
                f"curate=true: expected no column named like a curation column in SOURCE, got {taken[0]!r}; "
                f"fix: rename it with source.args.columns.my_{taken[0]}={taken[0]}, or set curate=false"
            )
        types |= COLUMNS
    return dict(sorted(types.items()))


def _source(root: Location, settings: ShardConfig) -> Component:
    """The source; detected from SOURCE if its name is not set."""
    given = settings.source
    if given is None:
        return detect_source(root)
    if given.name:
        return Component(name=given.name, args=given.args)
    return replace(detect_source(root), args=given.args)


def _metadata(video: SourceVideo) -> list[Any]:
    """All fields of a video except its location."""
    names = sorted(field.name for field in dataclasses.fields(video))
    values = {name: getattr(video, name) for name in names if name != "path"}
    return [dict(value) if name == "extra" else value for name, value in values.items()]


def _sum_of_sizes(videos: Iterable[SourceVideo]) -> str:
    """A sum of digests of names and sizes: that of all videos is the sum of those of the parts."""
    total = 0
    for video in videos:
        size = video.path.stat().st_size if not video.url and video.path.is_file() else None
        digest = hashlib.blake2b(json.dumps([video.name, size]).encode(), digest_size=8).digest()
        total += int.from_bytes(digest, "big")
    return f"{total % (1 << 64):016x}"


def _fingerprint(entries: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()[:16]
