"""The task dense: labels at the times of frames, loss at slices and frames, stitched scores."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component
from kinemae.finetune.tasks.base import SamplePrediction, build_task
from tests.label_index import segment_index

CELLS = [[[1, 3, "a"], [6, 9, "b"]], [], None, [[2, 7, "b"]]]
TIME_T = torch.arange(0.5, 8.5, dtype=torch.float64)


def fitted(index, **args):
    task = build_task(Component(name="dense", args={"segments": "events", **args}))
    task.fit(index, key="t")
    return task, task.read(index, key="t")


def labels_of(targets, position, time_T=TIME_T):
    return targets.of_clips(torch.tensor([position]), time_T[None])["label_BTY"][0]


def test_every_frame_has_the_class_of_its_segment_or_the_background(tmp_path):
    task, targets = fitted(segment_index(tmp_path, CELLS))

    assert task.classes == ("background", "a", "b")
    assert labels_of(targets, 0).argmax(dim=1).tolist() == [0, 1, 1, 0, 0, 0, 2, 2]
    assert labels_of(targets, 1).argmax(dim=1).tolist() == [0] * 8
    is_annotated_B = targets.of_clips(torch.arange(4), TIME_T.expand(4, -1))["is_annotated_B"]
    assert is_annotated_B.tolist() == [1, 1, 0, 1]
    assert targets.of_sample(0) == {"segments": '[[1.0, 3.0, "a"], [6.0, 9.0, "b"]]'}
    assert targets.of_sample(2) == {"segments": None}


def test_labels_of_a_class_named_background_are_the_background(tmp_path):
    task, targets = fitted(segment_index(tmp_path, [[[0, 2, "background"], [2, 4, "x"]]]))

    assert task.classes == ("background", "x")
    assert labels_of(targets, 0).argmax(dim=1).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_several_classes_may_overlap_only_with_multi_label(tmp_path):
    index = segment_index(tmp_path, [[[1, 4, "a"], [3, 6, "b"]]])

    task, targets = fitted(index, multi_label=True)

    assert task.classes == ("a", "b")
    assert labels_of(targets, 0)[:, 0].tolist() == [0, 1, 1, 1, 0, 0, 0, 0]
    assert labels_of(targets, 0)[:, 1].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    with pytest.raises(DataError, match=r"got 'b' at 3 s in key-0 \(0.mp4\) before the segment of another"):
        fitted(index)


def test_an_overlap_of_one_frame_goes_to_the_later_segment(tmp_path):
    _, targets = fitted(segment_index(tmp_path, [[[1, 3.1, "a"], [3, 5, "b"]]]))

    assert labels_of(targets, 0, torch.tensor([2.9, 3.05])).argmax(dim=1).tolist() == [1, 2]


def test_a_slice_has_the_fraction_or_the_majority_of_its_frames(tmp_path):
    index = segment_index(tmp_path, [[[3, 8, "a"]]])
    output_1tY = torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(0))
    for slice_target, share in (("fraction", 0.25), ("majority", 0.0)):
        task, targets = fitted(index, slice_target=slice_target)
        clips = targets.of_clips(torch.tensor([0]), TIME_T[None])

        loss_B = task.loss(output_1tY, clips)

        target_tY = torch.tensor([[1 - share, share], [0.0, 1.0]])
        expected = functional.cross_entropy(output_1tY[0], target_tY)
        torch.testing.assert_close(loss_B, expected[None])
        assert task.train_metrics(output_1tY, clips)["accuracy"].shape == (1,)


def test_outputs_are_interpolated_to_frames(tmp_path):
    task, targets = fitted(segment_index(tmp_path, [[[3, 8, "a"]]]), resolution="frame")
    clips = targets.of_clips(torch.tensor([0]), TIME_T[None])
    output_1tY = torch.tensor([[[0.0, 0.0], [0.0, 4.0]]])

    # The centres of the slices are at frames 1.5 and 5.5; 4 frames apart, so the logit grows by 1 a frame.
    logit_T = torch.tensor([0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])
    expected = functional.cross_entropy(
        torch.stack([torch.zeros(8), logit_T], dim=1), clips["label_BTY"][0].argmax(dim=1)
    )

    torch.testing.assert_close(task.loss(output_1tY, clips), expected[None])


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_sample_without_annotation_has_no_loss_and_no_score(tmp_path, multi_label):
    index = segment_index(tmp_path, CELLS)
    task, targets = fitted(index, multi_label=multi_label)
    output = torch.randn(4, 4, task.outputs)

    loss_B = task.loss(output, targets.of_clips(torch.arange(4), TIME_T.expand(4, -1)))

    assert loss_B[2] == 0 and (loss_B[[0, 1, 3]] > 0).all()
    values = task.combine(task.predict(output[:1]), TIME_T[None])
    with pytest.raises(DataError, match="fix: annotate some of them"):
        task.score([SamplePrediction(position=2, key="k", values=values)], targets)


def perfect_windows(targets, position, task, starts):
    """Outputs of windows of 4 s with one slice a second, and their times."""
    time_VT = torch.stack([torch.arange(0.25, 4, 0.5, dtype=torch.float64) + start for start in starts])
    label_VTY = targets.of_clips(torch.full((len(starts),), position), time_VT)["label_BTY"]
    label_VtY = label_VTY.unflatten(1, (4, 2)).mean(dim=2)
    return 20 * label_VtY - 10, time_VT


@pytest.mark.parametrize("multi_label", [False, True])
def test_perfect_windows_give_perfect_scores_far_above_the_floor(tmp_path, multi_label):
    task, targets = fitted(segment_index(tmp_path, CELLS), multi_label=multi_label)
    predictions = []
    for position in range(4):
        output, time_VT = perfect_windows(targets, position, task, [0.0, 2.0, 4.0, 6.0])
        values = task.combine(task.predict(output), time_VT)
        predictions.append(SamplePrediction(position=position, key="k", values=values))

    scores = task.score(predictions, targets)

    assert scores["frames"] == 3 * 80 and scores["coverage"] == 1.0
    assert scores["frame_map"] == pytest.approx(1.0)
    a, b = 16 / 240, (24 + 40) / 240  # fractions of the frames, whose rate is 8 per second
    assert scores["floor"]["frame_map"] == pytest.approx((a + b) / 2)
    if not multi_label:
        assert scores["frame_accuracy"] == scores["edit"] == scores["f1_at_50"] == 1.0
        assert scores["floor"]["frame_accuracy"] == pytest.approx(1 - 80 / 240)
        assert scores["floor"]["f1_at_10"] == 0.0


def test_frames_that_no_clip_covers_do_not_count(tmp_path):
    task, targets = fitted(segment_index(tmp_path, [[[1, 3, "a"], [6, 9, "b"]]]))
    output, time_VT = perfect_windows(targets, 0, task, [0.0])

    scores = task.score(
        [SamplePrediction(position=0, key="k", values=task.combine(task.predict(output), time_VT))], targets
    )

    assert scores["frames"] == 32 and scores["coverage"] == pytest.approx(0.4)
    assert scores["per_class_ap"] == {"a": 1.0, "b": None}


def test_clips_without_any_segment_cannot_be_scored(tmp_path):
    task, targets = fitted(segment_index(tmp_path, [[[8, 9, "a"]]]))
    output, time_VT = perfect_windows(targets, 0, task, [0.0])
    values = task.combine(task.predict(output), time_VT)

    with pytest.raises(DataError, match=r"expected frames inside segments .*; fix: evaluate.sliding=true"):
        task.score([SamplePrediction(position=0, key="k", values=values)], targets)


def test_score_fps_sets_the_times_of_the_score(tmp_path):
    task, targets = fitted(segment_index(tmp_path, [[[1, 3, "a"]]]), score_fps=2.0)
    output, time_VT = perfect_windows(targets, 0, task, [0.0, 3.0, 6.0])

    values = task.combine(task.predict(output), time_VT)
    scores = task.score([SamplePrediction(position=0, key="k", values=values)], targets)

    assert scores["frames"] == 20 and scores["frame_map"] == 1.0


def test_flipped_classes_swap(tmp_path):
    task, targets = fitted(segment_index(tmp_path, CELLS))
    clips = targets.of_clips(torch.tensor([0]), TIME_T[None])

    flipped = task.target_flip([["a", "b"]])(clips, torch.tensor([True]))

    assert flipped["label_BTY"][0].argmax(dim=1).tolist() == [0, 2, 2, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"resolution": "token"}, "task.args.resolution must be slice or frame, got 'token'"),
        ({"slice_target": "first"}, "task.args.slice_target must be fraction or majority"),
        ({"score_fps": 0}, "task.args.score_fps must be null or above 0"),
    ],
)
def test_invalid_arguments_are_errors(args, message):
    with pytest.raises(ValueError, match=message):
        build_task(Component(name="dense", args={"segments": "events", **args}))


def test_a_data_set_with_background_only_is_an_error(tmp_path):
    with pytest.raises(DataError, match="expected segments of a class other than background"):
        fitted(segment_index(tmp_path, [[[1, 3, "background"]]]))


def test_the_prediction_keeps_its_times(tmp_path):
    task, targets = fitted(segment_index(tmp_path, CELLS), resolution="frame")
    output, time_VT = perfect_windows(targets, 0, task, [0.0, 2.0])

    values = task.combine(task.predict(output), time_VT)

    assert values["time_s"] == pytest.approx(np.arange(0.25, 6, 0.5))
    assert values["prediction"].shape == (12, 3)
    assert values["prediction"].sum(axis=1) == pytest.approx(np.ones(12))
    assert float(values["step_s"]) == pytest.approx(0.5)
