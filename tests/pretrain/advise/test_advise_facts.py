"""Measurements of the advice: redundancy of clips, static and similar videos, floors of labels."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from kinemae.data_tools.index import open_index
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.pretrain.advise.clip_statistics import correlations_by_stride, measure_clips, statistics_of
from kinemae.pretrain.advise.facts import Facts, index_columns
from kinemae.pretrain.advise.floors import FOLDS, fit_logistic, measure_floors
from kinemae.pretrain.advise.overview import draw_positions, read_overview
from tests.label_index import label_index

DRAW = generator(0, purpose="test")


def test_a_static_clip_is_redundant_and_noise_is_not():
    noise_THW = torch.randint(256, (8, 64, 64), generator=DRAW).to(torch.uint8)
    still_THW = noise_THW[:1].expand(8, -1, -1)

    motion, static, temporal, spatial = statistics_of(still_THW, (2, 8, 8))
    assert (motion, static, temporal) == (0.0, 1.0, 1.0) and abs(spatial) < 0.05
    motion, static, temporal, _ = statistics_of(noise_THW, (2, 8, 8))
    assert motion == pytest.approx(85, abs=2) and static == 0.0 and abs(temporal) < 0.05


def test_a_smooth_frame_is_redundant_in_space():
    ramp_W = torch.arange(0, 256, 4, dtype=torch.uint8)
    assert statistics_of(ramp_W.expand(4, 64, -1), (1, 8, 8))[3] > 0.9
    assert statistics_of(torch.zeros(1, 16, 16, dtype=torch.uint8), (1, 8, 8)) == [0.0, 0.0, 1.0, 1.0]


def test_real_videos_are_measured_the_same_way_again(synth_shards):
    index = open_index(synth_shards / "train")
    positions = draw_positions(index, 8, seed=0)
    clip = ClipConfig(frames=4, stride=2, size=32)

    found = measure_clips(index, positions, clip, (1, 8, 8))
    by_stride = correlations_by_stride(index, positions)

    assert found == measure_clips(index, draw_positions(index, 8, seed=0), clip, (1, 8, 8))
    assert found.clips == 8 and found.motion > 1 and 0 < found.temporal < 1
    assert 1 > by_stride[1] > by_stride[2] > by_stride[4]
    overview, grey = read_overview(index, positions)
    assert sorted(grey) == positions and grey[positions[0]].shape == (8, 64, 64)
    assert (overview.videos, overview.unreadable, overview.static, overview.blank) == (8, 0.0, 0.0, 0.0)


def test_unreadable_videos_and_copies_are_counted(tmp_path):
    index = label_index(
        tmp_path, labels=[0, 1, 2, 0], contents=["a", "a", "b", ""], groups=["g", "h", "", "g"]
    )

    overview, grey = read_overview(index, range(4))

    assert overview.unreadable == 1.0 and grey == {}
    assert measure_clips(index, range(4), ClipConfig(frames=2, size=16), (1, 8, 8)) is None
    assert correlations_by_stride(index, range(4)) == {}
    facts = Facts(**index_columns(index), overview=overview)
    assert (facts.videos, facts.groups, facts.exact_duplicates) == (4, 2, 0.25)
    parts = label_index(tmp_path / "parts", labels=[0] * 3, contents=["", "a", "a"])
    parts = parts.view(range(3), columns={"start_s": [0.0, 0.0, 5.0]})
    assert index_columns(parts)["exact_duplicates"] == 0, "two parts of a video"
    assert facts.summary()["frames"] == {"p5": 40.0, "p50": 40.0, "p95": 40.0}
    assert measure_floors(index, grey, seed=0) is None


def test_neighbours_by_name_are_drawn_together(tmp_path):
    index = label_index(tmp_path, labels=[0] * 40)
    by_name = sorted(range(40), key=lambda number: f"{number}.mp4")
    places = sorted(by_name.index(position) for position in draw_positions(index, 10, seed=3))

    assert len(places) == 10
    assert [place + 1 for place in places[::2]] == places[1::2]


def test_the_regression_equals_that_of_scikit_learn():
    x_RX = torch.randn(60, 30, generator=DRAW, dtype=torch.float64)
    y_R = (x_RX[:, :3] + 0.3 * torch.randn(60, 3, generator=DRAW, dtype=torch.float64)).argmax(dim=1)
    other_RX = torch.randn(200, 30, generator=DRAW, dtype=torch.float64)

    predicted_R = fit_logistic(x_RX, y_R, penalty=10.0)(other_RX)

    reference = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8).fit(x_RX.numpy(), y_R.numpy())
    assert (predicted_R.numpy() == reference.predict(other_RX.numpy())).mean() > 0.98


def grey_clips(labels, *, seen_in):
    """Random grey clips whose class is visible in the first frame, in the differences, or nowhere."""
    clips = {}
    for position, label in enumerate(labels):
        grey_THW = torch.randint(100, 120, (8, 16, 16), generator=DRAW).to(torch.uint8)
        if seen_in == "first frame":
            grey_THW[0, 4 * label : 4 * label + 4] += 40
        if seen_in == "frame differences":  # a bar appears at a random place, and moves by the class
            grey_THW[3:, 4 * label : 4 * label + 4] += 40
        clips[position] = grey_THW.numpy()
    return clips


LABELS = [number % 3 for number in range(60)]


@pytest.mark.parametrize("seen_in", ["first frame", "frame differences"])
def test_a_floor_finds_the_class_where_it_is_visible(seen_in, tmp_path):
    groups = [f"group {number // 6}" for number in range(60)]
    index = label_index(tmp_path, labels=LABELS, groups=groups)

    floors = measure_floors(index, grey_clips(LABELS, seen_in=seen_in), seed=0)

    assert floors.has_groups and (floors.videos, floors.classes) == (60, 3)
    assert floors.scores[seen_in] > 0.9 and floors.excess(seen_in) > 0.5
    assert floors.excess("metadata") == 0.0 and floors.scores["metadata"] < 0.5
    assert floors.summary()["scores"].keys() == {"metadata", "first frame", "frame differences"}


def test_metadata_that_names_the_class_is_a_floor(tmp_path):
    plain = label_index(tmp_path / "plain", labels=LABELS)
    index = plain.view(range(60), columns={"width": [100 + 50 * label for label in LABELS]})

    floors = measure_floors(index, grey_clips(LABELS, seen_in="nowhere"), seed=0)

    assert not floors.has_groups and floors.scores["metadata"] > 0.9
    assert floors.excess("first frame") == 0.0


def test_a_label_of_the_group_is_not_learned_across_groups(tmp_path):
    """The first frame shows the group; with groups kept apart it does not name the class."""
    groups = [f"group {number % 10}" for number in range(60)]
    labels = [number % 10 % 2 for number in range(60)]
    index = label_index(tmp_path, labels=labels, groups=groups)
    grey = grey_clips(labels, seen_in="nowhere")
    for position, grey_THW in grey.items():
        grey_THW[:, position % 10] += 100

    assert measure_floors(index, grey, seed=0).scores["first frame"] < 0.9
    alone = index.view(range(60), columns={"group": [""] * 60})
    assert measure_floors(alone, grey, seed=0).scores["first frame"] > 0.9


def test_labels_with_too_few_videos_or_groups_have_no_floors(tmp_path):
    few = [0] * 2 * FOLDS + [1]
    grey = {number: np.zeros((8, 16, 16), np.uint8) for number in range(60)}
    assert (
        measure_floors(label_index(tmp_path / "few", labels=few), dict.fromkeys(range(11), grey[0]), seed=0)
        is None
    )
    one_group = label_index(tmp_path / "group", labels=LABELS, groups=["g"] * 60)
    assert measure_floors(one_group, grey, seed=0) is None
