"""`kinemae data list SOURCE LIST.arrow`: list the videos of a collection once, for all parts of `shard`."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.components import build_component
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.layouts.base import Layout
from kinemae.data_tools.sharding.plan import ShardConfig, list_collection
from kinemae.data_tools.sharding.video_list import EXTENSION, is_list, write_list
from kinemae.data_tools.storage.location import location


def run_list(arguments: argparse.Namespace) -> None:
    """Run the command."""
    settings = load_config(ShardConfig, None, arguments.overrides)
    require(settings.part is None, "part", "be null: a list holds all parts", settings.part)
    root, out = location(arguments.source), location(arguments.out)
    if not is_list(out) or is_list(root):
        wrong = root if is_list(root) else out
        raise ValueError(
            f"{wrong}: expected a collection as SOURCE and a new file NAME{EXTENSION} as LIST; fix: rename it"
        )
    if out.exists():
        raise ValueError(f"LIST {out}: expected a new file, got an existing one; fix: choose another name")
    layout = build_component("kinemae.data_tools.layouts", settings.layout, Layout)
    listing = list_collection(root, settings, layout)
    with writing_to(Path(str(out))):
        write_list(listing, out)
    counts = Counter(listing.splits)
    splits = ", ".join(f"{split} {count}" for split, count in sorted(counts.items()))
    log.info("%s: %d videos, %d classes, %s", out, listing.total, len(listing.classes), splits)
    if arguments.json:
        counted = {"videos": listing.total, "classes": list(listing.classes), "splits": dict(counts)}
        sys.stdout.write(json.dumps(counted) + "\n")
