"""`show` prints a summary of a data set."""

import json
from pathlib import Path

import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import NO_LABEL, Sample, Shard, open_index, write_index
from kinemae.data_tools.show import summarize
from kinemae.data_tools.synth import SynthConfig


def test_show_prints_counts_as_json(synth_shards: Path, capsys: pytest.CaptureFixture[str]):
    assert run_program(PROGRAM, ["show", str(synth_shards / "train"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == summarize(open_index(synth_shards / "train"))
    assert summary["classes"] == dict.fromkeys(sorted(SynthConfig().classes), 4)
    assert (summary["samples"], summary["shards"], summary["without_label"]) == (32, 2, 0)
    assert summary["frames"] == {"min": 16, "median": 16.0, "max": 16}
    assert (summary["codecs"], summary["sizes"]) == ({"h264": 32}, {"32x32": 32})
    assert summary["hours"] == pytest.approx(32 * 2 / 3600)


def test_show_prints_text(synth_shards: Path, capsys: pytest.CaptureFixture[str]):
    assert run_program(PROGRAM, ["show", str(synth_shards / "unlabelled")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "samples      40 in 3 shards" in lines[0]
    assert "no label     40" in lines
    assert len(lines) < 40


def test_show_suggests_the_splits(synth_shards: Path, capsys: pytest.CaptureFixture[str]):
    assert run_program(PROGRAM, ["show", str(synth_shards)]) == 3
    error = capsys.readouterr().err
    assert "did you mean" in error and str(synth_shards / "train") in error


def test_show_takes_no_further_arguments(synth_shards: Path, capsys: pytest.CaptureFixture[str]):
    assert run_program(PROGRAM, ["show", str(synth_shards / "train"), "a=1"]) == 2
    assert "expected no further arguments, got 'a=1'" in capsys.readouterr().err


def test_show_prints_layout_groups_and_extra_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        Sample(
            key=f"k{at}", name=f"n{at}", shard=0, offset=0, length=9, crc32=0, frames=30, duration_s=1.0 + at,
            width=4, height=4, codec="h264", label=NO_LABEL, group="ab"[at % 2], reference_stride=2 + at % 2,
            frame_step=2,
        )
        for at in range(3)
    ]  # fmt: skip
    (tmp_path / "shard-000000.tar").touch()
    shards = [Shard(name="shard-000000.tar", samples=3, bytes=0, sha256="")]
    made_by = {"config": {"layout": {"name": "h264"}}}
    write_index(tmp_path, rows, shards, [], made_by, extra={"camera": ["x", "y", "z"]})
    assert run_program(PROGRAM, ["show", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    layout = "h264; every 2nd frame of the source in 3; every 2nd stored frame decodes alone in 2; "
    assert f"layout       {layout}every 3rd stored frame decodes alone in 1" in lines
    assert "frame rate   10.00 to 30.00 fps, median 15.00 fps" in lines
    assert "groups       2" in lines and "columns      camera" in lines


def test_show_counts_removed_rows(shards: Path, capsys: pytest.CaptureFixture[str]):
    assert run_program(PROGRAM, ["remove", str(shards), "where=label == 'move_left'"]) == 0
    assert run_program(PROGRAM, ["show", str(shards)]) == 0
    assert "removed      4 rows, whose videos are in the shards until" in capsys.readouterr().out
    assert run_program(PROGRAM, ["show", str(shards), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 4
