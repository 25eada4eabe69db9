"""Command `kinemae finetune export`: write a model in another format, run it, and compare it with KineMAE."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.config import load_config
from kinemae.data_tools.storage.location import local_out
from kinemae.finetune.conversion.command import check_free, new_path, print_report
from kinemae.finetune.export.base import Exporter
from kinemae.finetune.export.card import write_card
from kinemae.finetune.export.formats import FORMATS
from kinemae.finetune.export.options import ExportOptions
from kinemae.finetune.export.static_model import CLIPS, StaticModel, example_clips
from kinemae.pretrain.model import flops as _counts_cpu_attention  # noqa: F401


def run_export(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune export FOLDER OUT --to FORMAT [key=value]`."""
    out, name = local_out(arguments.out), _format_name(arguments)
    options = load_config(ExportOptions, None, arguments.overrides)
    FORMATS[name].check(name, options)
    check_free(out)
    exporter = FORMATS[name](arguments.folder, options)
    model = exporter.model
    report: dict[str, Any] = {
        "from": arguments.folder,
        "to": name,
        "contents": "encoder" if model.task_model is None else "encoder and head",
        "parameters": sum(each.numel() for each in model.parameters()),
        **exporter.facts,
    }
    if not arguments.dry_run:
        with new_path(out) as partial:
            report |= _write(exporter, partial, options)
            if partial.is_dir():
                write_card(partial, out.name, exporter, report, options, source=Path(arguments.folder))
    print_report(report, model.description, out, arguments, classes=len(model.classes))


def _format_name(arguments: argparse.Namespace) -> str:
    given = next((word for word in arguments.overrides if word.startswith("to=")), None)
    if given is not None:
        raise ValueError(f"expected --to FORMAT, got {given}; fix: write --to {given.removeprefix('to=')}")
    if arguments.to not in FORMATS:
        got = "nothing" if arguments.to is None else repr(arguments.to)
        raise ValueError(f"--to: expected one of {', '.join(FORMATS)}, got {got}; fix: add --to onnx")
    return str(arguments.to)


def _write(exporter: Exporter, partial: Path, options: ExportOptions) -> dict[str, Any]:
    """Write an export and compare it; return facts for the report.

    Raises:
        CheckpointError: the export differs by more than the tolerance.
    """
    model = StaticModel(exporter.model)
    clips = example_clips(exporter.model.clip, options.batch or CLIPS)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(clips[:1])
    exporter.write(partial, clips)
    files = [path for path in partial.rglob("*") if path.is_file()] if partial.is_dir() else [partial]
    report: dict[str, Any] = {
        "gflops_per_clip": counter.get_total_flops() / 1e9,
        "bytes": sum(path.stat().st_size for path in files),
        "checked": options.check,
    }
    return report | (_compare(exporter, model, partial, clips, options) if options.check else {})


def _compare(
    exporter: Exporter, model: StaticModel, partial: Path, clips: Tensor, options: ExportOptions
) -> dict[str, Any]:
    """Run an export with one clip and with all clips, unless the number is fixed."""
    run = exporter.run(partial)
    sizes = [len(clips)] if options.batch else [1, len(clips)]
    differences: dict[str, float] = {}
    for size in sizes:
        with torch.no_grad():
            expected = dict(zip(model.output_names, model(clips[:size]), strict=True))
        for name, value in run(clips[:size]).items():
            found = _difference(value, expected[name])
            differences[name] = max(found, differences.get(name, 0.0))
    tolerance = exporter.tolerance if options.tolerance is None else options.tolerance
    largest = max(differences.values())
    if not largest <= tolerance:  # NaN is an error too
        raise CheckpointError(
            f"{partial.with_suffix('')}: expected outputs within {tolerance:g} of KineMAE's, got a "
            f"difference of {largest:.3g} ({max(differences, key=differences.__getitem__)}); nothing was "
            "written; fix: another format, or tolerance= if this difference is acceptable"
        )
    return {
        "difference": largest,
        "differences": differences,
        "tolerance": tolerance,
        "batch_sizes": sizes,
    }


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value if that is above 1."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))
