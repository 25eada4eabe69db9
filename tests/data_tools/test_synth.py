"""The synthetic data set: H.264 files with reproducible bytes."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.data_tools.encoding.encode import EncodeConfig, write_video
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.synth import SynthConfig, plan_synth

TINY = ["train_per_class=1", "validation_per_class=1", "unlabelled=4", "scene.frames=4", "scene.size=16"]


def synth(out: Path, *overrides: str, workers: int = 1) -> int:
    return run_program(PROGRAM, ["synth", str(out), *TINY, f"workers={workers}", *overrides])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "videos"
    assert synth(folder) == 0
    return folder


def test_every_file_is_h264_of_the_configured_length_and_size(made: Path):
    files = sorted(made.rglob("*.mp4"))
    assert len(files) == 8 + 8 + 4
    for file in files:
        info = probe(file)
        assert (info.codec, info.frames, info.width, info.height) == ("h264", 4, 16, 16)
        assert info.duration_s == pytest.approx(0.5)


def test_the_number_of_processes_does_not_change_a_byte(made: Path, tmp_path: Path):
    assert synth(tmp_path / "two", workers=2) == 0
    assert contents(tmp_path / "two") == contents(made)


def test_a_resumed_run_writes_the_same_bytes(made: Path, tmp_path: Path):
    out = tmp_path / "videos"
    synth(out)
    for file in sorted(out.rglob("*.mp4"))[::3]:
        file.rename(file.with_name(f"{file.name}.partial"))
    assert synth(out) == 0
    assert contents(out) == contents(made)


def test_all_videos_differ(made: Path):
    firsts = [decode_at(file.read_bytes(), [0.0])[0].float() for file in sorted(made.rglob("*.mp4"))]
    distances = torch.stack(
        [(one - other).abs().mean() for one in firsts for other in firsts if one is not other]
    )
    assert distances.min() > 10


def test_larger_counts_keep_existing_videos():
    few = plan_synth(load_config(SynthConfig, None, TINY))
    many = plan_synth(load_config(SynthConfig, None, ["train_per_class=3", "unlabelled=9"]))
    assert set(few) <= set(many)


def test_the_unlabelled_split_has_all_classes_evenly_in_random_order():
    videos = [
        video for video in plan_synth(SynthConfig(unlabelled=80)) if video.purpose == "synth/unlabelled"
    ]
    assert set(Counter(video.kind for video in videos).values()) == {10}
    assert [video.kind for video in videos[:8]] != [video.kind for video in videos[8:16]]
    assert not any(kind in video.file for video in videos for kind in SynthConfig().classes)


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert synth(tmp_path / "out", "--dry-run", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["videos"] == {"train": 8, "validation": 8, "unlabelled": 4}
    assert report["to_make"] == 20
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "holiday.mp4").touch()
    assert synth(tmp_path) == 2
    assert "is not empty and holds no synth.json; fix: give a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_videos_of_another_config_are_refused(made: Path, capsys: pytest.CaptureFixture[str]):
    assert synth(made, "seed=1", "encode.crf=30") == 2
    assert "of another config, different in encode, seed" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    assert synth(tmp_path / "file" / "out") == 3
    assert f"cannot write to {tmp_path}/file/out: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, message",
    [
        ("unlabelled=-1", "unlabelled must be 0 or more, got -1"),
        ("train_per_class=-1", "train_per_class must be 0 or more"),
        ("classes=[]", "classes must name at least one motion"),
        ("classes=[zoom_in,zoom_in]", "classes must name each motion once"),
        ("classes=[wobble]", "classes must be among move_left"),
        ("encode.fps=0", "encode.fps must be at least 1"),
        ("encode.crf=60", "encode.crf must lie in [0, 51]"),
        ("encode.gop=0", "encode.gop must be at least 1"),
        ("scene.szie=4", "did you mean scene.size?"),
    ],
)
def test_a_wrong_config_names_the_fix(override: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(SynthConfig, None, [override])


def test_written_data_reads_back_equal(tmp_path: Path):
    frames_THWC = (torch.arange(6).view(6, 1, 1, 1) * 40 + torch.zeros(6, 32, 48, 3)).to(torch.uint8)
    write_video(tmp_path / "grey.mp4", frames_THWC, EncodeConfig(fps=10, crf=10))
    read_TCHW = decode_at((tmp_path / "grey.mp4").read_bytes(), [(frame + 0.5) / 10 for frame in range(6)])
    assert (read_TCHW.permute(0, 2, 3, 1).int() - frames_THWC.int()).abs().max() <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["grey.mp4"]


def test_an_odd_side_cannot_be_encoded(tmp_path: Path):
    with pytest.raises(ValueError, match="a video of 15x16 pixels cannot be encoded as yuv420p"):
        write_video(tmp_path / "odd.mp4", torch.zeros(2, 15, 16, 3, dtype=torch.uint8), EncodeConfig())
