"""Metadata of WebDataset samples: labels, groups and columns, found by the rules of the config."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import IO, Any, ClassVar

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import require
from kinemae.data_tools.index import COLUMNS, DESCRIPTION_FORMAT, DESCRIPTION_KEY, NO_LABEL, VideoInfo
from kinemae.data_tools.indexing.shard_list import InputShard, open_shard
from kinemae.data_tools.indexing.tar_members import (
    TarContents,
    TarMember,
    TarSample,
    group_members,
    read_member,
    read_members,
)
from kinemae.data_tools.manifest.class_map import check_label, class_number, label_text, sorted_classes
from kinemae.data_tools.manifest.table import KNOWN, RESERVED

_MAX_REQUESTS = 8  # at a time to a remote store
_AUTO_SAMPLES = 100  # samples that decide the meaning of "auto"
_STORED_TYPES: dict[str, tuple[type, ...]] = {
    "label": (str, type(None)),
    **dict.fromkeys(("name", "group", "codec", "content"), (str,)),
    **dict.fromkeys(("label_index", "frames", "width", "height", "crc32"), (int,)),
    **dict.fromkeys(("reference_stride", "reference_phase", "frame_step"), (int,)),
    **dict.fromkeys(("start_s", "duration_s"), (int, float)),
}
_INFO = tuple(each.name for each in fields(VideoInfo))


@dataclass(frozen=True, kw_only=True)
class FieldRules:
    """Rules for the metadata of samples; the configs of `index` and `source.name=webdataset` extend them.

    Attributes:
        label: "cls", "txt", "NAME.cls" or "NAME.txt" for the member with that extension; "json.FIELD" for a
            field of the json member (nested: json.a.b); "none"; "auto" for "kinemae" if `shard` wrote the
            json, else the first of "cls", "NAME.cls" and "json.label" that the first samples have, else
            "absent": no labels, and an error if a later sample has a .cls.
        video: extension of the video member in samples with several videos.
        group: field of the json member that gives the group.
        columns: fields of the json member that become columns of the index.
        num_classes: number of classes, with whole numbers below it as labels; 0 takes any labels.
        missing_labels: "error", or "reject" to skip samples without a label.
        by_split: whether folders (train/) and file names (train-0000.tar) give the split.
        key_prefix: prefix of these keys on the command line.
    """

    label: str = "auto"
    video: str = ""
    group: str = ""
    columns: list[str] = field(default_factory=list)
    num_classes: int = 0
    missing_labels: str = "error"
    by_split: bool = True
    key_prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        known = ("auto", "absent", "kinemae", "cls", "txt", "none")
        fits = self.label in known or re.fullmatch(r"json(\.[^.]+)+|[^/]+\.(cls|txt)", self.label) is not None
        expected = "be auto, cls, txt, none or json.FIELD, or NAME.cls or NAME.txt"
        require(fits, f"{self.key_prefix}label", expected, self.label)
        is_known = self.missing_labels in ("error", "reject")
        require(is_known, f"{self.key_prefix}missing_labels", "be error or reject", self.missing_labels)
        key = f"{self.key_prefix}num_classes"
        require(self.num_classes >= 0, key, "be 0 (any labels) or more", self.num_classes)
        for name in self.columns:
            is_free = name not in (*RESERVED, *KNOWN)
            require(is_free, f"{self.key_prefix}columns", "not hold names of the index's own columns", name)

    @property
    def needs_json(self) -> bool:
        """True if a rule reads the json member."""
        is_json = self.label == "kinemae" or self.label.startswith("json.")
        return is_json or bool(self.group or self.columns)


@dataclass(frozen=True, kw_only=True)
class StoredRow:
    """The index row in a KEY.json of `shard`; `kinemae.data_tools.index.COLUMNS` documents the fields.

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
    frame_step: int
    extra: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SampleInfo:
    """A sample: its key, its video and its metadata, as in `SourceVideo`.

    Attributes:
        stored: the index row, if `shard` wrote the sample.
    """

    key: str
    video: TarMember
    label: str | None
    group: str | None
    extra: Mapping[str, Any]
    stored: StoredRow | None = None


@dataclass(frozen=True, kw_only=True)
class ShardContents:
    """The samples of a shard.

    Attributes:
        skipped: keys without a video, or without a label if `missing_labels` is "reject", with reasons.
        ignored: number of files that belong to no sample.
        unused: number of members that no rule reads, by their last extension.
    """

    samples: tuple[SampleInfo, ...]
    skipped: Mapping[str, str]
    ignored: int
    unused: Mapping[str, int]


class _MissingLabel(DataError):
    """A sample has no label where the rules look for it."""


