"""Names of metrics for readers: title, unit, direction and meaning."""

import re
from dataclasses import dataclass, replace
from typing import Any

from kinemae.data_tools.report.figures import short
from kinemae.finetune.metrics.direction import is_maximized


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric for readers.

    Attributes:
        is_fraction: whether pages show it in percent.
        maximize: whether larger values are better; None if that has no meaning.
    """

    title: str
    meaning: str
    is_fraction: bool = False
    maximize: bool | None = None

    @property
    def label(self) -> str:
        """Title with the unit."""
        return f"{self.title} (%)" if self.is_fraction else self.title

    def text(self, value: float | None) -> str:
        """Format a value with its unit."""
        if value is None:
            return "not defined"
        return f"{100 * value:.1f} %" if self.is_fraction else short(value)

    def shown(self, value: float) -> float:
        """The value in the unit of `label`."""
        return 100 * value if self.is_fraction else value


def _fraction(title: str, meaning: str) -> Metric:
    return Metric(title=title, meaning=meaning, is_fraction=True)


def _number(title: str, meaning: str) -> Metric:
    return Metric(title=title, meaning=meaning)


_KNOWN = {
    "top1": _fraction("Accuracy (top-1)", "videos whose most probable class is the true one"),
    "top5": _fraction("Top-5 accuracy", "videos whose true class is among the five most probable"),
    "accuracy": _fraction("Accuracy", "clips or slices whose most probable class is the true one"),
    "mean_class_accuracy": _fraction(
        "Mean class accuracy",
        "mean of the accuracies of all classes, also called balanced accuracy",
    ),
    "balanced_accuracy": _fraction(
        "Balanced accuracy", "mean of the accuracies of all classes; each class counts the same"
    ),
    "f1": _fraction("F1", "harmonic mean of precision and recall, mean over classes"),
    "f1_macro": _fraction("F1, macro", "F1 of every class, then their mean"),
    "f1_micro": _fraction("F1, micro", "F1 of all decisions together"),
    "map": _fraction("Mean average precision", "area under precision and recall, mean over classes"),
    "frame_map": _fraction("Frame mAP", "mean average precision of single frames, mean over classes"),
    "frame_accuracy": _fraction("Frame accuracy", "frames whose most probable class is the true one"),
    "edit": _number("Edit score", "similarity of the order of segments; 100 is perfect"),
    "coverage": _fraction("Coverage", "frames that lie inside of a clip"),
    "ece": _fraction("Calibration error (ECE)", "mean distance between confidence and accuracy"),
    "nll": _number("Negative log likelihood", "mean of -log(probability of the true class); 0 is perfect"),
    "brier": _number("Brier score", "squared error of the probabilities; 0 is perfect"),
    "mae": _number("Mean absolute error", "mean distance from the true value"),
    "rmse": _number("Root mean squared error", "as MAE, but large errors weigh more"),
    "r2": _number("R2", "1 is perfect, 0 is as good as the mean of the true values"),
    "spearman": _number("Spearman correlation", "correlation of the ranks; 1 is the true order"),
    "pearson": _number("Pearson correlation", "linear correlation with the true values; 1 is a rising line"),
    "mae_classes": _number("Mean distance in classes", "classes between the predicted and the true one"),
    "within_one": _fraction("Within one class", "videos predicted at most one class away"),
    "quadratic_weighted_kappa": _number(
        "Quadratic weighted kappa", "agreement beyond chance; 1 is perfect, 0 is chance"
    ),
    "median_rank": _number("Median rank", "rank of the first right item"),
    "loss": _number("Loss", "value that training minimizes"),
    "standardized_mae": _number(
        "Standardized error",
        "mean absolute error in standard deviations of the training data; 0 is perfect",
    ),
    "mean_skill": _fraction("Mean skill", "0 is the floor, 1 is perfect, mean over the columns"),
    "joint_accuracy": _fraction("Joint accuracy", "videos with the true class in all columns"),
    "lr": _number("Learning rate", "step size of the optimizer"),
    "grad_norm": _number("Gradient norm", "length of the gradient before clipping"),
    "samples": _number("Scored samples", "samples with a label"),
    "videos": _number("Scored videos", "readable videos"),
}
_NOT_SCORES = (
    "checkpoint",
    "selection",
    "views",
    "tokens",
    "data",
    "run",
    "cost",
    "floor",
    "samples",
    "videos",
    "interval",
)
_CONTEXTS = {"counting_skipped": "Unreadable videos count as wrong"}
_HOLDERS = ("columns", "per_value")  # keys of results that hold others
_AT = re.compile(r"(.*\.)?(map_at|average_recall_at|f1_at)[._]([\d.]+)")
_RECALL = re.compile(r"r_at_(\d+)")


_AT_METRICS = {
    "map_at": _fraction("mAP at tIoU {}", "mean average precision at this overlap of segments"),
    "average_recall_at": _fraction("Average recall at {} segments", "found segments, mean over overlaps"),
    "f1_at": _fraction("Segmental F1 at {} %", "F1 of segments that overlap that much"),
}


def metric(key: str) -> Metric:
    """Describe a metric by its key, of which the part after the last dot or slash counts."""
    if match := _AT.fullmatch(key):
        found = _AT_METRICS[match[2]]
        return replace(found, title=found.title.format(match[3]), maximize=True)
    *context, name = (part for part in re.split(r"[./]", key) if part not in _HOLDERS)
    if match := _RECALL.fullmatch(name):
        found = _fraction(f"R@{match[1]}", f"queries with a right item among the {match[1]} nearest")
        found = replace(found, maximize=is_maximized(name))
    elif name in _KNOWN:
        found = replace(_KNOWN[name], maximize=is_maximized(name))
    elif name.startswith("mean_") and name[5:] in _KNOWN:
        mean = _KNOWN[name[5:]]
        found = replace(mean, title=f"{mean.title}, mean of columns", maximize=is_maximized(name))
    else:
        found = Metric(title=name.replace("_", " "), meaning="")
    if not context:
        return found
    where = ": ".join(_CONTEXTS.get(part, part) for part in context)
    return replace(found, title=f"{where}: {found.title}")


def is_number(value: Any) -> bool:
    """Check whether a JSON value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def scalars(result: Any, prefix: str = "") -> dict[str, float]:
    """All numbers of a nested result by dotted key; counts and values per class are left out."""
    found: dict[str, float] = {}
    for key, value in result.items():
        name = f"{prefix}{key}"
        if key in _NOT_SCORES:
            continue
        if is_number(value):
            found[name] = float(value)
        elif isinstance(value, dict) and not key.startswith("per_class"):
            found |= scalars(value, f"{name}.")
    return found
