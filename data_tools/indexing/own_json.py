"""Read KEY.json as `shard` writes it: the index row without the columns that the tar itself gives."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import COLUMNS, DESCRIPTION_FORMAT, DESCRIPTION_KEY, NO_LABEL, VideoInfo
from kinemae.data_tools.manifest.class_map import sorted_classes

_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "label": (str, type(None)),
    "label_index": (int,),
    "group": (str,),
    "start_s": (int, float),
    "frames": (int,),
    "duration_s": (int, float),
    "width": (int,),
    "height": (int,),
    "codec": (str,),
    "crc32": (int,),
    "content": (str,),
    "reference_stride": (int,),
    "reference_phase": (int,),
}
_INFO = tuple(field.name for field in fields(VideoInfo))


@dataclass(frozen=True, kw_only=True)
class Told:
    """The fields of KEY.json; `kinemae.data_tools.index.COLUMNS` documents each one.

    Attributes:
        extra: additional columns of the source.
    """

    name: str
    label: str | None
    label_index: int
    group: str
    start_s: float
    info: VideoInfo
    crc32: int
    content: str
    reference_stride: int
    reference_phase: int
    extra: Mapping[str, Any]


def is_ours(content: Mapping[str, Any]) -> bool:
    """Whether `shard` wrote this description and it has every column."""
    return content.get(DESCRIPTION_KEY) == DESCRIPTION_FORMAT


def told(content: Mapping[str, Any], where: str) -> Told:
    """Check and read a description.

    Raises:
        DataError: a field is missing or of another type; the message names the sample.
    """
    if not is_ours(content):
        raise DataError(
            f"{where}: expected {DESCRIPTION_KEY}={DESCRIPTION_FORMAT} in its .json as in the first, got "
            f"{content.get(DESCRIPTION_KEY)!r}; fix: add label=json.label to read all as any WebDataset"
        )
    for name, types in _TYPES.items():
        value = content.get(name)
        is_good = isinstance(value, types) and not isinstance(value, bool) and (name in content)
        if not is_good or (isinstance(value, float) and not math.isfinite(value)):
            raise DataError(
                f"{where}: expected {name} in its .json as shard writes it, got {value!r}; fix: download "
                "the shard again"
            )
    own = {name for name in content if name not in (*COLUMNS.names, "label_index", DESCRIPTION_KEY)}
    return Told(
        **{name: content[name] for name in _TYPES if name not in _INFO},
        info=VideoInfo(**{name: content[name] for name in _INFO}),
        extra={name: content[name] for name in sorted(own) if content[name] is not None},
    )


def classes_told(pairs: Iterable[tuple[str, int]], lists: Sequence[Sequence[str]]) -> list[str]:
    """The classes of data sets made by `shard`, in order.

    Args:
        pairs: label and number of each sample that has them.
        lists: class lists next to the shards; a consistent list also names classes without a video.
    """
    pairs = list(pairs)
    numbers: dict[str, int] = {}
    by_number: dict[int, str] = {}
    for label, number in pairs:
        if numbers.setdefault(label, number) != number or by_number.setdefault(number, label) != label:
            log.warning(
                "the shards number their classes differently, %r is %d in one: they are numbered anew",
                *(label, number),
            )
            return sorted_classes([label for label, _ in pairs])
    for names in lists:
        if all(number < len(names) and names[number] == label for label, number in numbers.items()):
            return list(names)
    classes = [by_number.get(number) for number in range(max(by_number, default=NO_LABEL) + 1)]
    if None in classes:
        log.warning(
            "class %d has no video and no name here: classes are numbered anew; classes=OUT keeps them",
            classes.index(None),
        )
        return sorted_classes(list(numbers))
    return [label for label in classes if label is not None]
