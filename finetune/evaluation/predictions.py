"""The table of predictions of a run, `predictions.parquet`: one row per sample of the scored data.

    key, name, group      of the sample
    error                 why the sample could not be read; "" for a readable one
    loss, views           loss averaged over the views; number of views; null for an unreadable sample
    label, value, ...     true values, see `Targets.of_sample`
    prediction, ...       predicted values, see `Task.combine`: probability of each class, or numbers
    predicted             number of the predicted class, for tasks with one class per sample
    label_name, predicted_name     names of true and predicted class

With several label columns, the name of the column and a slash precede the names of the values. The file's
metadata has JSON under the key "kinemae": format, digest of the model, task, views, data and config.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.files import replaced_file
from kinemae.data_tools.index import ShardIndex
from kinemae.finetune.metrics.classification import is_in_top
from kinemae.finetune.tasks.base import SamplePrediction, Targets
from kinemae.finetune.tasks.ordinal import median_classes

FILE = "predictions.parquet"
FORMAT = 1
_METADATA = b"kinemae"
_COMMON = ("key", "name", "group", "error", "loss", "views")
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class PredictionTable:
    """Predictions of the samples of a data set, ordered by position.

    Attributes:
        columns: one value per sample, None where it is unknown; see the module.
        provenance: the file's metadata.
    """

    columns: Mapping[str, list[Any]]
    provenance: Mapping[str, Any]

    @property
    def groups(self) -> list[str] | None:
        """Group of each sample; None if no group has two samples."""
        named = [group for group in self.columns["group"] if group]
        return self.columns["group"] if len(set(named)) < len(named) else None

    def outputs(self) -> list[str]:
        """Prefixes of the names of the outputs: "" for one, or "COLUMN/" for each label column."""
        return [
            name.removesuffix("prediction") for name in self.columns if name.split("/")[-1] == "prediction"
        ]

    def scores(self) -> dict[str, np.ndarray]:
        """Return scores of each sample by name, NaN for an unreadable or unlabelled one.

        "top1", "top5": 1 if the true class is the predicted one, or among the five most probable. "mae": mean
        absolute error. "loss". The prefix of the output precedes the name.
        """
        found: dict[str, np.ndarray] = {}
        for prefix in self.outputs():
            if f"{prefix}predicted" in self.columns:
                found |= self._class_scores(prefix)
            elif f"{prefix}value" in self.columns:
                guess, true = self.columns[f"{prefix}prediction"], self.columns[f"{prefix}value"]
                found[f"{prefix}mae"] = np.array(
                    [_mean_error(*pair) for pair in zip(guess, true, strict=True)]
                )
        return {**found, "loss": np.array(self.columns["loss"], dtype=np.float64)}

    def _class_scores(self, prefix: str) -> dict[str, np.ndarray]:
        label_R = self.labels(prefix)
        guess_R = _integers(self.columns[f"{prefix}predicted"])
        probabilities = self.columns[f"{prefix}prediction"]
        is_known_R = (label_R >= 0) & (guess_R >= 0)
        scores = {"top1": np.where(is_known_R, guess_R == label_R, np.nan)}
        known = np.flatnonzero(is_known_R)
        if len(known) and len(probabilities[known[0]]) > _TOP:
            probability_KY = np.array([probabilities[i] for i in known])
            scores["top5"] = np.full(len(label_R), np.nan)
            scores["top5"][known] = is_in_top(probability_KY, label_R[known], k=_TOP)
        return {f"{prefix}{name}": score_R for name, score_R in scores.items()}

    def labels(self, prefix: str = "") -> np.ndarray:
        """Number of the true class of each sample; -1 for none."""
        return _integers(self.columns[f"{prefix}label"])


def prediction_table(
    predictions: Sequence[SamplePrediction],
    targets: Targets,
    index: ShardIndex,
    result: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> PredictionTable:
    """Collect predictions with the true values.

    Args:
        predictions: ordered by position.
        result: scores of the task; they tell the class names and the kind of each output.
    """
    positions = [each.position for each in predictions]
    names, groups = index.column("name")[positions], index.column("group")[positions]
    is_read = [each.values is not None for each in predictions]
    columns: dict[str, list[Any]] = {
        "key": [each.key for each in predictions],
        "name": names.tolist(),
        "group": [group or "" for group in groups.tolist()],
        "error": [each.error for each in predictions],
        "loss": [each.loss if read else None for each, read in zip(predictions, is_read, strict=True)],
        "views": [each.views if read else None for each, read in zip(predictions, is_read, strict=True)],
    }
    true = [targets.of_sample(position) for position in positions]
    for name in dict.fromkeys(name for row in true for name in row):
        columns.setdefault(name, [row.get(name) for row in true])
    values = [each.values or {} for each in predictions]
    for name in dict.fromkeys(name for row in values for name in row):
        columns[name] = [row[name].tolist() if name in row else None for row in values]
    parts = result.get("columns")
    named = {f"{name}/": part for name, part in parts.items()} if isinstance(parts, Mapping) else {"": result}
    for prefix, part in named.items():
        is_single = all(isinstance(label, int | None) for label in columns.get(f"{prefix}label", [[]]))
        if is_single and ("confusion_matrix" in part or "mae_classes" in part):
            columns |= _class_columns(columns, prefix, part)
    return PredictionTable(columns=columns, provenance={"format": FORMAT, **provenance})


def write_predictions(table: PredictionTable, path: Path) -> None:
    """Write a table, complete or absent."""
    arrays = {name: pa.array(values) for name, values in table.columns.items()}
    metadata = {_METADATA: json.dumps(table.provenance, ensure_ascii=False).encode()}
    with replaced_file(path) as partial:
        pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), partial)


def read_predictions(path: Path) -> PredictionTable:
    """Read a table of predictions.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or of another format.
    """
    try:
        table = pq.read_table(path)
        provenance = json.loads((table.schema.metadata or {})[_METADATA])
        is_known = provenance["format"] == FORMAT and set(_COMMON) <= set(table.column_names)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:  # Arrow's errors are ValueErrors
        raise CheckpointError(f"{path}: expected a table of predictions, got an error: {error}") from error
    if not is_known:
        raise CheckpointError(f"{path}: expected a table of format {FORMAT}, got another one")
    return PredictionTable(columns=table.to_pydict(), provenance=provenance)


def _class_columns(
    columns: Mapping[str, list[Any]], prefix: str, part: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Return the columns "predicted", "label_name" and "predicted_name" of an output."""
    classes = part["classes"]

    def decide(probabilities: list[float] | None) -> int | None:
        if probabilities is None:
            return None
        row_1Y = np.array([probabilities])
        return int((median_classes(row_1Y) if "mae_classes" in part else row_1Y.argmax(axis=1))[0])

    def name(number: int | None) -> str | None:
        return None if number is None or number < 0 else classes[number]

    predicted = [decide(probabilities) for probabilities in columns[f"{prefix}prediction"]]
    return {
        f"{prefix}predicted": predicted,
        f"{prefix}label_name": [name(number) for number in columns[f"{prefix}label"]],
        f"{prefix}predicted_name": [name(number) for number in predicted],
    }


def _integers(values: Sequence[int | None]) -> np.ndarray:
    return np.array([-1 if value is None else value for value in values], dtype=np.int64)


def _mean_error(guess: Any, true: Any) -> float:
    """Mean absolute error of a sample's numbers; NaN without any."""
    if guess is None or true is None:
        return float("nan")
    error_V = np.abs(np.array(guess, dtype=np.float64) - np.array(true, dtype=np.float64)).reshape(-1)
    known_V = error_V[~np.isnan(error_V)]
    return float(known_V.mean()) if len(known_V) else float("nan")
