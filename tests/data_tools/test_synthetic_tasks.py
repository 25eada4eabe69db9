"""Synthetic videos of several tasks: labels agree with the pixels, and tables with the videos."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import open_index
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.synth import SynthConfig, plan_synth, task_manifest
from kinemae.data_tools.synthetic_tasks import TASKS, columns_of, draw_scenario, render_scenario
from tests.sharding import contents, shard

TINY = ["train_per_class=1", "validation_per_class=1", "unlabelled=2", "scene.frames=4", "video_frames=32"]


def settings_of(task, *overrides):
    return load_config(SynthConfig, None, [f"task={task}", *overrides]).of_task


def chance(number, purpose="a test"):
    return generator(0, purpose=purpose, sample=number)


def made(task, number, *overrides):
    """Draw a video: its scenario and its frames as float32."""
    settings = settings_of(task, *overrides)
    scenario = draw_scenario(settings, chance(number))
    return scenario, render_scenario(scenario, settings, chance(number, "pixels")).float()


def labels(task, count, *overrides):
    settings = settings_of(task, *overrides)
    return [draw_scenario(settings, chance(number)).labels for number in range(count)]


def moving_frames(frames_THWC):
    """Whether each frame differs from the next one, by more than rounding."""
    return (frames_THWC.diff(dim=0).abs() > 1).flatten(1).any(dim=1).tolist()


@pytest.mark.parametrize("number", range(6))
def test_the_velocity_is_the_shift_of_the_pixels(number):
    exact = ("scene.move_px=[2.0, 2.0]", "scene.direction_jitter_degrees=0")
    scenario, frames_THWC = made("attributes", number, *exact)

    x, y = (round(scenario.labels[name]) for name in ("velocity_x", "velocity_y"))
    assert abs(x) + abs(y) == 2 and scenario.labels["speed_px"] == 2.0
    size = frames_THWC.shape[1]
    before = frames_THWC[:-1, max(-y, 0) : size - max(y, 0), max(-x, 0) : size - max(x, 0)]
    after = frames_THWC[1:, max(y, 0) : size - max(-y, 0), max(x, 0) : size - max(-x, 0)]
    assert (before - after).abs().max() <= 1, "rounding"
    assert (frames_THWC[:-1] - frames_THWC[1:]).abs().mean() > 3


def test_the_attributes_of_a_video_agree():
    rows = labels("attributes", 400)
    for row in rows:
        angle = np.degrees(np.arctan2(row["velocity_y"], row["velocity_x"]))
        expected = {"move_right": 0, "move_down": 90, "move_left": 180, "move_up": -90}[row["direction"]]
        assert abs((angle - expected + 180) % 360 - 180) <= 10.01
        assert np.hypot(row["velocity_x"], row["velocity_y"]) == pytest.approx(row["speed_px"], abs=1e-3)
        level = (row["speed_px"] - 0.3) / 2.2 * 5
        assert row["speed_level"] - 1e-3 <= level <= row["speed_level"] + 1 + 1e-3
    assert max(Counter(row["direction"] for row in rows).values()) < 400 * 0.32
    assert {row["speed_level"] for row in rows} == set(range(5))
    assert max(Counter(row["speed_level"] for row in rows).values()) < 400 * 0.27
    speed = np.array([row["speed_px"] for row in rows])
    assert np.abs(speed - speed.mean()).mean() == pytest.approx(0.55, abs=0.05), "the floor in docs/data.md"


def test_a_multi_label_video_moves_in_as_many_cells_as_it_has_labels():
    for number in range(12):
        scenario, frames_THWC = made("multi_label", number)
        cells = [frames_THWC[:, y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
        names = scenario.labels["motions"].split(";")
        assert sum(any(moving_frames(cell)) for cell in cells) == len(names) == len(set(names))
    present = Counter(name for row in labels("multi_label", 400) for name in row["motions"].split(";"))
    assert all(0.18 < count / 400 < 0.32 for count in present.values()) and len(present) == 8


@pytest.mark.parametrize("number", range(4))
def test_events_are_the_times_of_motion(number):
    scenario, frames_THWC = made(
        "events", number, "scene.turn_degrees=[4, 9]", "scene.zoom_octaves=[0.06, 0.13]"
    )

    segments = json.loads(scenario.labels["segments"])
    expected = [any(start <= frame / 8 < end for start, end, _ in segments) for frame in range(63)]
    assert moving_frames(frames_THWC) == expected and any(expected) and not all(expected)


def test_events_are_apart_and_inside_the_video():
    classes: Counter[str] = Counter()
    in_motion = []
    for row in labels("events", 300):
        segments = json.loads(row["segments"])
        assert 1 <= len(segments) <= 4
        ends = [0.0, *(end for _, end, _ in segments)]
        assert all(start >= before + 0.5 for (start, _, _), before in zip(segments, ends, strict=False))
        assert all(1.0 <= end - start <= 2.0 for start, end, _ in segments) and ends[-1] <= 7.5
        classes.update(name for *_, name in segments)
        in_motion.append(sum(end - start for start, end, _ in segments) / 8)
    assert len(classes) == 8 and max(classes.values()) < 1.5 * min(classes.values())
    assert 0.4 < np.mean(in_motion) < 0.6, "the floor in docs/data.md"


def test_the_cue_decides_the_next_motion_and_is_no_segment():
    expected = {
        "move_left": "rotate_clockwise",
        "move_right": "rotate_counterclockwise",
        "move_up": "zoom_in",
        "move_down": "zoom_out",
    }
    settings = settings_of("anticipation")
    seen: Counter[str] = Counter()
    for number in range(100):
        scenario = draw_scenario(settings, chance(number))
        cues, predicted = scenario.episodes[0][::2], scenario.episodes[0][1::2]
        segments = json.loads(scenario.labels["segments"])
        assert segments == [[each.begin / 8, each.end / 8, each.kind] for each in predicted] != []
        for cue, event in zip(cues, predicted, strict=True):
            assert cue.kind == expected[event.kind] and event.begin - cue.end == 6
        seen.update(event.kind for event in predicted)
    assert set(seen) == set(expected) and max(seen.values()) < 2 * min(seen.values())


def test_nothing_moves_between_a_cue_and_its_motion():
    scenario, frames_THWC = made("anticipation", 1)
    moving = moving_frames(frames_THWC)
    cue, event = scenario.episodes[0][:2]
    assert not any(moving[cue.end : event.begin]) and moving[event.begin] and moving[cue.end - 1]


@pytest.fixture(scope="module")
def synth_out(tmp_path_factory):
    """The videos of each task, small."""
    root = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        assert synth(root / task, task) == 0
    return root


def synth(out: Path, task: str, *overrides: str, workers: int = 1) -> int:
    return run_program(PROGRAM, ["synth", str(out), *TINY, f"task={task}", f"workers={workers}", *overrides])


@pytest.mark.parametrize("task", TASKS)
def test_labels_reach_the_index(synth_out, tmp_path, task):
    assert shard(synth_out / task / "videos.csv", tmp_path / "shards", "curate=false") == 0

    rows = list(csv.DictReader((synth_out / task / "videos.csv").open()))
    for split in ("train", "validation"):
        index = open_index(tmp_path / "shards" / split)
        assert index.extra == columns_of(task) and len(index) == 8
        expected = {row["path"]: row for row in rows if row["split"] == split}
        for name in index.extra:
            found = dict(zip(index.column("name"), index.column(name), strict=True))
            assert {path: str(value) for path, value in found.items()} == {
                path: row[name] for path, row in expected.items()
            }
        assert index.sample(0).frames == (4 if task in ("attributes", "multi_label") else 32)
    assert len(open_index(tmp_path / "shards" / "unlabelled")) == 2


def test_the_number_of_processes_does_not_change_a_byte(synth_out, tmp_path):
    assert synth(tmp_path / "two", "events", workers=2) == 0
    assert contents(tmp_path / "two") == contents(synth_out / "events")


def test_some_cells_can_be_empty():
    settings = SynthConfig(task="attributes", missing=0.25, train_per_class=50, unlabelled=5)
    rows = list(csv.DictReader(task_manifest(settings, plan_synth(settings)).splitlines()))
    labelled = [row for row in rows if row["split"] != "unlabelled"]
    full = SynthConfig(task="attributes", train_per_class=50, unlabelled=5)
    complete = list(csv.DictReader(task_manifest(full, plan_synth(full)).splitlines()))
    for name in columns_of("attributes"):
        empty = sum(row[name] == "" for row in labelled)
        assert 0.2 < empty / len(labelled) < 0.3
        assert all(row[name] in ("", whole[name]) for row, whole in zip(rows, complete, strict=True))
    assert all(row[name] == "" for row in rows[len(labelled) :] for name in columns_of("attributes"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["task=tracking"], "task"),
        (["missing=0.1"], "missing must be 0 for task=motion, whose labels are folders, got 0.1"),
        (["task=events", "missing=1"], r"missing must lie in \[0, 1\), got 1"),
        (["task=events", "video_frames=16"], "video_frames must be at least 32, got 16"),
        (["speed_levels=1"], "speed_levels must be at least 2, got 1"),
        (["task=attributes", "classes=[zoom_in]"], "classes must name moves for task=attributes"),
        (
            ["task=anticipation", "classes=[zoom_in, move_up]"],
            "classes: expected as many moves as rotations and zooms together, two or more",
        ),
    ],
)
def test_a_wrong_config_is_an_error(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(SynthConfig, None, overrides)


def test_a_frame_looks_alike_in_all_classes():
    """The mean, the contrast and the gradients of single frames do not depend on the direction of motion."""
    statistics: dict[str, list[list[float]]] = {}
    for number in range(60):
        scenario, frames_THWC = made("attributes", number)
        frame_HWC = frames_THWC[-1]
        down, right = frame_HWC.diff(dim=0).abs().mean(), frame_HWC.diff(dim=1).abs().mean()
        values = [frame_HWC.mean(), frame_HWC.std(), torch.log(down / right)]
        statistics.setdefault(scenario.labels["direction"], []).append([float(value) for value in values])
    means = np.array([np.mean(values, axis=0) for values in statistics.values()])
    spread = np.std(np.concatenate(list(statistics.values())), axis=0)
    assert (np.abs(means - means.mean(axis=0)) < 0.8 * spread).all()


def test_the_command_names_the_table_to_shard(tmp_path, capfd):
    assert synth(tmp_path / "out", "attributes", "train_per_class=0", "validation_per_class=0") == 0
    assert re.search(r"shard them with `kinemae data shard .*out/videos.csv OUT`", capfd.readouterr().err)
