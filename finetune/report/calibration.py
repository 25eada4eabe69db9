"""Charts about confidence: reliability diagram, histogram of confidences, precision and recall."""

import numpy as np

from kinemae.data_tools.report.figures import Histogram, histogram
from kinemae.finetune.metrics.calibration import reliability_bins
from kinemae.finetune.report.charts import Chart, Series, draw_chart
from kinemae.finetune.report.outputs import ClassOutput

_BINS = 10
_LEVEL_GAP = 0.02


def reliability_chart(output: ClassOutput) -> Chart | None:
    """Accuracy by confidence of the most probable class; None without single predictions."""
    if not len(output.keys):
        return None
    bins = reliability_bins(output.probability_RY, output.label_R, bins=_BINS)
    confidence = [100 * each["confidence"] for each in bins]
    accuracy = [100 * each["accuracy"] for each in bins]
    texts = [
        f"{each['samples']:,} videos with a confidence of {100 * each['low']:.0f} to "
        f"{100 * each['high']:.0f} %: {100 * each['accuracy']:.1f} % are right"
        for each in bins
    ]
    return draw_chart(
        "Confidence and accuracy",
        [
            Series(name="perfect calibration", x=[0, 100], y=[0, 100], colour=5, kind="dashed"),
            Series(name="this run", x=confidence, y=accuracy, kind="dotted", texts=texts),
        ],
        x_label="confidence, probability of the predicted class (%)",
        y_label="accuracy of these videos (%)",
        note="Points below the dashed line are overconfident, points above it underconfident.",
        x_range=(0, 100),
        y_range=(0, 100),
        is_square=True,
    )


def calibration_text(output: ClassOutput) -> str:
    """The calibration error in a sentence; "" without single predictions."""
    if not len(output.keys):
        return ""
    bins = reliability_bins(output.probability_RY, output.label_R)
    gaps = np.array([each["confidence"] - each["accuracy"] for each in bins])
    weights = np.array([each["samples"] for each in bins]) / len(output.keys)
    error, offset = float((weights * abs(gaps)).sum()), float((weights * gaps).sum())
    kind = "well calibrated on average"
    if abs(offset) > _LEVEL_GAP:
        kind = "overconfident" if offset > 0 else "underconfident"
    return (
        f"Expected calibration error (ECE): {100 * error:.1f} %. The mean confidence is "
        f"{100 * abs(offset):.1f} percentage points {'above' if offset > 0 else 'below'} the accuracy: the "
        f"model is {kind}."
    )


def confidence_histogram(output: ClassOutput) -> Histogram | None:
    """Confidences of the right and of the wrong predictions."""
    if not len(output.keys):
        return None
    confidence_R = 100 * output.probability_RY.max(axis=1)
    return histogram("Confidence", "%", [confidence_R[output.is_right_R], confidence_R[~output.is_right_R]])
