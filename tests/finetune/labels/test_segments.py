"""Columns of segments: accepted forms, and errors that name column, sample and problem."""

import pytest

from kinemae.data_tools.command import DataError
from kinemae.finetune.labels.segments import (
    class_names,
    class_numbers_of,
    parse_segments,
    read_segments,
    segments_as_samples,
)
from tests.label_index import segment_index


@pytest.mark.parametrize(
    "cell",
    [
        '[[1.5, 3, "jump"]]',
        '[[[1.5, 3.0], "jump"]]',
        '[{"start": 1.5, "end": 3, "label": "jump"}]',
        '[{"segment": [1.5, 3], "label": "jump"}]',
    ],
)
def test_every_form_gives_the_same_segments(cell):
    segments = parse_segments(cell)

    assert segments.time_E2.tolist() == [[1.5, 3.0]] and segments.labels == ("jump",)


def test_missing_empty_and_filled_cells_differ(tmp_path):
    index = segment_index(tmp_path, [None, [], [[0, 1, "b"], [2, 3, "a"]], [[4, 5, 7]]])

    segments = read_segments(index, "events", key="data.train=x")

    assert segments[0] is None
    assert [len(each) for each in segments[1:]] == [0, 2, 1]
    assert class_names(segments) == ("7", "a", "b")
    numbers = class_numbers_of(segments, ("7", "a", "b"), index, "events", key="data.train=x")
    assert [each.tolist() for each in numbers] == [[], [], [2, 1], [0]]


def test_a_segment_may_end_one_frame_late_and_is_shortened(tmp_path):
    index = segment_index(tmp_path, [[[9, 10.12, "a"]]])

    (segments,) = read_segments(index, "events", key="data.train=x")

    assert segments.time_E2.tolist() == [[9.0, 10.0]]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("[[1, 2,", "text that is not JSON"),
        ('{"a": 1}', 'got {"a": 1}, not a list'),
        ([[1, 2]], r"got \[1, 2\]"),
        ([["1", 2, "a"]], r'got \["1", 2, "a"\]'),
        ([[1, 2, ""]], r'got \[1, 2, ""\]'),
        ([[True, 2, "a"]], "got"),
        ([{"segment": 3, "label": "a"}], r"got \[3, "),
        ([{"start": 3, "label": "a"}], "got"),
        ([[2, 2, "a"]], "'a' from 2 to 2 s, which is not 0 <= start < end"),
        ([[-1, 2, "a"]], "which is not 0 <= start < end"),
        ('[[NaN, 2, "a"]]', "which is not 0 <= start < end"),
        ('[[1, Infinity, "a"]]', "beyond the video's end at 10 s"),
        ([[9, 10.2, "a"]], "'a' from 9 to 10.2 s, beyond the video's end at 10 s"),
        ([[10.01, 10.1, "a"]], "beyond the video's end"),
    ],
)
def test_an_invalid_cell_is_an_error_that_names_the_sample(tmp_path, cell, problem):
    index = segment_index(tmp_path, [[[0, 1, "a"]], cell])

    with pytest.raises(DataError, match=problem) as error:
        read_segments(index, "events", key="data.train=x")

    message = str(error.value)
    assert message.startswith("data.train=x: expected segments")
    assert "key-1 (1.mp4); fix:" in message and "\n" not in message


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("evnts", [[[0, 1, "a"]]], "expected a column evnts of segments, got none; fix: .*events, number"),
        ("number", [[[0, 1, "a"]]], "got 0, not text in key-0"),
        ("events", [None, []], "expected segments in the column events, got none in 2 videos"),
    ],
)
def test_a_column_without_segments_is_an_error(tmp_path, column, cells, message):
    with pytest.raises(DataError, match=message):
        read_segments(segment_index(tmp_path, cells), column, key="data.train=x")


def test_a_class_that_training_never_saw_is_an_error(tmp_path):
    index = segment_index(tmp_path, [[], [[0, 1, "b"]]])
    segments = read_segments(index, "events", key="k")

    with pytest.raises(DataError, match=r"expected segments of the 1 classes .* got 'b' in key-1"):
        class_numbers_of(segments, ("a",), index, "events", key="k")


def test_segments_become_samples_with_windows_and_labels(tmp_path):
    index = segment_index(tmp_path, [[[0, 1, "a"], [3, 5, "b"]], None, [[2, 4, "a"]]])

    view = segments_as_samples(index, "events", key="k")

    samples = [view.sample(position) for position in range(len(view))]
    assert [sample.key for sample in samples] == ["key-0", "key-0", "key-2"]
    assert [sample.window_s for sample in samples] == [(0, 1), (3, 5), (2, 4)]
    assert view.column("segment").tolist() == ["a", "b", "a"]
