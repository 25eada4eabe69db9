"""Compare runs: a table of their `result.json` files."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import CheckpointError
from kinemae.pretrain.folder_kinds import FINETUNING, MODEL, kind_of_folder

RESULT_NAME = "result.json"

_HEADINGS = ("run", "encoder", "adapt", "head", "lr", "videos", "top-1 %", "95 % interval", "difference")
_FIRST_NUMBER = 4  # columns from here on are right-aligned


def run_compare(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune compare RUN RUN ...`."""
    results = read_results(arguments.runs)
    sys.stdout.write(json.dumps(results, ensure_ascii=False) if arguments.json else table(results))
    sys.stdout.write("\n")


def read_results(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read the results of runs and add "folder", "name" and the "difference" of top-1 to the first run.

    Raises:
        CheckpointError: a folder has no valid result.
    """
    results = [_read(Path(folder)) for folder in folders]
    for result in results:
        result["difference"] = result["top1"] - results[0]["top1"]
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """Format the results as an aligned table with one line per run."""
    rows = [_HEADINGS, *(_row(result) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = []
    for row in rows:
        cells = zip(row, widths, range(len(row)), strict=True)
        lines.append(
            "  ".join(
                text.rjust(width) if i >= _FIRST_NUMBER else text.ljust(width) for text, width, i in cells
            )
        )
    return "\n".join(line.rstrip() for line in lines)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RESULT_NAME
    evaluate = f"`kinemae finetune evaluate {shlex.quote(str(folder))}`"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        _row({**result, "name": "", "difference": 0.0})
    except OSError as error:
        kind = kind_of_folder(folder)
        if kind not in (FINETUNING, MODEL):
            raise CheckpointError(
                f"{folder}: expected a fine-tuning run with its result, got {kind}; "
                "fix: give the run_dir of a `finetune train`"
            ) from error
        raise CheckpointError(
            f"{path}: expected a result, got no such file; fix: finish the run, or run {evaluate}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected a result of this version, got another file; fix: run {evaluate}"
        ) from error
    return {"name": folder.name, "folder": str(folder), **result}


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    low, high = result["top1_ci95"]
    run = result["run"]
    encoder = "from scratch" if run["encoder"] is None else str(run["encoder"])
    return (
        result["name"],
        f"{encoder}, random weights" if run["encoder"] and run.get("weights") == "random" else encoder,
        run["adapt"],
        run["head"],
        f"{run['lr']:g}",
        str(result["videos"]),
        f"{100 * result['top1']:.1f}",
        f"{100 * low:.1f} - {100 * high:.1f}",
        f"{100 * result['difference']:+.1f}",
    )
