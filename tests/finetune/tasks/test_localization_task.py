"""The task localization: targets of clips, loss, merged windows, score and floor."""

import numpy as np
import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.heads.base import Features, build_head
from kinemae.finetune.tasks.base import SamplePrediction, build_task
from tests.label_index import segment_index

CELLS = [[[1, 3, "a"], [6, 9, "b"]], [], None, [[2, 7, "b"]]]
CLIP = ClipConfig(frames=16, stride=5, size=16)  # 80 frames: the whole video of 10 s
WHOLE_T = (torch.arange(16, dtype=torch.float64) + 0.5) * 10 / 16


def fitted(index, **args):
    task = build_task(Component(name="localization", args={"segments": "events", **args}))
    task.fit(task.view(index, CLIP, key="t"), key="t")
    return task, task.read(index, key="t")


def pyramid_output(outputs, clips=1):
    head = build_head(Component(name="pyramid"), width=8, outputs=outputs, output="pyramid")
    with torch.no_grad():
        return head(Features(torch.randn(clips, 32, 8), slices=16), None)


def test_targets_are_fractions_of_the_clip(tmp_path):
    _, targets = fitted(segment_index(tmp_path, CELLS))
    first_half_T = WHOLE_T / 2

    clips = targets.of_clips(torch.tensor([0, 0, 1, 2]), torch.stack([WHOLE_T, first_half_T] + [WHOLE_T] * 2))

    torch.testing.assert_close(clips["segment_BE2"][0], torch.tensor([[0.1, 0.3], [0.6, 0.9]]))
    torch.testing.assert_close(clips["segment_BE2"][1, 0], torch.tensor([0.2, 0.6]))
    assert clips["class_BE"].tolist() == [[0, 1], [0, -1], [-1, -1], [-1, -1]]
    assert clips["is_annotated_B"].tolist() == [1, 1, 1, 0]


def test_a_segment_that_the_clip_cuts_is_shortened_or_ignored(tmp_path):
    index = segment_index(tmp_path, [[[4, 7, "a"], [3, 6, "a"]]])
    time_1T = WHOLE_T[None] / 2  # 0 to 5 s

    most = fitted(index)[1].of_clips(torch.tensor([0]), time_1T)
    little = fitted(index, min_visible=0.3)[1].of_clips(torch.tensor([0]), time_1T)

    assert most["class_BE"].tolist() == [[-2, 0]] and little["class_BE"].tolist() == [[0, 0]]
    torch.testing.assert_close(most["segment_BE2"][0], torch.tensor([[0.8, 1.0], [0.6, 1.0]]))


def test_a_clip_that_could_not_be_read_has_no_segment(tmp_path):
    _, targets = fitted(segment_index(tmp_path, CELLS))

    clips = targets.of_clips(torch.tensor([0]), torch.full((1, 16), torch.nan, dtype=torch.float64))

    assert clips["class_BE"].tolist() == [[-1, -1]]


def test_the_loss_of_a_clip_does_not_depend_on_others_and_is_0_without_annotation(tmp_path):
    torch.manual_seed(0)
    task, targets = fitted(segment_index(tmp_path, CELLS))
    output, clips = pyramid_output(2, 4), targets.of_clips(torch.arange(4), WHOLE_T.expand(4, -1))

    loss_B = task.loss(output, clips)

    alone_B = torch.cat(
        [
            task.loss(output[row : row + 1], {name: value[row : row + 1] for name, value in clips.items()})
            for row in range(4)
        ]
    )
    torch.testing.assert_close(loss_B, alone_B)
    assert loss_B[2] == 0 and (loss_B[[0, 1, 3]] > 0).all()
    assert task.has_target(clips).tolist() == [True, True, False, True]
    parts = task.train_metrics(output, clips)
    torch.testing.assert_close(parts["class_loss"] + parts["distance_loss"], loss_B)


def test_flipped_classes_swap_and_padding_stays(tmp_path):
    task, targets = fitted(segment_index(tmp_path, CELLS))
    clips = targets.of_clips(torch.tensor([0, 3]), WHOLE_T.expand(2, -1))

    flipped = task.target_flip([["a", "b"]])(clips, torch.tensor([True, True]))

    assert flipped["class_BE"].tolist() == [[1, 0], [0, -1]]


