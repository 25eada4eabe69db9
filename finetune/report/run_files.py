"""Files of a fine-tuning run, as a report reads them. A missing file gives a note, not an error."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.files import read_jsonl
from kinemae.finetune.compare import RESULT_NAME
from kinemae.finetune.evaluation.predictions import FILE as PREDICTIONS
from kinemae.finetune.report.samples import Samples, read_samples
from kinemae.pretrain.folder_kinds import FINETUNING, MODEL, kind_of_folder

_NOTES = {
    RESULT_NAME: "{file} is missing or damaged: there are no scores. To score the run: {evaluate}",
    PREDICTIONS: (
        "{file} is missing or damaged: there are no predictions of single samples. To write them: {evaluate}"
    ),
    "metrics.jsonl": "{file} is missing or empty: there are no training curves.",
    "validation.jsonl": "The run was not validated during training ({file} is missing or empty).",
    "config.yaml": "{file} is missing or damaged: the config is unknown.",
    "environment.json": "{file} is missing or damaged: versions and times are unknown.",
    "inputs.json": "{file} is missing or damaged: the fingerprints of the data are unknown.",
}


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Files of a run's folder.

    Attributes:
        metrics: one line per training step.
        validation: one line per validation during training.
        samples: predictions of single samples.
        starts: the record of every start, oldest first.
        inputs: data sets and encoders.
        notes: by file name, a sentence for each missing file.
    """

    folder: Path
    result: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    validation: tuple[Mapping[str, Any], ...]
    samples: Samples | None
    config: Mapping[str, Any]
    starts: tuple[Mapping[str, Any], ...]
    inputs: tuple[Mapping[str, Any], ...]
    notes: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def task(self) -> Mapping[str, Any]:
        """Name and arguments of the task."""
        return self.config.get("task") or {"name": "classification", "args": {}}

    @property
    def metric(self) -> str:
        """Key of the score that the run is judged by."""
        return str(self.result.get("metric", "top1" if "top1" in self.result else ""))

    def setting(self, key: str) -> Any:
        """The config's value of a dotted key; None if it is unknown."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run.

    Raises:
        CheckpointError: the folder holds neither a fine-tuning run nor a fine-tuned model.
    """
    kind = kind_of_folder(folder)
    if kind not in (FINETUNING, MODEL):
        raise CheckpointError(
            f"{folder}: expected a fine-tuning run, got {kind}; fix: give the run_dir of a `finetune train`"
        )
    missing: list[str] = []

    def read(name: str, reader: Callable[[Path], Any], empty: Any) -> Any:
        try:
            found = reader(folder / name)
        except (OSError, ValueError, yaml.YAMLError):  # JSON, text and Arrow errors are ValueErrors
            found = None
        if not found or not isinstance(found, type(empty)):
            missing.append(name)
            return empty
        return found

    values = {
        "result": read(RESULT_NAME, _json, {}),
        "metrics": read("metrics.jsonl", _lines, ()),
        "validation": read("validation.jsonl", _lines, ()),
        "config": read("config.yaml", lambda path: yaml.safe_load(path.read_text(encoding="utf-8")), {}),
        "starts": tuple(read("environment.json", _json, [])),
        "inputs": tuple(read("inputs.json", _json, [])),
    }
    samples = read_samples(folder / PREDICTIONS)
    if samples is None:
        missing.append(PREDICTIONS)
    evaluate = f"kinemae finetune evaluate {shlex.quote(str(folder))}"
    notes = {name: _NOTES[name].format(file=name, evaluate=evaluate) for name in missing}
    return RunFiles(folder=folder, samples=samples, notes=notes, **values)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> tuple[Any, ...]:
    return tuple(line for line in read_jsonl(path) if isinstance(line, dict) and "step" in line)
