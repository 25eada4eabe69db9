"""What the samples of a foreign WebDataset say about themselves: label, group, further values."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, Any

from data_tools.command import DataError
from data_tools.config import require
from data_tools.foreign.members import Contents, ForeignSample, Member, members_of, read_member, samples_in
from data_tools.foreign.shards import ForeignShard, open_shard
from data_tools.listing.entries import class_number
from data_tools.listing.table import KNOWN, RESERVED

_AT_ONCE = 8  # requests to a remote store


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Where the facts about a video stand in its sample.

    Attributes:
        label: "cls" or "txt", the member of that ending; "json.FIELD", a field of the json member, deeper
            ones as json.a.b; "none"; "auto": "cls" or "json.label", whichever the first sample has, else
            "absent", which is "none" and refuses a later .cls.
        video: the ending of the member to take where a sample has several videos.
        group: the field of the json member that tells the group.
        columns: fields of the json member that become columns of the index.
        classes: how many classes there are; then every label must be a whole number below it.
    """

    label: str = "auto"
    video: str = ""
    group: str = ""
    columns: tuple[str, ...] = ()
    classes: int = 0

    def __post_init__(self) -> None:
        known = self.label in ("auto", "absent", "cls", "txt", "none")
        fits = known or re.fullmatch(r"json(\.[^.]+)+", self.label) is not None
        require(fits, "label", "be auto, cls, txt, none or json.FIELD", self.label)
        require(self.classes >= 0, "classes", "be 0 (as many as there are) or more", self.classes)
        for name in self.columns:
            free = name not in (*RESERVED, *KNOWN)
            require(free, "columns", "hold no name that the index uses itself", name)


@dataclass(frozen=True, kw_only=True)
class Described:
    """A sample with what it says: its key, its video, and facts as in `SourceVideo`."""

    key: str
    video: Member
    label: str | None
    group: str | None
    extra: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A shard's samples; `ignored` counts files that belong to none."""

    described: tuple[Described, ...]
    without_video: tuple[str, ...]
    ignored: int


def settle(rules: Rules, shards: Sequence[ForeignShard]) -> Rules:
    """What "auto" means for these shards, told by the first sample of the first of them."""
    if rules.label != "auto":
        return rules
    for shard in shards:
        if shard.split == "unlabelled":
            continue
        with open_shard(shard.place) as file:
            contents = _contents(file, shard, rules)
            if contents.samples:
                return replace(rules, label=_auto(file, contents.samples[0], shard.name))
    return replace(rules, label="absent")


def read_shelf(shard: ForeignShard, rules: Rules, file: IO[bytes] | None = None) -> Shelf:
    """All samples of a shard; headers and small members are read, no video is.

    Args:
        file: the opened shard, where the caller has it.

    Raises:
        DataError: the tar is damaged, a key is there twice, or a label is missing or wrong.
    """
    if file is None:
        with open_shard(shard.place) as opened:
            return read_shelf(shard, rules, opened)
    if shard.split == "unlabelled":
        rules = replace(rules, label="none")
    contents = _contents(file, shard, rules)
    described = tuple(_describe(file, sample, shard, rules) for sample in contents.samples)
    return Shelf(described=described, without_video=contents.without_video, ignored=contents.ignored)


def read_shelves(shards: Sequence[ForeignShard], rules: Rules) -> list[Shelf]:
    """`read_shelf` of each shard, several at once where they are remote."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(lambda shard: read_shelf(shard, rules), shards))


def _contents(file: IO[bytes], shard: ForeignShard, rules: Rules) -> Contents:
    return samples_in(members_of(file, str(shard.place)), str(shard.place), video=rules.video)


def _auto(file: IO[bytes], sample: ForeignSample, name: str) -> str:
    if "cls" in sample.members:
        return "cls"
    described = _json_of(file, sample, name) if "json" in sample.members else {}
    return "absent" if described.get("label") is None else "json.label"


def _describe(file: IO[bytes], sample: ForeignSample, shard: ForeignShard, rules: Rules) -> Described:
    wants_json = rules.label.startswith("json.") or rules.group or rules.columns
    content = _json_of(file, sample, shard.name) if wants_json else {}
    group = _value(content, rules.group) if rules.group else None
    return Described(
        key=sample.key,
        video=sample.video,
        label=_label(file, sample, shard, rules, content),
        group=None if group is None else str(group),
        extra={field: value for field in rules.columns if (value := _value(content, field)) is not None},
    )


def _label(
    file: IO[bytes], sample: ForeignSample, shard: ForeignShard, rules: Rules, content: dict[str, Any]
) -> str | None:
    where = f"{shard.name}, {sample.key}"
    if rules.label == "absent" and "cls" in sample.members:
        raise DataError(f"{where}: it has a .cls and the first sample has none; set label=cls or label=none")
    if rules.label in ("none", "absent"):
        return None
    value = _label_value(file, sample, rules.label, content, where)
    if value is None and shard.split == "test":
        return None  # who gives out a test set often keeps its labels
    if value is None or isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(
            f"{where}: expected a label from label={rules.label}, text or a whole number, got {value!r}; "
            f"the sample has {', '.join([*sample.members, *(f'json.{name}' for name in content)])}"
        )
    return class_number(where, str(value), rules.classes) if rules.classes else str(value)


def _label_value(
    file: IO[bytes], sample: ForeignSample, rule: str, content: dict[str, Any], where: str
) -> Any:
    if rule.startswith("json."):
        return _value(content, rule.removeprefix("json."))
    if rule not in sample.members:
        return None
    return read_member(file, sample.members[rule], where).decode("utf-8", "replace").strip()


def _json_of(file: IO[bytes], sample: ForeignSample, name: str) -> dict[str, Any]:
    if "json" not in sample.members:
        raise DataError(f"{name}, {sample.key}: it has no .json to take its label, group or columns from")
    try:
        content = json.loads(read_member(file, sample.members["json"], name))
    except ValueError as error:
        raise DataError(f"{name}, {sample.key}: its .json is none: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{name}, {sample.key}: its .json must hold an object, got {str(content)[:40]}")
    return content


def _value(content: dict[str, Any], path: str) -> Any:
    """A field of a json object, deeper ones as a.b; None where there is none."""
    value: Any = content
    for word in path.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value
