"""A foreign WebDataset as a source: tars of samples, here or behind a URL, to be sharded anew."""

from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.indexing.field_rules import Described, Rules, Shelf, read_shelves, settle
from kinemae.data_tools.indexing.shard_list import ForeignShard, find_shards
from kinemae.data_tools.indexing.warnings import warn_of_left_out, warn_of_unread
from kinemae.data_tools.manifest.entries import Entry, listing_of, numbered_classes
from kinemae.data_tools.manifest.table import Row, one_type
from kinemae.data_tools.manifest.videos import Listing, SourceVideo
from kinemae.data_tools.sources.base import Source
from kinemae.data_tools.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class WebdatasetSource(Source):
    """Reads *.tar, train/*.tar, data/train-*.tar (as on the Hugging Face hub) and video2dataset's 00000.tar.

    SOURCE is a folder, one tar, or a pattern such as s3://bucket/train-{0000..0099}.tar. Headers, labels and
    descriptions are read, no video is; pickled members are named and never read.

    Args:
        label: cls, txt, NAME.cls, json.FIELD, none, or auto (cls, else the json's `label`, else none).
        video: the ending of the member to take where a sample has several videos.
        group: the field of the json that tells the group.
        columns: fields of the json that become columns of the index.
        classes: how many classes there are; then every label must be a whole number below it.
        by_split: whether folders (train/) and names (train-0000.tar) tell the split.
        missing_labels: error, or reject to leave out samples without a label.
    """

    label: str = "auto"
    video: str = ""
    group: str = ""
    columns: list[str] = field(default_factory=list)
    classes: int = 0
    by_split: bool = True
    missing_labels: str = "error"

    def __post_init__(self) -> None:
        self.rules()

    def rules(self) -> Rules:
        """The rules for samples."""
        return Rules(
            label=self.label,
            video=self.video,
            group=self.group,
            columns=tuple(self.columns),
            classes=self.classes,
            missing_labels=self.missing_labels,
            keys="source.args.",
        )

    def listing(self, root: Path | Location) -> Listing:
        """See `Source.listing`."""
        shards = find_shards(root, by_split=self.by_split)
        rules = settle(self.rules(), shards)
        shelves = read_shelves(shards, rules)
        warn_of_unread([shelf.unread for shelf in shelves], rules)
        warn_of_left_out(shards, shelves)
        pairs = [
            (shard, sample)
            for shard, shelf in zip(shards, shelves, strict=True)
            for sample in shelf.described
        ]
        rows = [Row(where=f"{shard.place}, {sample.key}", cells=sample.extra) for shard, sample in pairs]
        for column in sorted({name for row in rows for name in row.cells}):
            rows = one_type(rows, column)
        entries = [_entry(*pair, row) for pair, row in zip(pairs, rows, strict=True)]
        return listing_of(
            entries,
            max_missing_fraction=0.0,
            classes=numbered_classes(self.classes),
            ignored=sum(_ignored(shelf) for shelf in shelves),
        )


def _ignored(shelf: Shelf) -> int:
    return shelf.ignored + len(shelf.left_out)


def _entry(shard: ForeignShard, sample: Described, row: Row) -> Entry:
    here = shard.place.path
    video = SourceVideo(
        path=here or Path(shard.place.name),
        url="" if here else shard.place.url,
        name=f"{shard.name}/{sample.video.name}",
        label=sample.label,
        split=shard.split,
        group=sample.group,
        member=(sample.video.offset, sample.video.length),
        extra=row.cells,
    )
    return Entry(where=row.where, video=video)
