"""`kinemae finetune report RUN [OUT.html]`: one HTML page about a fine-tuning run.

The page is self-contained: clips, charts and its script are embedded, and a browser requests nothing else.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import CheckpointError, DataError, log
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.report.render import page_file, render, script_hash, write_page
from kinemae.finetune.report.comparison import gather_comparison
from kinemae.finetune.report.content import gather
from kinemae.finetune.report.run_files import read_run

PAGE_NAME = "report.html"
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of a page.

    Attributes:
        pictures: number of mistakes shown with their clips, for each output of the task.
        validation: folder of the validation data if it has moved; null takes that of the result.
    """

    pictures: int = 12
    validation: str | None = None

    def __post_init__(self) -> None:
        require(self.pictures >= 0, "pictures", "be 0 or more", self.pictures)


def run_report(arguments: argparse.Namespace) -> None:
    """Run the command."""
    given, folder = page_file(arguments.out), Path(arguments.run_dir)
    settings = load_config(ReportConfig, None, arguments.overrides)
    content = write_report(folder, given or folder / PAGE_NAME, settings)
    if arguments.json:
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")


def write_run_report(run_dir: Path) -> None:
    """Write `RUN/report.html` after a training. A failure gives a warning, because the result is complete."""
    try:
        write_report(run_dir, run_dir / PAGE_NAME, ReportConfig())
    except (DataError, CheckpointError, OSError) as error:
        log.warning("no report: %s; fix that and run `kinemae finetune report %s`", error, run_dir)


def write_report(folder: Path, out: Path, settings: ReportConfig) -> dict[str, Any]:
    """Write the page of a run.

    Returns:
        Page, missing files and checks, as JSON.

    Raises:
        CheckpointError: the folder holds no fine-tuning run.
        DataError: the page cannot be written.
    """
    run = read_run(folder)
    content = gather(run, pictures=settings.pictures, validation=settings.validation)
    write_page(out, render_page("run.html", content))
    failed = sum(check.level != "passed" for check in content["checks"])
    log.info("%s: problems and warnings: %d", out, failed)
    return {
        "page": str(out),
        "missing": sorted(run.notes),
        "checks": [{"level": check.level, "text": check.text} for check in content["checks"]],
    }


def render_page(template: str, content: dict[str, Any]) -> str:
    """Render a page with the script that sorts its tables and stops its clips."""
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    return render(_FOLDER / template, {**content, "script": script, "script_hash": script_hash(script)})


def run_comparison(arguments: argparse.Namespace) -> None:
    """Write the page of `kinemae finetune compare RUN RUN ... --html OUT.html`."""
    out = Path(arguments.html)
    if out.suffix != ".html":
        raise ValueError(f"--html {out}: expected the name of a page, as in {out.with_suffix('.html')}")
    content = gather_comparison([read_run(Path(folder)) for folder in arguments.runs])
    write_page(out, render_page("compare.html", content))
    log.info("%s: %d runs", out, len(arguments.runs))
