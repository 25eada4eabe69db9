"""Views of an index: rows, time windows and columns, usable as the index itself."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from kinemae.data_tools.index import Sample, open_index
from kinemae.data_tools.stream.loader import (
    AugmentConfig,
    ClipConfig,
    SlidingClips,
    TrainingClips,
    evaluation_loader,
)

CLIP = ClipConfig(frames=4, stride=1, size=32)


@pytest.fixture
def index(synth_shards):
    return open_index(synth_shards / "validation")


def test_a_view_shows_the_chosen_rows_in_order(index):
    view = index.view([5, 0, 5])

    assert len(view) == 3 and view.classes == index.classes
    assert [view.sample(row) for row in range(3)] == [index.sample(row) for row in (5, 0, 5)]
    assert view.column("key").tolist() == index.column("key")[[5, 0, 5]].tolist()
    with pytest.raises(IndexError, match="holds 3 samples, got position 3"):
        view.sample(3)


def test_a_view_of_a_view_is_a_view_of_the_data_set(index):
    windows = np.array([[0.0, 0.5], [0.5, 1.0], [1.0, 1.5]])
    view = index.view([3, 4, 5], window_s=windows, columns={"score": [1.0, None, 3.0]})

    again = view.view([2, 1])

    assert [again.sample(row).key for row in range(2)] == [index.sample(row).key for row in (5, 4)]
    assert again.sample(0).window_s == (1.0, 1.5)
    assert set(again.extra) == {*index.extra, "score"}
    assert again.arrow_column("score").to_pylist() == [3.0, None]


def test_a_view_replaces_labels_and_classes(index):
    view = index.view(range(2), columns={"label": np.array([1, -1])}, classes=["off", "on"])

    assert [view.sample(row).label for row in range(2)] == [1, -1]
    assert view.column("label").tolist() == [1, -1] and view.column("label").dtype == np.int32
    assert view.classes == ("off", "on")
    assert view.extra == index.extra


def test_a_view_can_be_pickled_and_has_an_identity_of_its_own(index):
    view = index.view([1, 2], window_s=[(0, 1), (0.5, 1.5)], columns={"word": ["a", None]})

    copy = pickle.loads(pickle.dumps(view))

    assert [copy.sample(row) for row in range(2)] == [view.sample(row) for row in range(2)]
    assert copy.identity == view.identity and copy.fingerprint == index.fingerprint
    others = [
        index,
        index.view([1, 2]),
        index.view([2, 1], window_s=[(0, 1), (0.5, 1.5)], columns={"word": ["a", None]}),
        index.view([1, 2], window_s=[(0, 1), (0.5, 1.4)], columns={"word": ["a", None]}),
        index.view([1, 2], window_s=[(0, 1), (0.5, 1.5)], columns={"word": ["a", "b"]}),
    ]
    assert len({view.identity, *(other.identity for other in others)}) == 6


@pytest.mark.parametrize(
    "window_s, message",
    [
        ([(0, 1), (1, 1)], r"time window of row 1: expected 0 <= begin < end <= 2 .* got 1 to 1"),
        ([(-0.1, 1), (0, 1)], r"row 0: .* got -0.1 to 1"),
        ([(0, 2.2), (0, 1)], r"row 0: .* got 0 to 2.2"),
        ([(0, float("nan")), (0, 1)], r"row 0: .* got 0 to nan"),
        ([(0, 1)], "window_s: expected a value for each of 2 rows, got 1"),
    ],
)
def test_a_wrong_window_is_an_error(index, window_s, message):
    assert index.sample(0).duration_s == 2
    with pytest.raises(ValueError, match=message):
        index.view([0, 1], window_s=window_s)


def test_a_wrong_row_or_column_is_an_error(index):
    with pytest.raises(IndexError, match="samples, got position -1"):
        index.view([0, -1])
    with pytest.raises(ValueError, match="score: expected a value for each of 1 rows, got 2"):
        index.view([0], columns={"score": [1, 2]})


def test_the_end_of_a_video_may_be_rounded_up_by_a_frame(index):
    view = index.view([0], window_s=[(1.5, 2 + 1 / 8)])
    assert view.sample(0).window_s == (1.5, 2.125)


def test_training_and_evaluation_read_only_the_frames_of_the_window(index):
    view = index.view([3, 3], window_s=[(0.5, 1.25), (1.25, 2.0)])
    clips = TrainingClips(view, clip=CLIP, augment=AugmentConfig(), seed=0)

    batch = clips.batch(range(20))
    items = list(
        evaluation_loader(view, clip=CLIP, temporal_clips=3, spatial_crops=1, rank=0, world=1, workers=0)
    )

    ranges = {0: (0.5, 1.25), 1: (1.25, 2.0)}
    for position, time_T in [
        *zip(batch.sample_B.tolist(), batch.time_BT, strict=True),
        *((item.position, time_T) for item in items for time_T in item.time_VT),
    ]:
        assert ranges[position][0] <= time_T.min() and time_T.max() < ranges[position][1]
    assert set(batch.sample_B.tolist()) == {0, 1}
    assert sorted({round(float(time_T[0]) * 8 - 0.5) for time_T in batch.time_BT}) == [4, 5, 6, 10, 11, 12]


def sliding(index, monkeypatch=None, *, clip=CLIP, bytes_per_item=None, world=1, crops=1, **how):
    if bytes_per_item:
        monkeypatch.setattr("kinemae.data_tools.stream.evaluation_clips._BYTES_PER_ITEM", bytes_per_item)
    return [
        item
        for rank in range(world)
        for item in evaluation_loader(
            index, clip=clip, temporal_clips=SlidingClips(**how), spatial_crops=crops,
            rank=rank, world=world, workers=0, samples=range(3),
        )
    ]  # fmt: skip


def test_sliding_clips_cover_every_frame(index):
    for item in sliding(index):
        frames = (item.time_VT * 8 - 0.5).round().long()
        assert frames.tolist() == [list(range(start, start + 4)) for start in (0, 4, 8, 12)]
    for item in sliding(index, overlap=0.5):
        assert (item.time_VT[:, 0] * 8 - 0.5).round().tolist() == [0, 2, 4, 6, 8, 10, 12]
    for item in sliding(index, step_s=0.5, clip=replace(CLIP, frames=7)):
        assert (item.time_VT[:, 0] * 8 - 0.5).round().tolist() == [0, 3, 6, 9], (
            "9 frames in steps of 4 or less"
        )
    for item in sliding(index, clip=replace(CLIP, frames=40)):
        assert len(item.time_VT) == 1, "a short video has one clip"


def test_a_long_video_comes_in_parts_with_the_same_clips(index, monkeypatch):
    whole = sliding(index, overlap=0.75, crops=3)
    three_clips = 3 * 3 * 4 * 32**2 * 3 // 2
    parts = sliding(index, monkeypatch, overlap=0.75, crops=3, bytes_per_item=three_clips, world=2)

    assert [(item.part, item.parts) for item in whole] == [(0, 1)] * 3
    for item in whole:
        mine = [part for part in parts if part.position == item.position]
        assert [(part.part, part.parts) for part in mine] == [(number, 5) for number in range(5)]
        assert max(len(part.pixels) for part in mine) <= 9
        assert torch.equal(torch.cat([part.pixels.rgb() for part in mine]), item.pixels.rgb())
        assert torch.equal(torch.cat([part.time_VT for part in mine]), item.time_VT)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"overlap": 1.0}, r"sliding.overlap must lie in \[0, 1\), got 1"),
        ({"step_s": 0.0}, "sliding.step_s must be above 0, or null for sliding.overlap, got 0"),
        ({"step_s": 1.0, "overlap": 0.5}, "sliding.overlap must be omitted with sliding.step_s"),
    ],
)
def test_wrong_sliding_clips_are_an_error(how, message):
    with pytest.raises(ValueError, match=message):
        SlidingClips(**how)


def test_sliding_clips_refuse_uniform_sampling(index):
    with pytest.raises(ValueError, match=r"clip.sampling must be dense for sliding clips"):
        sliding(index, clip=ClipConfig(frames=4, sampling="uniform", size=32))


def test_a_sample_of_a_data_set_has_no_window(index):
    assert isinstance(index.sample(0), Sample) and index.sample(0).window_s is None
