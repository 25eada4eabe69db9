"""Sections about outputs: classes, labels, numbers; from predictions, or from the result alone."""

import numpy as np
import pytest

from kinemae.finetune.metrics.classification import classification_metrics
from kinemae.finetune.metrics.multilabel import multilabel_metrics
from kinemae.finetune.metrics.ordinal import ordinal_metrics
from kinemae.finetune.metrics.regression import regression_metrics
from kinemae.finetune.report.calibration import calibration_text, reliability_chart
from kinemae.finetune.report.classes import MATRIX_CLASSES, class_rows, confusion, floors
from kinemae.finetune.report.labels import label_mistakes, label_rows
from kinemae.finetune.report.metric_names import metric, scalars
from kinemae.finetune.report.numbers import largest_errors, scatter_charts
from kinemae.finetune.report.outputs import ClassOutput, LabelsOutput, NumberOutput
from kinemae.finetune.report.samples import Samples, outputs_of

DRAWS = np.random.default_rng(0)


def samples_of(**columns: list[object]) -> Samples:
    count = len(next(iter(columns.values())))
    names = tuple(f"{number}" for number in range(count))
    return Samples(keys=names, names=names, groups=("",) * count, errors=("",) * count, columns=columns)


def classes_output(classes: int, count: int = 500) -> ClassOutput:
    label = DRAWS.integers(classes, size=count)
    probability = DRAWS.dirichlet(np.ones(classes), size=count)
    result = classification_metrics(probability, label, [f"c{number}" for number in range(classes)])
    [output] = outputs_of(result, samples_of(label=label.tolist(), prediction=probability.tolist()))
    assert isinstance(output, ClassOutput)
    return output


@pytest.mark.parametrize("classes", [2, MATRIX_CLASSES, MATRIX_CLASSES + 1, 400])
def test_a_confusion_matrix_is_a_table_or_a_picture(classes: int) -> None:
    output = classes_output(classes)
    found = confusion(output)
    assert found is not None and bool(found.rows) == (classes <= MATRIX_CLASSES) != bool(found.picture)
    assert len(found.pairs) == min(15, found.pair_count)
    counts = [count for _, _, count, _ in found.pairs]
    assert counts == sorted(counts, reverse=True)


def test_the_result_alone_gives_the_same_confusion_matrix() -> None:
    output = classes_output(5)
    [alone] = outputs_of(output.result, None)
    assert isinstance(alone, ClassOutput) and not alone.keys
    assert confusion(alone) == confusion(output) and class_rows(alone) == class_rows(output)
    assert reliability_chart(alone) is None and calibration_text(alone) == ""


def test_the_table_of_classes_has_the_values_of_the_metrics() -> None:
    output = classes_output(5)
    for row in class_rows(output):
        assert row.recall == output.result["per_class_accuracy"][row.name]
        assert row.precision == output.result["per_class_precision"][row.name]


def test_floors_are_chance_and_the_most_frequent_class() -> None:
    label = [0, 0, 0, 1]
    result = classification_metrics(np.full((4, 2), 0.5), np.array(label), ["a", "b"])
    [output] = outputs_of(result, samples_of(label=label, prediction=[[0.5, 0.5]] * 4))
    assert isinstance(output, ClassOutput)
    found = floors(output)
    assert found is not None and (found.chance, found.majority, found.majority_class) == (0.5, 0.75, "a")


def test_overconfidence_is_named() -> None:
    label, probability = [0, 1] * 50, [[0.99, 0.01]] * 100
    result = classification_metrics(np.array(probability), np.array(label), ["a", "b"])
    [output] = outputs_of(result, samples_of(label=label, prediction=probability))
    assert isinstance(output, ClassOutput)
    assert "49.0 percentage points above the accuracy: the model is overconfident" in calibration_text(output)


def test_an_ordinal_output_predicts_the_median_class() -> None:
    probability = [[0.4, 0.3, 0.3]]
    result = {**ordinal_metrics(np.array([1]), np.array([1]), classes=3), "classes": ["low", "mid", "high"]}
    [output] = outputs_of(result, samples_of(label=[1], prediction=probability))
    assert isinstance(output, ClassOutput) and output.is_right_R.all()


def test_labels_have_average_precision_and_their_floor() -> None:
    target = DRAWS.integers(2, size=(50, 3))
    probability = np.clip(target + DRAWS.normal(scale=0.3, size=target.shape), 0, 1)
    result = multilabel_metrics(probability, target, ["a", "b", "c"])
    [output] = outputs_of(result, samples_of(labels=target.tolist(), prediction=probability.tolist()))
    assert isinstance(output, LabelsOutput)
    rows = {row.name: row for row in label_rows(output)}
    for number, name in enumerate("abc"):
        assert rows[name].ap == pytest.approx(result["per_class_ap"][name])
        assert rows[name].floor == pytest.approx(target[:, number].mean())
    shown = label_mistakes(output, most=4)
    assert all(each.truth != each.guess for each in shown)


def test_missing_labels_and_numbers_do_not_count() -> None:
    result = regression_metrics(np.array([[1.0, 2], [3, 4]]), np.array([[1.0, np.nan], [3, 5]]), ["x", "y"])
    columns = {"value": [[1.0, None], [3.0, 5.0]], "prediction": [[1.0, 2.0], [3.0, 4.0]]}
    [output] = outputs_of(result, samples_of(**columns))
    assert isinstance(output, NumberOutput)
    charts = {chart.title: chart for chart in scatter_charts(output)}
    assert "2 videos, mean absolute error 0." in charts["x"].note
    assert "1 videos, mean absolute error 1." in charts["y"].note
    [worst] = largest_errors(output, most=3)
    assert worst.key == "1"


def test_the_columns_of_a_multi_task_are_outputs_of_their_own() -> None:
    part = classes_output(3, count=20)
    numbers = regression_metrics(np.zeros(20), np.ones(20), ["speed"])
    samples = samples_of(
        **{
            "verb/label": [-1, *part.label_R.tolist()[1:]],
            "verb/prediction": part.probability_RY.tolist(),
            "speed/value": [[1.0]] * 20,
            "speed/prediction": [[0.0]] * 20,
        }
    )
    verb, speed = outputs_of({"columns": {"verb": part.result, "speed": numbers}}, samples)
    assert verb.name == "verb" and len(verb.keys) == 19, "the first sample has no verb"
    assert isinstance(speed, NumberOutput) and speed.names == ("speed",)


@pytest.mark.parametrize(
    "key, title",
    [
        ("top1", "Accuracy (top-1)"),
        ("columns.verb.top1", "verb: Accuracy (top-1)"),
        ("per_value.speed.mae", "speed: Mean absolute error"),
        ("r_at_5", "R@5"),
        ("map_at.0.5", "mAP at tIoU 0.5"),
        ("f1_at_50", "Segmental F1 at 50 %"),
        ("mean_top1", "Accuracy (top-1), mean of columns"),
        ("new_metric", "new metric"),
    ],
)
def test_metrics_have_names_for_readers(key: str, title: str) -> None:
    assert metric(key).title == title


def test_counts_and_floors_are_no_scores() -> None:
    result = {"top1": 0.5, "floor": {"top1": 0.1}, "videos": 3, "per_class_ap": {"a": 1.0}, "columns": {}}
    assert scalars(result) == {"top1": 0.5}
