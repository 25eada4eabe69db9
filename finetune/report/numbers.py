"""Sections about regression: scatter of true and predicted values, errors, largest mistakes."""

import numpy as np

from kinemae.data_tools.report.figures import Histogram, histogram, short
from kinemae.finetune.report.charts import Chart, Series, draw_chart
from kinemae.finetune.report.classes import Shown
from kinemae.finetune.report.outputs import NumberOutput

_MOST_POINTS = 1500


def scatter_charts(output: NumberOutput) -> list[Chart]:
    """One chart per value: predicted against true."""
    charts = []
    for number, name in enumerate(output.names):
        target_R, prediction_R = _known(output, number)
        if not len(target_R):
            continue
        every = max(1, len(target_R) // _MOST_POINTS)
        together = np.concatenate([target_R, prediction_R])
        limits = float(together.min()), float(together.max())
        texts = [
            f"{key}: true {short(target)}, predicted {short(prediction)}"
            for key, target, prediction in zip(_keys(output, number), target_R, prediction_R, strict=True)
        ]
        chart = draw_chart(
            name or "Predicted and true values",
            [
                Series(name="perfect prediction", x=limits, y=limits, colour=5, kind="dashed"),
                Series(
                    name="a video",
                    x=target_R[::every],
                    y=prediction_R[::every],
                    kind="points",
                    texts=texts[::every],
                ),
            ],
            x_label="true value",
            y_label="predicted value",
            note=_note(target_R, prediction_R, every),
            x_range=limits,
            y_range=limits,
            is_square=True,
            with_table=False,
        )
        if chart is not None:
            charts.append(chart)
    return charts


def error_histograms(output: NumberOutput) -> list[Histogram]:
    """One histogram per value: predicted minus true."""
    found = []
    for number, name in enumerate(output.names):
        target_R, prediction_R = _known(output, number)
        if len(target_R):
            found.append(histogram(f"Error {name}".strip(), "", [prediction_R - target_R]))
    return found


def largest_errors(output: NumberOutput, *, most: int) -> list[Shown]:
    """Samples with the largest errors, in units of the standard deviation of each true value."""
    if not len(output.keys):
        return []
    spread_V = np.nanstd(output.target_RV, axis=0)
    error_RV = np.abs(output.prediction_RV - output.target_RV) / np.where(spread_V > 0, spread_V, 1)
    error_R = np.where(np.isnan(error_RV), -1, error_RV).max(axis=1)
    order = [at for at in np.argsort(-error_R, kind="stable")[:most].tolist() if error_R[at] > 0]
    return [
        Shown(
            key=output.keys[at],
            truth=_values(output, output.target_RV[at]),
            guess=_values(output, output.prediction_RV[at]),
            facts=f"error of {error_R[at]:.1f} standard deviations of the true values",
        )
        for at in order
    ]


def mean_baseline(output: NumberOutput) -> float | None:
    """Mean absolute error of always predicting the median of the true values."""
    known = [_known(output, number)[0] for number in range(len(output.names))]
    errors = [float(np.abs(target_R - np.median(target_R)).mean()) for target_R in known if len(target_R)]
    return float(np.mean(errors)) if errors else None


def _known(output: NumberOutput, number: int) -> tuple[np.ndarray, np.ndarray]:
    target_R = output.target_RV[:, number]
    kept = ~np.isnan(target_R)
    return target_R[kept], output.prediction_RV[kept, number]


def _keys(output: NumberOutput, number: int) -> list[str]:
    return [
        key for key, target in zip(output.keys, output.target_RV[:, number], strict=True) if target == target
    ]


def _note(target_R: np.ndarray, prediction_R: np.ndarray, every: int) -> str:
    error = float(np.abs(prediction_R - target_R).mean())
    shown = f" Every {every}th video is drawn." if every > 1 else ""
    return f"{len(target_R):,} videos, mean absolute error {short(error)}.{shown}"


def _values(output: NumberOutput, value_V: np.ndarray) -> str:
    if len(output.names) == 1:
        return short(float(value_V[0]))
    pairs = zip(output.names, value_V.tolist(), strict=True)
    return ", ".join(f"{name} {short(value)}" for name, value in pairs if value == value)
