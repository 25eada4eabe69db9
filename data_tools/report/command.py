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

import jinja2

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.report.collection import open_collection
from kinemae.data_tools.report.content import gather
from kinemae.data_tools.report.figures import short, size_text, time_text
from kinemae.data_tools.report.sampled_videos import ReportConfig
from kinemae.data_tools.storage.location import Location, location

PAGE_NAME = "report.html"


def run_report(arguments: argparse.Namespace) -> None:
    """Run the command."""
    out_text, overrides = arguments.out, list(arguments.overrides)
    if out_text and not out_text.endswith(".html") and "=" not in out_text:
        raise ValueError(
            f"OUT {out_text}: expected the name of a page, as in {Path(out_text).with_suffix('.html')}"
        )
    if out_text and not out_text.endswith(".html"):
        overrides.insert(0, out_text)  # it is the first override
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
    failed = sum(check.level != "passed" for check in content["checks"])
    log.info("%s: %d videos, %d problems and warnings", out, content["total"], failed)
    if arguments.json:
        sys.stdout.write(json.dumps(_as_json(out, content), ensure_ascii=False) + "\n")


def render(content: dict[str, Any]) -> str:
    """Render the page as one self-contained text.

    File and class names are untrusted. jinja2 escapes all text, and the page's Content-Security-Policy
    forbids scripts and requests.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=short, size=size_text, time=time_text, thousands="{:,}".format)
    return environment.get_template("page.html").render(content)


def _page_path(given: str | None, folder: Location) -> Path:
    """The path of the page: as given, else inside the data set's folder."""
    if given:
        return Path(given)
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
        "near_duplicates": [[card.key for card in group] for group in content["near_duplicates"]],
        "exact_duplicates": [[card.key for card in group] for group in content["exact"]],
        "leaked_files": len(content["leaks"]["content"]),
        "leaked_groups": len(content["leaks"]["group"]),
        "rejected": len(content["rejected"]),
    }
