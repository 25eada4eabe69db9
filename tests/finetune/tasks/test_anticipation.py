"""Anticipation: windows before events, events without a clip, scores."""

import logging

import numpy as np
import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component
from kinemae.data_tools.stream.frame_sampling import ClipConfig, evaluation_timestamps_s, window_frames
from kinemae.finetune.labels.segments import segments_as_samples
from kinemae.finetune.tasks.anticipation import mean_class_recall
from kinemae.finetune.tasks.base import SamplePrediction, build_task
from tests.label_index import segment_index

CLIP = ClipConfig(frames=4, stride=2, size=16)  # 8 frames, which take 1 s


def anticipation(**args):
    return build_task(Component(name="anticipation", args={"segments": "events", **args}))


def test_the_clip_ends_the_gap_before_the_event(tmp_path):
    index = segment_index(tmp_path, [[[4, 5, "a"], [8.06, 9, "b"]]])

    view = anticipation(gap_s=0.5).view(index, CLIP, key="k")

    assert [window_frames(view.sample(row)) for row in range(2)] == [range(20, 28), range(52, 60)]
    (timestamps_s,) = evaluation_timestamps_s(view.sample(0), CLIP, temporal_clips=1)
    assert min(timestamps_s) >= 2.5 and max(timestamps_s) <= 3.5
    assert view.column("segment").tolist() == ["a", "b"]


def test_a_clip_may_begin_at_the_first_frame_and_end_at_the_event(tmp_path):
    view = anticipation(gap_s=0.0).view(segment_index(tmp_path, [[[1, 2, "a"]]]), CLIP, key="k")

    assert window_frames(view.sample(0)) == range(8)


def test_a_clip_of_a_given_rate_and_a_longer_observation_set_the_window(tmp_path):
    index = segment_index(tmp_path, [[[4, 5, "a"]]])

    by_rate = anticipation(gap_s=1.0).view(index, ClipConfig(frames=4, fps=2, size=16), key="k")
    longer = anticipation(gap_s=1.0, observed_s=3.0).view(index, CLIP, key="k")
    uniform = ClipConfig(frames=4, sampling="uniform", size=16)
    spread = anticipation(gap_s=1.0, observed_s=3.0).view(index, uniform, key="k")

    assert [view.sample(0).window_s for view in (by_rate, longer, spread)] == [(1, 3), (0, 3), (0, 3)]


def test_events_without_a_clip_are_counted_and_logged(tmp_path, caplog):
    index = segment_index(tmp_path, [[[1.9, 2, "a"], [2, 3, "b"], [5, 6, "b"], [5, 6, "a"]]])
    task = anticipation()

    with caplog.at_level(logging.WARNING, logger="kinemae"):
        view = task.view(index, CLIP, key="k")

    assert "k: 1 of 4 events begin too early for a clip" in caplog.text
    task.fit(view, key="k")
    assert task.sample_classes(task.read(view, key="k")).tolist() == [1, 1, 0]
    assert task.classes == ("a", "b") and task.outputs == 2
    targets = task.read(view, key="k")
    assert targets.of_clips(torch.arange(3), torch.zeros(3, 4))["label"].tolist() == [1, 1, 0]
    prediction_Y = np.array([0.2, 0.8])
    predictions = [
        SamplePrediction(position=row, key="k", values={"prediction": prediction_Y}) for row in range(3)
    ]
    scores = task.score(predictions, targets)
    assert scores["events_without_clip"] == 1
    assert scores["top1"] == scores["floor"]["top1"] == pytest.approx(2 / 3)
    assert scores["mean_class_recall_at_5"] == 1.0


def test_events_that_all_begin_too_early_are_an_error(tmp_path):
    with pytest.raises(DataError, match="got 2 events that begin too early"):
        anticipation().view(segment_index(tmp_path, [[[1, 2, "a"], [1.5, 2, "b"]]]), CLIP, key="k")


@pytest.mark.parametrize(
    ("args", "clip", "message"),
    [
        ({"gap_s": -1.0}, CLIP, "task.args.gap_s must be 0 or more, got -1"),
        ({"observed_s": 0}, CLIP, "task.args.observed_s must be null or above 0, got 0"),
        ({"observed_s": 0.5}, CLIP, "expected at least the clip's 1 s in key-0, got 0.5"),
        ({}, ClipConfig(frames=4, sampling="uniform", size=16), "expected a number of seconds with"),
    ],
)
def test_invalid_settings_are_errors(tmp_path, args, clip, message):
    with pytest.raises(ValueError, match=message):
        anticipation(**args).view(segment_index(tmp_path, [[[5, 6, "a"]]]), clip, key="k")


def test_events_that_are_samples_already_are_refused(tmp_path):
    events = segments_as_samples(segment_index(tmp_path, [[[5, 6, "a"]]]), "events", key="k")

    with pytest.raises(ValueError, match=r"data.segments: expected null for the task anticipation"):
        anticipation().view(events, CLIP, key="k")


def test_a_class_of_validation_that_training_never_saw_is_an_error(tmp_path):
    task = anticipation()
    task.fit(task.view(segment_index(tmp_path / "a", [[[5, 6, "a"], [6, 7, "b"]]]), CLIP, key="t"), key="t")
    validation = task.view(segment_index(tmp_path / "b", [[[5, 6, "c"]]]), CLIP, key="v")

    with pytest.raises(DataError, match="with c"):
        task.read(validation, key="v")


def test_mean_class_recall_is_the_mean_over_classes_of_hits_in_the_top_k():
    generator = np.random.default_rng(0)
    probability_RY, label_R = generator.random((200, 12)), generator.integers(0, 9, 200)
    hits = {label: [] for label in set(label_R.tolist())}
    for row_Y, label in zip(probability_RY, label_R.tolist(), strict=True):
        hits[label].append(label in np.argsort(-row_Y)[:5])

    expected = np.mean([np.mean(each) for each in hits.values()])

    assert mean_class_recall(probability_RY, label_R, k=5) == pytest.approx(expected)