def resolve_label(rules: FieldRules, shards: Sequence[InputShard]) -> FieldRules:
    """Replace the label rule "auto" by the rule that the first samples of the first shard fit."""
    if rules.label != "auto":
        return rules
    for shard in sorted(shards, key=lambda shard: shard.split == "unlabelled"):
        with open_shard(shard.place) as file:
            samples = _read_contents(file, shard, rules).samples
            if samples:
                label = _auto(file, samples[:_AUTO_SAMPLES], shard.name)
                is_kept = shard.split != "unlabelled" or label == "kinemae"
                return replace(rules, label=label if is_kept else "absent")
    return replace(rules, label="absent")


def read_shard(shard: InputShard, rules: FieldRules, file: IO[bytes] | None = None) -> ShardContents:
    """Read headers and small members of a shard; no video is read.

    Args:
        file: the opened shard; None opens it.

    Raises:
        DataError: the tar is damaged, a key is repeated, or a label is missing or invalid.
    """
    if file is None:
        with open_shard(shard.place) as opened:
            return read_shard(shard, rules, opened)
    if shard.split == "unlabelled" and rules.label != "kinemae":
        rules = replace(rules, label="none")
    contents = _read_contents(file, shard, rules)
    skipped = dict(contents.skipped)
    samples = []
    for sample in contents.samples:
        try:
            samples.append(_sample_info(file, sample, shard, rules))
        except _MissingLabel as error:
            if rules.missing_labels == "error":
                prefix = rules.key_prefix
                raise DataError(
                    f"{error}; fix: set {prefix}missing_labels=reject to skip such samples, or "
                    f"{prefix}label=none for no labels"
                ) from error
            skipped[sample.key] = f"it has no label from label={rules.label}"
    return ShardContents(
        samples=tuple(samples),
        skipped=skipped,
        ignored=contents.ignored,
        unused=Counter(_unused(contents.samples, rules)),
    )


def read_stored_row(content: Any, where: str) -> StoredRow | None:
    """Parse the index row in a KEY.json of `shard`; None for any other json.

    Args:
        where: tar and sample, for errors.

    Raises:
        DataError: the row is damaged.
    """
    is_row = isinstance(content, dict) and _is_stored_row(content)
    return _parse_stored_row(content, where) if is_row else None


def read_shards(shards: Sequence[InputShard], rules: FieldRules) -> list[ShardContents]:
    """Read the headers of all shards, several at a time."""
    with ThreadPoolExecutor(_MAX_REQUESTS) as threads:
        return list(threads.map(lambda shard: read_shard(shard, rules), shards))


def warn_of_unused(unused: Iterable[Mapping[str, int]], rules: FieldRules) -> None:
    """Log the members that no rule reads if "auto" found no label.

    Args:
        unused: the counts of each shard, as in `ShardContents`.
    """
    total = sum((Counter(counts) for counts in unused), Counter[str]())
    if rules.label == "absent" and total:
        key = f"{rules.key_prefix}label"
        log.warning(
            "no labels were found; members that no rule reads: %s; %s=json.FIELD, %s=txt or %s=NAME.cls "
            "reads labels from them, %s=none states that there are no labels",
            *(", ".join(f"{count} .{name}" for name, count in sorted(total.items())), key, key, key, key),
        )


def warn_of_skipped(shards: Sequence[InputShard], contents: Sequence[ShardContents]) -> None:
    """Log the number of skipped samples and the reason of the first one."""
    skipped = [
        f"{shard.name}, {key}: {reason}"
        for shard, content in zip(shards, contents, strict=True)
        for key, reason in content.skipped.items()
    ]
    if skipped:
        log.warning("%d samples are skipped, first %s", len(skipped), skipped[0])


def stored_classes(pairs: Iterable[tuple[str, int]], lists: Sequence[Sequence[str]]) -> list[str]:
    """The classes of data sets made by `shard`, in order.

    Args:
        pairs: label and class number of each sample that has them.
        lists: class lists next to the shards; a consistent list also names classes without a video.
    """
    numbers: dict[str, int] = {}
    by_number: dict[int, str] = {}
    pairs = list(pairs)
    for label, number in pairs:
        if numbers.setdefault(label, number) != number or by_number.setdefault(number, label) != label:
            log.warning(
                "the shards have different class numbers, %r is %d in one: classes are renumbered",
                *(label, number),
            )
            return sorted_classes([label for label, _ in pairs])
    for names in lists:
        if all(number < len(names) and names[number] == label for label, number in numbers.items()):
            return list(names)
    classes = [by_number.get(number, "") for number in range(max(by_number, default=NO_LABEL) + 1)]
    if "" in classes:
        log.warning(
            "class %d has neither a video nor a name: classes are renumbered; classes=OUT keeps the numbers",
            classes.index(""),
        )
        return sorted_classes(list(numbers))
    return classes


def _read_contents(file: IO[bytes], shard: InputShard, rules: FieldRules) -> TarContents:
    name = str(shard.place)
    return group_members(read_members(file, name), name, video=rules.video)


