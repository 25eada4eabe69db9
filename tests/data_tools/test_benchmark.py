"""`bench` measures the steps of training; the tests assert no times."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.benchmark import DECODE, OPEN, PIXELS, READ, REST, Clock, step_by_step
from kinemae.data_tools.command import run_program
from kinemae.data_tools.exit_codes import EXIT_DATA
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.data_tools.stream.yuv_to_rgb import to_rgb

SMALL = ["clip.frames=4", "clip.stride=2", "clip.size=16", "clips=20", "workers=1"]


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_program(PROGRAM, ["bench", *arguments, *SMALL, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("views", [1, 3])
def test_the_steps_read_what_training_reads(synth_shards: Path, views: int):
    clips = TrainingClips(
        open_index(synth_shards / "train"),
        clip=ClipConfig(frames=4, stride=2, size=16),
        augment=AugmentConfig(),
        seed=3,
        views=views,
    )
    clock = Clock()
    for position in range(5):
        wanted = clips.batch(range(position * views, (position + 1) * views)).pixels
        assert torch.equal(to_rgb(step_by_step(clips, position, clock)), to_rgb(wanted))
    assert clock.seconds[OPEN] > 0


def test_the_result_has_every_step_and_clip(synth_shards: Path, capsys: pytest.CaptureFixture[str]):
    result = bench(capsys, str(synth_shards / "train"), "data.views_per_video=2", "gpu_clips_per_s=500")
    assert (result["clips"], result["skipped"], result["workers"]) == (24, 0, 1), "whole batches of 8"
    assert list(result["seconds"]) == [READ, OPEN, DECODE, PIXELS, REST]
    assert all(seconds >= 0 for seconds in result["seconds"].values())
    assert result["cores_for_gpu"] == pytest.approx(500 / result["clips_per_s_per_core"])
    assert result["clips_per_s"] > 0 and result["wait_s"] >= 0


def test_videos_that_cannot_be_read_are_counted(
    synth_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "train"
    shutil.copytree(synth_shards / "train", folder)
    index = open_index(folder)
    for position in range(0, len(index), 2):
        sample = index.sample(position)
        with index.shard_location(sample).path.open("r+b") as file:
            file.seek(sample.offset)
            file.write(b"????")
    assert len(index) == 32, "so that the clips are one epoch: every sample once"
    assert run_program(PROGRAM, ["bench", str(folder), *SMALL, "clips=32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 16


def test_the_result_is_printed_as_a_table(synth_shards: Path, capsys: pytest.CaptureFixture[str]):
    assert run_program(PROGRAM, ["bench", str(synth_shards / "train"), *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "24 clips, 0 of them unreadable"
    assert [line[:16].strip() for line in lines[3:8]] == [READ, OPEN, DECODE, PIXELS, REST]
    assert sum(int(line.split()[-2]) for line in lines[3:8]) == pytest.approx(100, abs=3)
    assert lines[-1].startswith("a GPU with 1000 clips/s needs ")


@pytest.mark.parametrize(
    "override, message",
    [
        ("clips=0", "clips must be at least 1, got 0"),
        ("workers=-1", "workers must be 0 or more, got -1"),
        ("gpu_clips_per_s=0", "gpu_clips_per_s must be above 0, got 0.0"),
        ("data.views_per_video=0", "data.views_per_video must be at least 1, got 0"),
        ("clip.sizes=3", "did you mean clip.size?"),
    ],
)
def test_a_wrong_key_gives_a_one_line_error(
    synth_shards: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
):
    assert run_program(PROGRAM, ["bench", str(synth_shards / "train"), override]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_data_set_without_a_readable_clip_is_not_measured(
    synth_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "validation"
    shutil.copytree(synth_shards / "validation", folder)
    for tar in folder.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    assert run_program(PROGRAM, ["bench", str(folder), *SMALL]) == EXIT_DATA
    assert f"{folder}: expected clips that can be read, got none of 24" in capsys.readouterr().err