def learned(task, targets, time_VT, position):
    """Minimize the loss over the outputs themselves."""
    output = pyramid_output(2, len(time_VT)).clone()
    free = output[..., :-2].clone().requires_grad_()
    clips = targets.of_clips(torch.full((len(time_VT),), position), time_VT)
    optimizer = torch.optim.Adam([free], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        complete = torch.cat([free[..., :-2], free[..., -2:].abs(), output[..., -2:]], dim=-1)
        task.loss(complete, clips).sum().backward()
        optimizer.step()
    return torch.cat([free[..., :-2], free[..., -2:].abs(), output[..., -2:]], dim=-1).detach()


def test_minimizing_the_loss_finds_the_segments_over_several_windows(tmp_path):
    torch.manual_seed(0)
    index = segment_index(tmp_path, [[[1, 3, "a"], [6, 9, "b"]]])
    task, targets = fitted(index, min_visible=0.75)  # the second window shows half of b
    windows = torch.stack([WHOLE_T / 2, WHOLE_T / 2 + 2.5, WHOLE_T / 2 + 5])

    output = learned(task, targets, windows, 0)
    values = task.combine(task.predict(output), windows)
    scores = task.score([SamplePrediction(position=0, key="k", values=values)], targets)

    assert scores["map"] == pytest.approx(1.0) and scores["map_at"]["0.7"] == 1.0
    assert scores["floor"]["map"] < 0.5
    best = [values["time_s"][values["class"] == number][0] for number in range(2)]
    assert np.allclose(best, [[1, 3], [6, 9]], atol=0.1)
    assert (np.diff(values["score"]) <= 0).all()


def test_the_floor_is_one_segment_of_the_most_frequent_class(tmp_path):
    index = segment_index(tmp_path, [[[0, 10, "b"]], [[0, 10, "a"]], [[0, 10, "b"]]])
    task, targets = fitted(index, tious=[0.5])
    nothing = {"time_s": np.zeros((0, 2)), "score": np.zeros(0), "class": np.zeros(0, dtype=np.int64)}

    scores = task.score(
        [SamplePrediction(position=row, key="k", values=nothing) for row in range(3)], targets
    )

    assert scores["map"] == 0 and scores["average_recall_at"]["100"] == 0
    assert scores["floor"]["map"] == pytest.approx(
        (1 + 2 / 3) / 2 / 2
    )  # precision at the two hits of b, none of a
    assert task.state() == {"classes": ["a", "b"], "majority": 1}


def test_videos_without_segments_cannot_be_scored(tmp_path):
    task, targets = fitted(segment_index(tmp_path, CELLS))

    with pytest.raises(DataError, match="expected readable validation videos with segments"):
        task.score([SamplePrediction(position=2, key="k", values={"time_s": np.zeros((0, 2))})], targets)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tious": []}, r"task.args.tious must be ascending numbers in \(0, 1\], got \[\]"),
        ({"tious": [0.5, 0.3]}, "task.args.tious must be ascending"),
        ({"tious": 0.5}, "task.args.tious must be ascending"),
        ({"centre_radius": 0.0}, "task.args.centre_radius must be above 0"),
        ({"min_visible": 2.0}, "task.args.min_visible must lie in"),
        ({"nms_sigma": 0.0}, "task.args.nms_sigma must be above 0"),
        ({"min_score": 1.0}, "task.args.min_score must lie in"),
        ({"max_detections": 0}, "task.args.max_detections must be at least 1"),
    ],
)
def test_invalid_arguments_are_errors(args, message):
    with pytest.raises(ValueError, match=message):
        build_task(Component(name="localization", args={"segments": "events", **args}))


@pytest.mark.parametrize("name", ["localization", "dense"])
def test_clips_that_loop_are_refused(tmp_path, name):
    task = build_task(Component(name=name, args={"segments": "events"}))

    with pytest.raises(ValueError, match=r"clip.short_video must be hold for labels over time, got 'loop'"):
        task.view(segment_index(tmp_path, CELLS), ClipConfig(short_video="loop"), key="k")
