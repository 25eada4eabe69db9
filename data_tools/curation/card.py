"""`kinemae data card SHARDS [OUT.md]`: a data card in markdown, with the metadata of the Hugging Face hub.

Every fact comes from the index; nothing is decoded. A fact that the index does not contain is called unknown.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml

from kinemae.data_tools.command import log
from kinemae.data_tools.config import load_config
from kinemae.data_tools.curation.frame_stats import COLUMNS
from kinemae.data_tools.manifest.videos import PROVENANCE
from kinemae.data_tools.report.collection import Collection, open_collection
from kinemae.data_tools.report.duplicates import exact_duplicates
from kinemae.data_tools.report.figures import short, size_text, time_text
from kinemae.data_tools.report.render import write_page
from kinemae.data_tools.report.tables import class_counts, extra_columns, origin, split_row
from kinemae.data_tools.storage.location import local_out, location

UNKNOWN = "unknown"
_SHOWN = 30
_QUANTILES = (0.05, 0.5, 0.95)
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_CLIPS = """\
```python
import kinemae

clips = kinemae.clips("{folder}", frames=16, size=224, batch_size=8)
```

"""
_WEBDATASET = """\
```python
from datasets import load_dataset

samples = load_dataset("webdataset", data_files={{"train": {files}}}, split="train")
```"""


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """Texts of a data card that no index contains.

    Attributes:
        title: null: the name of the folder.
        license: identifier of the hub, for example cc-by-4.0; null: the only value of the column `license`.
        description: what the videos show, and for which purpose they were collected.
        contact: where to ask for the removal of a video.
    """

    title: str | None = None
    license: str | None = None
    description: str = ""
    contact: str = ""


def run_card(arguments: argparse.Namespace) -> None:
    """Run the command."""
    out = arguments.out
    if out is not None and not out.endswith(".md"):
        raise ValueError(f"OUT {out}: expected the name of a markdown file, as in {out}.md")
    config = load_config(CardConfig, None, arguments.overrides)
    folder = location(arguments.shards)
    if out is None and folder.path is None:
        raise ValueError(f"{folder} is remote: expected OUT; fix: `kinemae data card {folder} README.md`")
    target = local_out(out) if out is not None else Path(str(folder.path)) / "README.md"
    if out is None and target.exists() and "`kinemae data card`" not in target.read_text(encoding="utf-8"):
        raise ValueError(
            f"OUT {target}: expected no file or one written by `card`, got another; fix: name OUT.md"
        )
    text = card_text(open_collection(folder), config)
    write_page(target, text)
    log.info("%s", target)
    if arguments.json:
        sys.stdout.write(json.dumps({"card": str(target)}) + "\n")


def card_text(collection: Collection, config: CardConfig) -> str:
    """The card of a data set or of all its splits."""
    title = config.title or collection.name
    sections = {
        "Contents": _table(
            ("split", "videos", "labelled", "duration", "median", "size"), _contents(collection)
        ),
        "Classes": _classes(collection),
        "Provenance": _provenance(collection),
        "Statistics": _statistics(collection),
        "Checks": "\n".join(f"- {line}" for line in _checks(collection)),
        "Columns": _columns(collection),
        "Creation": _creation(collection),
        "Use": _use(collection),
        "Removal of a video": config.contact or f"Contact: {UNKNOWN}.",
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    front = yaml.safe_dump(_metadata(collection, config, title), sort_keys=False, allow_unicode=True)
    about = config.description or f"Content and purpose: {UNKNOWN}."
    return f"---\n{front}---\n\n# {title}\n\n{about}\n\n{body}\n\nMade by `kinemae data card`.\n"


def _metadata(collection: Collection, config: CardConfig, title: str) -> dict[str, Any]:
    found: dict[str, Any] = {"pretty_name": title}
    values = _values(collection, PROVENANCE["license"]) or Counter[Any]()
    if config.license or (len(values) == 1 and None not in values):
        found["license"] = config.license or str(next(iter(values))).lower()
    if any((index.column("label") >= 0).any() for index in collection.indexes):
        found["task_categories"] = ["video-classification"]
    count = len(collection)
    found["size_categories"] = [next((name for most, name in _SIZES if count < most), "n>10M")]
    found["tags"] = ["video", "webdataset", "kinemae"]
    files = [{"split": split or "train", "path": paths} for split, paths in _data_files(collection).items()]
    return found | ({"configs": [{"config_name": "default", "data_files": files}]} if files else {})


def _data_files(collection: Collection) -> dict[str, str | list[str]]:
    """The tars of each split that other programs can load: a pattern, or a list if there are other tars.

    A split with removed samples or with tars of other folders has none.
    """
    found: dict[str, str | list[str]] = {}
    for split, index in zip(collection.splits, collection.indexes, strict=True):
        names, start = index.shards.column("name"), f"{split}/" if split else ""
        if not len(index.removed_R) and not any("/" in name for name in names):
            is_all = set(names) == set(index.folder.list(".tar"))
            found[split] = f"{start}*.tar" if is_all else [f"{start}{name}" for name in names]
    return found


def _use(collection: Collection) -> str:
    """Code examples that load the first split."""
    files, first = _data_files(collection), collection.splits[0]
    clips = _CLIPS.format(folder=first or ".")
    if first in files:
        return clips + _WEBDATASET.format(files=json.dumps(files[first]))
    return clips + (
        "Other programs would load removed samples or find no tars: `kinemae data reshard` writes a data set "
        "for them."
    )


def _contents(collection: Collection) -> Iterable[Sequence[str]]:
    for number in range(len(collection.splits)):
        row = split_row(collection, number)
        times = time_text(row["seconds"]), time_text(row["median_s"])
        counts = f"{row['videos']:,}", f"{row['labelled']:,}"
        yield (row["name"], *counts, *times, size_text(row["bytes"]))


def _classes(collection: Collection) -> str:
    names, counts_SX = class_counts(collection)
    if not names:
        return "The videos have no labels."
    order = np.argsort(-counts_SX.sum(axis=0), kind="stable")[:_SHOWN]
    rows = [(names[at], *(f"{count:,}" for count in counts_SX[:, at])) for at in order]
    more = f"\n\n{len(names) - _SHOWN} more classes." if len(names) > _SHOWN else ""
    return _table(("class", *(split or "videos" for split in collection.splits)), rows) + more


def _values(collection: Collection, names: Sequence[str]) -> Counter[Any] | None:
    """The values of the first of these columns with their numbers; None for null. None without a column."""
    name = next((name for name in names if any(name in index.extra for index in collection.indexes)), None)
    if name is None:
        return None
    found: Counter[Any] = Counter()
    for index in collection.indexes:
        if name in index.extra:
            counts = index.arrow_column(name).value_counts().to_pylist()
            for entry in counts:
                found[None if entry["values"] == "" else entry["values"]] += entry["counts"]
        else:
            found[None] += len(index)
    return found


def _provenance(collection: Collection) -> str:
    rows = []
    for name, spellings in PROVENANCE.items():
        values = _values(collection, spellings)
        if values is None:
            rows.append((name, f"{UNKNOWN}: no column", f"{len(collection):,}"))
            continue
        if name == "source_url":
            urls, values = values, Counter()
            for url, count in urls.items():
                values[None if url is None else urlsplit(str(url)).netloc or "other text"] += count
        for value, count in values.most_common(_SHOWN):
            rows.append((name, UNKNOWN if value is None else str(value), f"{count:,}"))
    return _table(("column", "value", "videos"), rows)


def _statistics(collection: Collection) -> str:
    """Quantiles of the curation columns over all splits."""
    rows = []
    for name, kind in COLUMNS.items():
        parts = [index.column(name) for index in collection.indexes if name in index.extra]
        values = np.concatenate(parts).astype(np.float64) if parts and kind is not str else np.empty(0)
        values = values[~np.isnan(values)]
        if len(values):
            rows.append((f"`{name}`", *(short(float(value)) for value in np.quantile(values, _QUANTILES))))
    if not rows:
        return "The data set has no curation columns."
    return _table(("column", *(f"{100 * level:g} %" for level in _QUANTILES)), rows)


def _checks(collection: Collection) -> Iterable[str]:
    if collection.has_values("content"):
        yield f"{len(exact_duplicates(collection)):,} groups of exact duplicates"
    else:
        yield f"exact duplicates: {UNKNOWN}, the index has no digests"
    if len(collection.splits) > 1:
        for what, column in (("files", "content"), ("groups", "group")):
            if collection.has_values(column):
                yield f"{len(collection.leaks(column)):,} {what} in more than one split"


def _columns(collection: Collection) -> str:
    rows = [
        (f"`{row['name']}`", row["split"], row["kind"], row["filled"], row["values"])
        for row in extra_columns(collection)
        if row["name"] not in COLUMNS
    ]
    return _table(("column", "split", "type", "filled", "values"), rows) if rows else "No additional columns."


def _creation(collection: Collection) -> str:
    parts = [f"Splits: {splits}.\n\n" + _table(("key", "value"), rows) for splits, rows in origin(collection)]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Escape a text so that it neither ends its cell nor begins markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())
