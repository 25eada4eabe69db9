"""One split of a data set: its samples into shards, and the index over them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinemae.data_tools.command import log
from kinemae.data_tools.index import DESCRIPTION_FORMAT, DESCRIPTION_KEY, NO_LABEL, Sample, write_index
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.keys import shuffled
from kinemae.data_tools.sharding.output import Output
from kinemae.data_tools.sharding.tar_writer import Place, ShardSample, into_shards
from kinemae.data_tools.sharding.transcode import SPOOL_NAME, Stored, stored_file


@dataclass(frozen=True, kw_only=True)
class SplitSample:
    """A sample on its way into a shard.

    Attributes:
        content: names the bytes of the original.
    """

    video: SourceVideo
    stored: Stored
    content: str


def write_split(
    output: Output, split: str, chosen: Sequence[SplitSample], classes: Sequence[str], record: dict[str, Any]
) -> None:
    """Write a split in a seeded order; shards that are finished already are left alone.

    Args:
        record: the config, as it is written down.
    """
    ordered = shuffled(chosen, seed=record["seed"], purpose=f"shard/order/{split}")
    numbers = {name: number for number, name in enumerate(classes)}
    samples = [_shard_sample(output, item, numbers) for item in ordered]
    groups = into_shards(
        samples,
        samples_per_shard=record["samples_per_shard"],
        bytes_per_shard=record["megabytes_per_shard"] * 1_000_000,
    )
    finished = [output.write_shard(split, number, group) for number, group in enumerate(groups)]
    places = [place for entry in finished for place in entry.places]
    rows = [_row(item, place, numbers) for item, place in zip(ordered, places, strict=True)]
    made_by = {"command": "data_tools shard", "split": split, "config": record}
    shards = [entry.shard for entry in finished]
    write_index(output.split_folder(split), rows, shards, classes, made_by, _extra_columns(ordered))
    output.publish_index(split)
    log.info("%s: %d videos in %d shards", output.out / split, len(rows), len(shards))


def _shard_sample(output: Output, item: SplitSample, numbers: dict[str, int]) -> ShardSample:
    video, stored = item.video, item.stored
    description = {
        "name": video.name,
        "label": video.label,
        "label_index": _label(video, numbers),
        "group": video.group or "",  # null would be a type of its own to Hugging Face datasets
        "start_s": stored.start_s,
        **dataclasses.asdict(stored.info),
        "crc32": stored.crc32,
        "content": item.content,
        "reference_stride": stored.reference_stride,
        "reference_phase": stored.reference_phase,
        DESCRIPTION_KEY: DESCRIPTION_FORMAT,
        **video.extra,
    }
    file, offset = video.path, video.member[0] if video.member else 0
    if stored.is_spooled:
        file, offset = stored_file(stored, output.work / SPOOL_NAME), 0
    return ShardSample(
        key=stored.key,
        description=json.dumps(description, ensure_ascii=False).encode(),
        ending=stored.ending,
        file=file,
        offset=offset,
        length=stored.length,
        crc32=stored.crc32,
    )


def _row(item: SplitSample, place: Place, numbers: dict[str, int]) -> Sample:
    return Sample(
        **dataclasses.asdict(place),
        **dataclasses.asdict(item.stored.info),
        label=_label(item.video, numbers),
        name=item.video.name,
        group=item.video.group or "",
        start_s=item.stored.start_s,
        content=item.content,
        reference_stride=item.stored.reference_stride,
        reference_phase=item.stored.reference_phase,
    )


def _label(video: SourceVideo, numbers: dict[str, int]) -> int:
    return NO_LABEL if video.label is None else numbers[video.label]


def _extra_columns(chosen: Sequence[SplitSample]) -> dict[str, list[Any]]:
    """What the source says besides, by column; sources see to it that a column has one type."""
    names = sorted({name for item in chosen for name in item.video.extra})
    return {name: [item.video.extra.get(name) for item in chosen] for name in names}
