"""`kinemae data report SHARDS [OUT.html]`: one HTML page about a data set.

The page is self-contained: images and charts are embedded, and a browser requests nothing else. Counts,
sizes, lengths, classes, exact duplicates and leaks come from the index and cover every video. Images, motion
and near duplicates come from decoding a seeded sample of at most `samples` videos. Equal data sets give equal
pages.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log
from kinemae.data_tools.config import load_config
from kinemae.data_tools.report.collection import open_collection
from kinemae.data_tools.report.content import gather
from kinemae.data_tools.report.render import page_file, render, write_page
from kinemae.data_tools.report.sampled_videos import ReportConfig
from kinemae.data_tools.storage.location import Location, location

PAGE_NAME = "report.html"
_TEMPLATE = Path(__file__).with_name("page.html")


def run_report(arguments: argparse.Namespace) -> None:
    """Run the command."""
    given, folder = page_file(arguments.out), location(arguments.shards)
    settings = load_config(ReportConfig, None, arguments.overrides)
    out = given or _page_path(folder)
    content = gather(open_collection(folder), folder, settings)
    write_page(out, render(_TEMPLATE, content))
    failed = sum(check.level != "passed" for check in content["checks"])
    log.info("%s: %d videos, %d problems and warnings", out, content["total"], failed)
    if arguments.json:
        sys.stdout.write(json.dumps(_as_json(out, content), ensure_ascii=False) + "\n")


def _page_path(folder: Location) -> Path:
    """The path of the page inside the data set's folder."""
    if folder.path is None:
        raise ValueError(f"{folder} is remote: expected OUT; fix: `kinemae data report {folder} report.html`")
    return folder.path / PAGE_NAME


def _as_json(out: Path, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "page": str(out),
        "videos": content["total"],
        "sampled": content["sampled"],
        "checks": [{"level": check.level, "text": check.text} for check in content["checks"]],
        "unreadable": {card.key: reason for card, reason in content["unreadable"]},
        "static": [card.key for card in content["static"]],
        "blank": [card.key for card in content["blank"]],
        "near_duplicate_groups": content["near_duplicate_count"],
        "near_duplicates": [[card.key for card in group] for group in content["near_duplicates"]],
        "exact_duplicates": [[card.key for card in group] for group in content["exact"]],
        "leaked_files": len(content["leaks"]["content"]),
        "leaked_groups": len(content["leaks"]["group"]),
        "rejected": len(content["rejected"]),
    }
