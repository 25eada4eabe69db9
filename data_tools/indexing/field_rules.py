"""What the samples of a foreign WebDataset say about themselves: label, group, further values."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.indexing.own_json import Told, is_ours, told
from kinemae.data_tools.indexing.shard_list import ForeignShard, open_shard
from kinemae.data_tools.indexing.tar_members import (
    Contents,
    ForeignSample,
    Member,
    members_of,
    read_member,
    samples_in,
)
from kinemae.data_tools.manifest.entries import class_number
from kinemae.data_tools.manifest.labels import check_label, label_text
from kinemae.data_tools.manifest.table import KNOWN, RESERVED

_AT_ONCE = 8  # requests to a remote store
_LOOKED_AT = 100  # samples that decide what "auto" means


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Where the facts about a video stand in its sample.

    Attributes:
        label: "cls", "txt" or "NAME.cls", the member of that ending; "json.FIELD", a field of the json
            member, deeper ones as json.a.b; "none"; "auto": "ours" where `shard` wrote the json, else "cls",
            "NAME.cls" or "json.label", whichever the first samples have, else "absent", which is "none" and
            refuses a later .cls.
        video: the ending of the member to take where a sample has several videos.
        group: the field of the json member that tells the group.
        columns: fields of the json member that become columns of the index.
        classes: how many classes there are; then every label must be a whole number below it.
        missing_labels: "error", or "reject" to leave out samples without a label by name.
        keys: prefix of these names on the command line, as in "source.args.".
    """

    label: str = "auto"
    video: str = ""
    group: str = ""
    columns: tuple[str, ...] = ()
    classes: int = 0
    missing_labels: str = "error"
    keys: str = ""

    def __post_init__(self) -> None:
        known = self.label in ("auto", "absent", "ours", "cls", "txt", "none")
        fits = known or re.fullmatch(r"json(\.[^.]+)+|[^/]+\.(cls|txt)", self.label) is not None
        require(fits, "label", "be auto, cls, txt, none or json.FIELD, or NAME.cls or NAME.txt", self.label)
        is_known = self.missing_labels in ("error", "reject")
        require(is_known, "missing_labels", "be error or reject", self.missing_labels)
        require(self.classes >= 0, "classes", "be 0 (as many as there are) or more", self.classes)
        for name in self.columns:
            free = name not in (*RESERVED, *KNOWN)
            require(free, "columns", "hold no name that the index uses itself", name)


@dataclass(frozen=True, kw_only=True)
class Described:
    """A sample: its key, its video and metadata as in `SourceVideo`.

    Attributes:
        told: the metadata that `shard` wrote.
    """

    key: str
    video: Member
    label: str | None
    group: str | None
    extra: Mapping[str, Any]
    told: Told | None = None


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A shard's samples.

    Attributes:
        left_out: keys without a video, or without a label where that is allowed, and why.
        ignored: number of files that belong to no sample.
        unread: numbers of the members that no rule reads, by their last ending.
    """

    described: tuple[Described, ...]
    left_out: Mapping[str, str]
    ignored: int
    unread: Mapping[str, int]


def settle(rules: Rules, shards: Sequence[ForeignShard]) -> Rules:
    """Resolve "auto" by the first samples of the first shard."""
    if rules.label != "auto":
        return rules
    for shard in sorted(shards, key=lambda shard: shard.split == "unlabelled"):
        with open_shard(shard.place) as file:
            contents = _contents(file, shard, rules)
            if contents.samples:
                label = _auto(file, contents.samples[:_LOOKED_AT], shard.name)
                is_kept = shard.split != "unlabelled" or label == "ours"
                return replace(rules, label=label if is_kept else "absent")
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
    if shard.split == "unlabelled" and rules.label != "ours":
        rules = replace(rules, label="none")
    contents = _contents(file, shard, rules)
    left_out = dict(contents.left_out)
    described = []
    for sample in contents.samples:
        try:
            described.append(_describe(file, sample, shard, rules))
        except _NoLabel as error:
            if rules.missing_labels == "error":
                raise DataError(
                    f"{error}; fix: {rules.keys}missing_labels=reject leaves such samples out, "
                    f"{rules.keys}label=none takes no labels"
                ) from error
            left_out[sample.key] = f"it has no label from label={rules.label}"
    return Shelf(
        described=tuple(described),
        left_out=left_out,
        ignored=contents.ignored,
        unread=Counter(_unread(contents.samples, rules)),
    )


def read_shelves(shards: Sequence[ForeignShard], rules: Rules) -> list[Shelf]:
    """`read_shelf` of each shard, several at once where they are remote."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(lambda shard: read_shelf(shard, rules), shards))


