"""WebDataset as a source: tars of samples, local or remote, to be sharded again."""

from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.indexing.field_rules import (
    FieldRules,
    SampleInfo,
    read_shards,
    resolve_label,
    warn_of_skipped,
    warn_of_unused,
)
from kinemae.data_tools.indexing.shard_list import InputShard, find_shards
from kinemae.data_tools.manifest.class_map import numbered_classes
from kinemae.data_tools.manifest.entries import Entry, build_manifest
from kinemae.data_tools.manifest.table import Row, unify_columns
from kinemae.data_tools.manifest.videos import Manifest, SourceVideo
from kinemae.data_tools.sources.base import Source
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class WebdatasetSource(FieldRules, Source):
    """Reads *.tar, train/*.tar, data/train-*.tar (as on the Hugging Face hub) and video2dataset's 00000.tar.

    SOURCE is a folder, one tar, or a pattern such as s3://bucket/train-{0000..0099}.tar. Only headers, labels
    and json members are read; pickled members are never read. The arguments are those of `FieldRules`.
    """

    key_prefix = "source.args."

    def list_videos(self, root: Path | Location) -> Manifest:
        shards = find_shards(root, by_split=self.by_split)
        rules = resolve_label(self, shards)
        contents = read_shards(shards, rules)
        warn_of_unused([content.unused for content in contents], rules)
        warn_of_skipped(shards, contents)
        pairs = [
            (shard, sample)
            for shard, content in zip(shards, contents, strict=True)
            for sample in content.samples
        ]
        rows = [Row(where=f"{shard.place}, {sample.key}", cells=sample.extra) for shard, sample in pairs]
        entries = [_entry(*pair, row) for pair, row in zip(pairs, unify_columns(rows), strict=True)]
        return build_manifest(
            entries,
            max_missing_fraction=0.0,
            classes=numbered_classes(self.num_classes),
            ignored=sum(content.ignored + len(content.skipped) for content in contents),
        )


def _entry(shard: InputShard, sample: SampleInfo, row: Row) -> Entry:
    path = shard.place.path
    video = SourceVideo(
        path=path or Path(shard.place.name),
        url="" if path else shard.place.url,
        name=f"{shard.name}/{sample.video.name}",
        label=sample.label,
        split=shard.split,
        group=sample.group,
        member=(sample.video.offset, sample.video.length),
        extra=row.cells,
    )
    return Entry(where=row.where, video=video)
