"""Section `run` of `throughput.py`: a pretraining run with its loader, on synthetic videos."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

_REPORT_STEPS, _REPORTS, _WARM_UP = 5, 6, 2
_VIDEOS = 128


def make_shards(folder: Path, *, pixels: int) -> Path:
    """Shards of synthetic videos of this height and width."""
    words = [f"unlabelled={_VIDEOS}", "train_per_class=1", "validation_per_class=1"]
    scene = ["scene.frames=64", f"scene.size={pixels}"]
    _kinemae("data", "synth", str(folder / "videos"), *words, *scene)
    _kinemae("data", "shard", str(folder / "videos"), str(folder / "shards"))
    return folder / "shards" / "unlabelled"


def measure_run(config: list[str], shards: Path, folder: Path, *, device: str) -> list[dict[str, Any]]:
    """Train a few steps; the medians of the reports after the first ones.

    Args:
        config: a config, and its overrides.
        folder: for the run.
    """
    steps = _REPORTS * _REPORT_STEPS
    run = [f"run_dir={folder / 'run'}", f"data.shards={shards}", f"steps={steps}"]
    short = [f"log.every_steps={_REPORT_STEPS}", f"save_every_steps={steps}", f"engine.device={device}"]
    quiet = ["pictures.every_steps=0", "monitor.every_steps=0"]
    _kinemae("pretrain", *config, *run, *short, *quiet)
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    reports = [line for line in lines if "clips_per_s" in line][_WARM_UP:]
    names = ("clips_per_s", "data_wait_fraction", "tflops_per_device", "mfu", "memory_gb")
    medians = {
        name: statistics.median(report[name] for report in reports) for name in names if name in reports[0]
    }
    rates = [report["clips_per_s"] for report in reports]
    return [{"config": " ".join(config), **medians, "low": min(rates), "high": max(rates)}]


def _kinemae(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "kinemae", *words], check=True, stdout=subprocess.DEVNULL)
