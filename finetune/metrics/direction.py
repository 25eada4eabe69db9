"""Direction of metrics: whether larger or smaller values are better."""

import re

_MINIMIZED = frozenset(
    (
        *("loss", "class_loss", "distance_loss", "nll", "brier", "ece"),
        *("mae", "mse", "rmse", "l1", "smooth_l1", "standardized_mae", "mae_classes", "median_rank"),
    )
)
_COUNTS = frozenset(
    (
        "samples",
        "videos",
        "skipped",
        "frames",
        "segments",
        "events_without_clip",
        "lr",
        "grad_norm",
        "queries",
        "queries_without_match",
    )
)


def is_maximized(name: str) -> bool | None:
    """Return whether larger values of a metric are better; None for counts and settings.

    Args:
        name: the part after the last dot or slash decides; "mean_" before it stands for a mean of columns.
    """
    last = re.split(r"[./]", name)[-1]
    if last in _COUNTS:
        return None
    return last not in _MINIMIZED and last.removeprefix("mean_") not in _MINIMIZED
