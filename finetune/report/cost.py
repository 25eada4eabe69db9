"""Cost of a run: parameters, tokens, time and memory, as far as its files state them."""

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kinemae.data_tools.report.figures import short, time_text
from kinemae.finetune.report.metric_names import is_number
from kinemae.finetune.report.run_files import RunFiles
from kinemae.pretrain.exported_model import WEIGHTS

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def cost_rows(run: RunFiles) -> list[tuple[str, str]]:
    """Names and texts; values that the files do not state are left out."""
    rows = []
    if counts := parameter_counts(run.folder / "model"):
        text = ", ".join(f"{name} {scaled(count)}" for name, count in counts.items())
        rows.append(("Parameters", f"{scaled(sum(counts.values()))} ({text})"))
    rows += [(name, value) for name, value in _stated(run.result)]
    if run.metrics:
        steps = len(run.metrics)
        rows.append(("Training", f"{steps:,} steps of {run.setting('batch.global_clips')} clips"))
        seconds = training_seconds(run)
        if seconds is not None:
            processes = max((int(start.get("processes", 1)) for start in run.starts), default=1)
            text = f"{time_text(seconds)} in the steps, on {processes} process{'es' * (processes > 1)}"
            rows.append(("Training time", text))
        rate = [line["clips_per_s"] for line in run.metrics if "clips_per_s" in line]
        if rate:
            rows.append(("Training speed", f"{short(float(np.median(rate)))} clips/s (median)"))
        memory = [line["memory_gb"] for line in run.metrics if line.get("memory_gb") is not None]
        if memory:
            rows.append(("Peak memory", f"{short(max(memory))} GB on the first process"))
    return rows


def training_seconds(run: RunFiles) -> float | None:
    """Seconds of all steps, from the speed of each report; None without any."""
    batch = run.setting("batch.global_clips")
    if not isinstance(batch, int):
        return None
    seconds, since = 0.0, 0
    for line in run.metrics:
        since += 1
        if line.get("clips_per_s"):
            seconds += since * batch / line["clips_per_s"]
            since = 0
    return seconds or None


def parameter_counts(model: Path) -> dict[str, int]:
    """Number of weights of the encoder and the head, from the headers of their files."""
    files = {"encoder": model / WEIGHTS, "head": model / "head.safetensors"}
    counts = {name: _count(path) for name, path in files.items()}
    return {name: count for name, count in counts.items() if count}


def scaled(count: float) -> str:
    """A large number with three digits and a suffix: 21.9 M."""
    for scale, suffix in _SCALES:
        if count >= scale:
            return f"{short(float(f'{count / scale:.3g}'))} {suffix}"
    return short(count)


def _count(path: Path) -> int:
    """Values of the tensors in a safetensors file; 0 if it cannot be read."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 1 << 26)))
        return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return 0


def _stated(result: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Views, tokens and the costs that the evaluation measured."""
    rows = []
    views, tokens = result.get("views", {}), result.get("tokens", {})
    if views:
        crops = int(views.get("spatial_crops", 1))
        clips = "sliding" if views.get("sliding") else views.get("temporal_clips", 1)
        text = f"{clips} clips x {crops} crop{'s' * (crops > 1)} per video"
        rows.append(("Views when scoring", text))
    if tokens.get("grid"):
        kept = f", {short(tokens['kept'])} kept" if tokens.get("kept") not in (None, tokens["grid"]) else ""
        rows.append(("Tokens per clip", f"{tokens['grid']:,}{kept}"))
    cost = result.get("cost") or {}
    if is_number(cost.get("gflops_per_view")):
        rows.append(("FLOPs per view", f"{scaled(1e9 * cost['gflops_per_view'])} (forward pass)"))
    if is_number(cost.get("seconds")):
        is_known = is_number(cost.get("videos_per_second"))
        speed_text = f", {short(cost['videos_per_second'])} videos/s" if is_known else ""
        rows.append(("Scoring time", f"{time_text(cost['seconds'])}{speed_text}"))
    return rows