def _contents(file: IO[bytes], shard: ForeignShard, rules: Rules) -> Contents:
    return samples_in(members_of(file, str(shard.place)), str(shard.place), video=rules.video)


class _NoLabel(DataError):
    """A sample has no label in the place that the rules specify."""


def _unread(samples: Sequence[ForeignSample], rules: Rules) -> Iterator[str]:
    """The last extension of each member that is neither the video nor read by a rule."""
    takes_json = rules.label in ("ours",) or rules.label.startswith("json.") or rules.group or rules.columns
    for sample in samples:
        read = {sample.video, sample.member(rules.label), sample.member("json") if takes_json else None}
        for ending, member in sample.members.items():
            if member not in read:
                yield ending.rpartition(".")[2]


def _auto(file: IO[bytes], samples: Sequence[ForeignSample], name: str) -> str:
    first = samples[0]
    about = _json_of(file, first, name) if first.member("json") else {}
    if is_ours(about):
        return "ours"
    if first.member("cls"):
        return "cls"
    named = [ending for ending in first.members if ending.endswith(".cls")]
    if len(named) == 1:
        return named[0]
    for sample in samples:
        if sample.member("json") and _json_of(file, sample, name).get("label") is not None:
            return "json.label"
    return "absent"


def _describe(file: IO[bytes], sample: ForeignSample, shard: ForeignShard, rules: Rules) -> Described:
    wants_json = rules.label == "ours" or rules.label.startswith("json.") or rules.group or rules.columns
    content = _json_of(file, sample, shard.name) if wants_json else {}
    about = None
    if rules.label == "ours" or is_ours(
        content
    ):  # a column written by `shard` may be the label of another index
        about = told(content, f"{shard.name}, {sample.key}")
    group = _value(content, rules.group) if rules.group else about and about.group
    extra = {field: value for field in rules.columns if (value := _value(content, field)) is not None}
    return Described(
        key=sample.key,
        video=sample.video,
        label=about.label if about and rules.label == "ours" else _label(file, sample, shard, rules, content),
        group=None if group in (None, "") else str(group),
        extra=extra if about is None else {**about.extra, **extra},
        told=about,
    )


def _label(
    file: IO[bytes], sample: ForeignSample, shard: ForeignShard, rules: Rules, content: dict[str, Any]
) -> str | None:
    where = f"{shard.name}, {sample.key}"
    if rules.label == "absent" and sample.member("cls"):
        raise DataError(
            f"{where}: it has a .cls and the first sample has none; fix: set {rules.keys}label=cls or "
            f"{rules.keys}label=none"
        )
    if rules.label in ("none", "absent"):
        return None
    value = _label_value(file, sample, rules.label, content, where)
    if value is None and shard.split == "test":
        return None  # test sets are often published without labels
    text = label_text(value)
    if not text:
        kind = _NoLabel if value in (None, "") else DataError
        raise kind(
            f"{where}: expected a label from label={rules.label}, text or a whole number, got {value!r}; "
            f"the sample has {', '.join([*sample.members, *(f'json.{name}' for name in content)])}"
        )
    return class_number(where, text, rules.classes) if rules.classes else check_label(where, text)


def _label_value(
    file: IO[bytes], sample: ForeignSample, rule: str, content: dict[str, Any], where: str
) -> Any:
    if rule.startswith("json."):
        return _value(content, rule.removeprefix("json."))
    member = sample.member(rule.lower())
    return None if member is None else read_member(file, member, where).decode("utf-8", "replace").strip()


def _json_of(file: IO[bytes], sample: ForeignSample, name: str) -> dict[str, Any]:
    member = sample.member("json")
    if member is None:
        raise _NoLabel(f"{name}, {sample.key}: it has no .json to take its label, group or columns from")
    try:
        content = json.loads(read_member(file, member, name))
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
