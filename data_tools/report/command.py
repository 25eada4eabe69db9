"""`kinemae data report SHARDS [OUT.html]`: one page that shows what is in a data set.

The page stands alone: pictures and drawings are in it, and nothing is fetched when it is opened. Counts,
sizes, lengths, classes, equal files and leakage come from the index and tell of every video. Pictures, motion
and look-alikes come from decoding a seeded choice of at most `samples` videos. Equal data sets give equal
pages.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.report.collection import open_collection
from kinemae.data_tools.report.content import gather
from kinemae.data_tools.report.page import render
from kinemae.data_tools.report.sampled_videos import ReportConfig
from kinemae.data_tools.storage.location import Location, location

PAGE_NAME = "report.html"


def run_report(arguments: argparse.Namespace) -> None:
    """The command."""
    out_text, overrides = arguments.out, list(arguments.overrides)
    if out_text and not out_text.endswith(".html") and "=" not in out_text:
        raise ValueError(
            f"OUT {out_text}: expected the name of a page, as in {Path(out_text).with_suffix('.html')}"
        )
    if out_text and not out_text.endswith(".html"):
        overrides.insert(0, out_text)  # the page was left out
        out_text = None
    settings = load_config(ReportConfig, None, overrides)
    folder = location(arguments.shards)
    out = _page_path(out_text, folder)
    content = gather(open_collection(folder), folder, settings)
    with writing_to(out.parent):
        page = render(content)
        partial = out.with_name(f"{out.name}.partial")
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
        partial.replace(out)
    to_see = sum(finding.level != "good" for finding in content["findings"])
    log.info("%s: %d videos, %d things to see to", out, content["total"], to_see)
    if arguments.json:
        sys.stdout.write(json.dumps(_as_json(out, content), ensure_ascii=False) + "\n")


def _page_path(given: str | None, folder: Location) -> Path:
    """Where the page goes: as asked, else beside the data set.

    Raises:
        ValueError: nothing was asked for a data set that lies elsewhere.
    """
    if given:
        return Path(given)
    if folder.path is None:
        raise ValueError(
            f"{folder} is not on this machine: say where the page goes, as in `report {folder} report.html`"
        )
    return folder.path / PAGE_NAME


def _as_json(out: Path, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "page": str(out),
        "videos": content["total"],
        "looked_at": content["looked_at"],
        "findings": [{"level": finding.level, "text": finding.text} for finding in content["findings"]],
        "unreadable": {card.key: reason for card, reason in content["unreadable"]},
        "static": [card.key for card in content["static"]],
        "blank": [card.key for card in content["blank"]],
        "near_duplicates": [[card.key for card in group] for group in content["alike"]],
        "exact_duplicates": [[card.key for card in group] for group in content["exact"]],
        "leaked_files": len(content["leaks"]["content"]),
        "leaked_groups": len(content["leaks"]["group"]),
        "rejected": len(content["rejected"]),
    }