def _unused(samples: Sequence[TarSample], rules: FieldRules) -> Iterator[str]:
    for sample in samples:
        json_member = sample.member("json") if rules.needs_json else None
        used = {sample.video, sample.member(rules.label), json_member}
        for extension, member in sample.members.items():
            if member not in used:
                yield extension.rpartition(".")[2]


def _auto(file: IO[bytes], samples: Sequence[TarSample], name: str) -> str:
    first = samples[0]
    if first.member("json") and _is_stored_row(_read_json(file, first, name)):
        return "kinemae"
    if first.member("cls"):
        return "cls"
    named = [extension for extension in first.members if extension.endswith(".cls")]
    if len(named) == 1:
        return named[0]
    for sample in samples:
        if sample.member("json") and _read_json(file, sample, name).get("label") is not None:
            return "json.label"
    return "absent"


def _sample_info(file: IO[bytes], sample: TarSample, shard: InputShard, rules: FieldRules) -> SampleInfo:
    content = _read_json(file, sample, shard.name) if rules.needs_json else {}
    stored = None
    # With another label rule the index still takes the other columns that `shard` wrote.
    if rules.label == "kinemae" or _is_stored_row(content):
        stored = _parse_stored_row(content, f"{shard.name}, {sample.key}")
    if stored is not None and rules.label == "kinemae":
        label = stored.label
    else:
        label = _label(file, sample, shard, rules, content)
    group = _value(content, rules.group) if rules.group else stored and stored.group
    extra = {name: value for name in rules.columns if (value := _value(content, name)) is not None}
    return SampleInfo(
        key=sample.key,
        video=sample.video,
        label=label,
        group=None if group in (None, "") else str(group),
        extra=extra if stored is None else {**stored.extra, **extra},
        stored=stored,
    )


def _label(
    file: IO[bytes], sample: TarSample, shard: InputShard, rules: FieldRules, content: dict[str, Any]
) -> str | None:
    where = f"{shard.name}, {sample.key}"
    if rules.label == "absent" and sample.member("cls"):
        raise DataError(
            f"{where}: expected no .cls, as in the first sample, got one; fix: set {rules.key_prefix}"
            f"label=cls or {rules.key_prefix}label=none"
        )
    if rules.label in ("none", "absent"):
        return None
    value: Any = None
    if rules.label.startswith("json."):
        value = _value(content, rules.label.removeprefix("json."))
    elif (member := sample.member(rules.label.lower())) is not None:
        value = read_member(file, member, where).decode("utf-8", "replace").strip()
    if value is None and shard.split == "test":
        return None  # test sets are often published without labels
    text = label_text(value)
    if not text:
        kind = _MissingLabel if value in (None, "") else DataError
        raise kind(
            f"{where}: expected a label from label={rules.label}, text or a whole number, got {value!r}; "
            f"the sample has {', '.join([*sample.members, *(f'json.{name}' for name in content)])}"
        )
    if rules.num_classes:
        return class_number(where, text, rules.num_classes, f"{rules.key_prefix}num_classes")
    return check_label(where, text)


def _read_json(file: IO[bytes], sample: TarSample, name: str) -> dict[str, Any]:
    member = sample.member("json")
    if member is None:
        raise _MissingLabel(f"{name}, {sample.key}: expected a .json with label, group or columns, got none")
    try:
        content = json.loads(read_member(file, member, name))
    except ValueError as error:
        raise DataError(
            f"{name}, {sample.key}: expected JSON in its .json, got invalid text: {error}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{name}, {sample.key}: expected an object in its .json, got {str(content)[:40]}")
    return content


def _value(content: dict[str, Any], path: str) -> Any:
    """A field of a json object, nested fields as a.b; None if the field is absent."""
    value: Any = content
    for word in path.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


def _is_stored_row(content: Mapping[str, Any]) -> bool:
    return content.get(DESCRIPTION_KEY) == DESCRIPTION_FORMAT


def _parse_stored_row(content: Mapping[str, Any], where: str) -> StoredRow:
    if not _is_stored_row(content):
        raise DataError(
            f"{where}: expected {DESCRIPTION_KEY}={DESCRIPTION_FORMAT} in its .json as in the first, got "
            f"{content.get(DESCRIPTION_KEY)!r}; fix: add label=json.label to read all as any WebDataset"
        )
    content = {"frame_step": 1, **content}
    for name, types in _STORED_TYPES.items():
        value = content.get(name)
        is_good = isinstance(value, types) and not isinstance(value, bool) and name in content
        if not is_good or (isinstance(value, float) and not math.isfinite(value)):
            raise DataError(
                f"{where}: expected {name} in its .json as `shard` writes it, got {value!r}; "
                "fix: download the shard again"
            )
    own = {name for name in content if name not in (*COLUMNS.names, "label_index", DESCRIPTION_KEY)}
    return StoredRow(
        **{name: content[name] for name in _STORED_TYPES if name not in _INFO},
        info=VideoInfo(**{name: content[name] for name in _INFO}),
        extra={name: content[name] for name in sorted(own) if content[name] is not None},
    )
