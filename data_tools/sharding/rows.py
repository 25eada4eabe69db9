"""Samples of a split: KEY.json in the tar, and the row of the index."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.index import (
    COLUMNS,
    DESCRIPTION_FORMAT,
    DESCRIPTION_KEY,
    NO_LABEL,
)
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.tar_writer import Place, ShardSample
from kinemae.data_tools.sharding.transcode import StoredSample, stored_file

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SplitSample:
    """A sample of a split, before it is in a shard.

    Attributes:
        content: digest of the source's bytes.
        stamp: state of the source when it was read.
    """

    video: SourceVideo
    stored: StoredSample
    content: str
    stamp: str


def shard_sample(sample: SplitSample, spool: Path, numbers: Mapping[str, int]) -> ShardSample:
    """The content of a sample in a tar.

    Args:
        numbers: the number of each class.
    """
    video, stored = sample.video, sample.stored
    file, offset = video.path, video.member[0] if video.member else 0
    if stored.is_spooled:
        file, offset = stored_file(stored, spool), 0
    return ShardSample(
        key=stored.key,
        description=json.dumps(_description(sample, numbers), ensure_ascii=False).encode(),
        extension=stored.extension,
        file=file,
        offset=offset,
        length=stored.length,
        crc32=stored.crc32,
    )


def index_row(sample: SplitSample, place: Place, numbers: Mapping[str, int]) -> Row:
    """The row of the index, followed by the additional columns that have a value."""
    fields = _description(sample, numbers) | asdict(place)
    fields["label"] = fields["label_index"]
    return {name: fields[name] for name in COLUMNS.names} | _extra(sample)


def _extra(sample: SplitSample) -> Row:
    """The columns of the source and of curation."""
    return {**sample.video.extra, **sample.stored.columns}


def _description(sample: SplitSample, numbers: Mapping[str, int]) -> Row:
    """The content of KEY.json: the row of the index without the position in the tar."""
    video, stored = sample.video, sample.stored
    return {
        "name": video.name,
        "label": video.label,
        "label_index": NO_LABEL if video.label is None else numbers[video.label],
        "group": video.group or "",  # Hugging Face datasets takes null for another type
        "start_s": stored.start_s,
        **asdict(stored.info),
        "crc32": stored.crc32,
        "content": sample.content,
        "reference_stride": stored.reference_stride,
        "reference_phase": stored.reference_phase,
        "frame_step": stored.frame_step,
        DESCRIPTION_KEY: DESCRIPTION_FORMAT,
        **_extra(sample),
    }
