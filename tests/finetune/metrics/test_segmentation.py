"""Edit score and segmental F1 against plain implementations."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.finetune.metrics.segmentation import edit_score, runs, segmental_f1

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=20)


def plain_runs(labels, ignore):
    found = []
    for frame, label in enumerate(labels):
        if found and found[-1][0] == label and found[-1][2] == frame:
            found[-1][2] = frame + 1
        else:
            found.append([label, frame, frame + 1])
    return [tuple(run) for run in found if run[0] != ignore]


@given(LABELS, st.sampled_from([None, 0]))
def test_runs_equal_the_plain_ones(labels, ignore):
    assert [tuple(run) for run in runs(np.array(labels), ignore=ignore)] == plain_runs(labels, ignore)


@given(LABELS, LABELS, st.sampled_from([None, 0]))
@settings(deadline=None)
def test_edit_score_equals_a_recursive_distance(prediction, label, ignore):
    first = [run[0] for run in plain_runs(prediction, ignore)]
    second = [run[0] for run in plain_runs(label, ignore)]

    @functools.cache
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        change = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(change, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    expected = 1 - distance(len(first), len(second)) / max(len(first), len(second), 1)

    assert edit_score(np.array(prediction), np.array(label), ignore=ignore) == pytest.approx(expected)


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=3), st.sampled_from([0.1, 0.25, 0.5]))
@settings(deadline=None)
def test_segmental_f1_equals_precision_and_recall_of_runs(pairs, overlap):
    pairs = [(a[: min(len(a), len(b))], b[: min(len(a), len(b))]) for a, b in pairs]
    right = wrong = missed = 0
    for prediction, label in pairs:
        true, taken = plain_runs(label, 0), set()
        for run in plain_runs(prediction, 0):
            iou = [
                len(set(range(*run[1:])) & set(range(*other[1:])))
                / (max(run[2], other[2]) - min(run[1], other[1]))
                * (run[0] == other[0])
                for other in true
            ]
            best = max(range(len(iou)), key=lambda i: iou[i], default=None)
            if best is not None and iou[best] >= overlap and best not in taken:
                right, taken = right + 1, taken | {best}
            else:
                wrong += 1
        missed += len(true) - len(taken)
    precision, recall = right / max(right + wrong, 1), right / max(right + missed, 1)
    expected = 2 * precision * recall / (precision + recall) if right else 0.0

    predictions, labels = ([np.array(each) for each in column] for column in zip(*pairs, strict=True))
    assert segmental_f1(predictions, labels, overlap=overlap, ignore=0) == pytest.approx(expected)


def test_an_oversegmented_prediction_has_a_low_edit_score_and_a_high_accuracy():
    label_F = np.array([1] * 10 + [2] * 10)
    prediction_F = label_F.copy()
    prediction_F[[3, 6, 13, 16]] = 3

    assert edit_score(label_F, label_F) == 1.0
    assert edit_score(prediction_F, label_F) == pytest.approx(1 - 8 / 10)
