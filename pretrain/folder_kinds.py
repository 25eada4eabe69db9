"""Detect the kind of a folder by its file names: a run, an exported model, a data set. Needs no torch."""

from collections.abc import Container
from pathlib import Path

import yaml

PRETRAINING, FINETUNING = "a pretraining run", "a fine-tuning run"
ENCODER, MODEL, EXTERNAL = "an exported encoder", "a fine-tuned model", "a model of transformers"
DATA, ABSENT, FILE, EMPTY, OTHER = "a data set", "no such folder", "a file", "an empty folder", "no run"

ENCODER_FOLDER, MODEL_FOLDER = "encoder", "model"
_FILES = (
    ("head.json", MODEL),
    ("encoder.json", ENCODER),
    ("dataset.json", DATA),
    ("train/dataset.json", DATA),
    ("config.json", EXTERNAL),
)


def kind_of_folder(folder: Path) -> str:
    """The kind of a folder as a phrase to read after "got"."""
    if not folder.is_dir():
        return FILE if folder.exists() else ABSENT
    run = kind_of_run(folder)
    if run is not None:
        return run
    found = next((kind for name, kind in _FILES if (folder / name).is_file()), None)
    return found or (OTHER if any(folder.iterdir()) else EMPTY)


def kind_of_run(run_dir: Path) -> str | None:
    """Pretraining or fine-tuning, by the keys of the run's config; None if the folder has no run."""
    try:
        stored = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return kind_of_config(stored) if isinstance(stored, dict) else None


def kind_of_config(keys: Container[str]) -> str | None:
    """The kind of run, by the keys of its config."""
    return PRETRAINING if "masking" in keys else FINETUNING if "head" in keys else None


def exported_in(run_dir: Path) -> Path | None:
    """The exported model of a run; None if it has none."""
    places = ((MODEL_FOLDER, "head.json"), (ENCODER_FOLDER, "encoder.json"))
    return next((run_dir / name for name, file in places if (run_dir / name / file).is_file()), None)
