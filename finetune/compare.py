"""The table that sets runs side by side, made from their `result.json` alone."""

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

_HEADINGS = ("run", "encoder", "frozen", "head", "lr", "videos", "top-1 %", "95 % interval", "difference")
_NUMBERS_FROM = 4  # columns from here on are flush right


def run_compare(arguments: argparse.Namespace) -> None:
    """`kinemae finetune compare RUN RUN ...`."""
    results = read_results(arguments.runs)
    sys.stdout.write(json.dumps(results, ensure_ascii=False) if arguments.json else table(results))
    sys.stdout.write("\n")


def read_results(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The results of runs, each with its folder as "folder", its "name" and its "difference" to the first.

    Raises:
        CheckpointError: a folder holds no result, or not one of ours.
    """
    results = [_read(Path(folder)) for folder in folders]
    for result in results:
        result["difference"] = result["top1"] - results[0]["top1"]
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """A plain aligned table with one line a run."""
    rows = [_HEADINGS, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RESULT_NAME
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
            f"{path}: expected a result, got no such file; fix: finish the run, or `{_evaluate(folder)}`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not a result of this version; fix: run `{_evaluate(folder)}`"
        ) from error
    return {"name": folder.name, "folder": str(folder), **result}


def _evaluate(folder: Path) -> str:
    return f"kinemae finetune evaluate {shlex.quote(str(folder))}"


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    low, high = result["top1_ci95"]
    run = result["run"]
    return (
        result["name"],
        _encoder(run),
        "yes" if run["freeze"] else "no",
        run["head"],
        f"{run['lr']:g}",
        str(result["videos"]),
        f"{100 * result['top1']:.1f}",
        f"{100 * low:.1f} - {100 * high:.1f}",
        f"{100 * result['difference']:+.1f}",
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.rjust(width) if column >= _NUMBERS_FROM else text.ljust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]


def _encoder(run: dict[str, Any]) -> str:
    """The initial weights of the encoder."""
    if run["encoder"] is None:
        return "from scratch"
    name = str(run["encoder"])
    return f"{name}, random weights" if run.get("weights") == "random" else name
