"""Runs of a comparison, grouped by seed: runs whose configs differ only in the seed are one group."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kinemae.data_tools.report.tables import flattened
from kinemae.finetune.report.outputs import ClassOutput, LabelsOutput, NumberOutput, Output
from kinemae.finetune.report.run_files import RunFiles
from kinemae.finetune.report.samples import outputs_of
from kinemae.finetune.report.scores import value_of

# Keys that do not change what a run computes.
_IGNORED = ("seed", "run_dir", "report", "log", "timeouts", "keep_checkpoints", "save_in_background")
_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ only in their seed; a single run is a group of one."""

    name: str
    runs: tuple[RunFiles, ...]

    def values(self, key: str) -> list[float]:
        """A score of the runs that have it."""
        found = [value_of(run.result, key) for run in self.runs]
        return [value for value in found if value is not None]

    def outputs(self) -> dict[str, list[Output]]:
        """The outputs of all runs by name."""
        found: dict[str, list[Output]] = {}
        for run in self.runs:
            for output in outputs_of(run.result, run.samples):
                found.setdefault(output.name, []).append(output)
        return found


def group_by_seed(runs: Sequence[RunFiles]) -> list[Group]:
    """Group runs in the order of their first one."""
    names = unique_names(runs)
    members: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        members.setdefault(_identity(run, number), []).append(number)
    return [
        Group(
            name=_group_name([names[number] for number in numbers]),
            runs=tuple(runs[number] for number in numbers),
        )
        for numbers in members.values()
    ]


def unique_names(runs: Sequence[RunFiles]) -> list[str]:
    """Names of the runs' folders, or their paths if two folders have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _identity(run: RunFiles, number: int) -> str:
    """The config without keys that may differ inside a group; a run without config is alone."""
    if not run.config:
        return f"run {number}"
    return json.dumps(
        {key: value for key, value in run.config.items() if key not in _IGNORED}, sort_keys=True
    )


def _group_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    equal = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in equal).rstrip("-_. 0123456789") or names[0]
    return f"{common} ({len(names)} seeds)"


def differing_keys(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Config keys with different values, with the value of each run."""
    flat = [dict(flattened(dict(run.config))) if run.config else {} for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each if key != "run_dir")
    rows = [(key, [each.get(key, "") for each in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


@dataclass(frozen=True, kw_only=True)
class SampleScores:
    """Mean score of each sample over the runs of a group.

    Attributes:
        what: of the mean over the samples.
        is_fraction: whether it is a fraction of right decisions, otherwise an error.
    """

    what: str
    is_fraction: bool
    scores: Mapping[str, float]
    groups: Mapping[str, str]


def sample_scores(outputs: Sequence[Output]) -> SampleScores | None:
    """Score every sample that all runs of a group predicted; None without predictions."""
    parts = [_scores(output) for output in outputs if len(output.keys)]
    if not parts or len(parts) < len(outputs):
        return None
    common = [key for key in parts[0] if all(key in part for part in parts)]
    what, is_fraction = _meaning(outputs[0])
    return SampleScores(
        what=what,
        is_fraction=is_fraction,
        scores={key: float(np.mean([part[key] for part in parts])) for key in common},
        groups=dict(zip(outputs[0].keys, outputs[0].groups, strict=True)),
    )


def _scores(output: Output) -> dict[str, float]:
    value_R: Any
    if isinstance(output, ClassOutput):
        value_R = output.is_right_R.astype(float)
    elif isinstance(output, LabelsOutput):
        is_right_RY = (output.probability_RY >= _THRESHOLD) == (output.target_RY > 0)
        known_RY = ~np.isnan(output.target_RY)
        value_R = (is_right_RY & known_RY).sum(axis=1) / np.maximum(known_RY.sum(axis=1), 1)
    else:
        assert isinstance(output, NumberOutput)
        error_RV = np.abs(output.prediction_RV - output.target_RV)
        known_RV = ~np.isnan(error_RV)
        value_R = np.where(known_RV, error_RV, 0).sum(axis=1) / np.maximum(known_RV.sum(axis=1), 1)
    return dict(zip(output.keys, value_R.tolist(), strict=True))


def _meaning(output: Output) -> tuple[str, bool]:
    if isinstance(output, ClassOutput):
        return "accuracy", True
    if isinstance(output, LabelsOutput):
        return "right decisions about classes", True
    return "mean absolute error", False
