"""A run's folder with all files that a report reads, made without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinemae.data_tools.config import load_config, to_yaml
from kinemae.data_tools.index import open_index
from kinemae.finetune.build import build_model, clip_config, describe_encoder
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.evaluation.predictions import FILE, FORMAT, PredictionTable, write_predictions
from kinemae.finetune.labels.data_sets import open_data_sets
from kinemae.finetune.metrics.classification import classification_metrics
from kinemae.finetune.model_file import FinetunedModel, save_model
from kinemae.finetune.report.command import ReportConfig, write_report
from kinemae.finetune.tasks.base import build_task

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "\u202efdp.tnemucod\u2069")
SMALL = (
    *("encoder=null", "clip.frames=4", "clip.stride=2", "clip.size=16"),
    *("model.size=tiny", "model.patch_size=8", "model.width=32", "model.depth=2"),
)
MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run(synth_shards: Path, repo: Path) -> MakeRun:
    """Return a function that makes a run's folder; `right` is the share of right predictions."""

    def make(folder: Path, *, seed: int = 0, right: float = 0.7, overrides: tuple[str, ...] = ()) -> Path:
        folder.mkdir(parents=True)
        sets = [f"data.{name}={synth_shards / name}" for name in ("train", "validation")]
        settings = [*SMALL, *sets, f"run_dir={folder}", f"seed={seed}", *overrides]
        config = load_config(FinetuneConfig, repo / "configs/finetune/demo.yaml", settings)
        (folder / "config.yaml").write_text(to_yaml(config))
        description, task = describe_encoder(config), build_task(config.task)
        open_data_sets(config, task, clip_config(config, description))
        finetuned = FinetunedModel(model=build_model(config, description, task), description=description)
        save_model(folder / "model", finetuned, head=config.head)
        write_scores(folder, synth_shards / "validation", seed=seed, right=right)
        write_curves(folder, seed=seed)
        return folder

    return make


def write_scores(folder: Path, validation: Path, *, seed: int, right: float) -> None:
    """Write random predictions, the first of an unreadable video, and their scores."""
    index = open_index(validation)
    draws = np.random.default_rng(seed)
    classes = [*HOSTILE, *index.classes[len(HOSTILE) :]]
    label_R = index.column("label").astype(int)
    probability_RY = draws.dirichlet(np.ones(len(classes)), size=len(index))
    for row, label in enumerate(label_R):
        if draws.random() < right:
            best = probability_RY[row].argmax()
            probability_RY[row, [label, best]] = probability_RY[row, [best, label]]
    result: dict[str, Any] = {
        "metric": "top1",
        **classification_metrics(probability_RY[1:], label_R[1:], classes),
        "floor": {"top1": 0.5},
        "videos": len(index) - 1,
        "skipped": [{"key": index.sample(0).key, "error": f"cannot decode {HOSTILE[0]}"}],
        "views": {"temporal_clips": 3, "spatial_crops": 1, "total": 3},
        "tokens": {"grid": 8, "kept": 8.0},
        "run": {
            **{"encoder": None, "weights": "random", "adapt": "full", "head": "linear"},
            **{"lr": 1e-3, "epochs": 1, "seed": seed},
        },
        "data": {"validation": str(validation), "fingerprint": index.fingerprint},
    }
    (folder / "result.json").write_text(json.dumps(result))
    samples = [index.sample(position) for position in range(len(index))]
    table = {
        "key": [sample.key for sample in samples],
        "name": [HOSTILE[1], *(sample.name for sample in samples[1:])],
        "group": [sample.group for sample in samples],
        "error": ["cannot decode", *[""] * (len(index) - 1)],
        "loss": [None, *[1.0] * (len(index) - 1)],
        "views": [None, *[3] * (len(index) - 1)],
        "label": label_R.tolist(),
        "prediction": [None, *probability_RY[1:].tolist()],
    }
    write_predictions(PredictionTable(columns=table, provenance={"format": FORMAT}), folder / FILE)


def write_curves(folder: Path, *, seed: int) -> None:
    """Write 250 steps, and 5 validations of which the third is the best and the last ends the run."""
    lines = [
        {"step": step, "loss": 2 - step / 200, "accuracy": step / 300, "lr": 1e-3, "grad_norm": 1.0}
        | ({"clips_per_s": 100.0 + seed, "memory_gb": 1.5} if step % 10 == 9 else {})
        for step in range(250)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = (0.3, 0.5, 0.8, 0.7, 0.6)
    history = [
        {"step": 50 * number + 49, "epoch": number + 1, "top1": score, "loss": 2 - score, "f1": score}
        for number, score in enumerate(scores)
    ]
    history[-1]["stopped"] = True
    (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    start = {
        "command": ["kinemae", "finetune", "train", HOSTILE[0]],
        "versions": {"torch": "2"},
        "processes": 1,
    }
    (folder / "environment.json").write_text(json.dumps([start]))
    entry = {"key": "data.train", "place": "shards/train", "fingerprint": "abc"}
    (folder / "inputs.json").write_text(json.dumps([entry]))


@pytest.fixture(scope="session")
def run_folder(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tuned")


@pytest.fixture(scope="session")
def page(run_folder: Path) -> Path:
    path = run_folder.parent / "page.html"
    write_report(run_folder, path, ReportConfig())
    return path
