"""Lines of a `JsonlWriter` are complete or absent, also on a full disk."""

import json
import os
from pathlib import Path

import pytest

from kinemae.data_tools.command import log
from kinemae.data_tools.files import read_jsonl
from kinemae.pretrain.runtime.jsonl_log import JsonlWriter, drop_lines_from
from tests.full_disk import no_file_above


def line(step: int) -> dict[str, object]:
    return {"step": step, "keys": ["a", "b"]}


def test_a_full_disk_drops_whole_lines_with_one_warning_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    path = tmp_path / "run" / "metrics.jsonl"
    writer = JsonlWriter(path, first_step=0, title="metrics")
    writer.write([line(0), line(1)])
    with no_file_above(path.stat().st_size + 10):  # space for half a line
        writer.write([line(2)])
        writer.write([line(3)])
        assert writer.is_failing
        assert [entry["step"] for entry in read_jsonl(path)] == [0, 1]
        assert path.read_text().endswith("\n")
    writer.write([line(4)])
    writer.close()
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [0, 1, 4]
    (warning,) = caplog.messages
    assert "cannot write metrics" in warning and "training continues without it" in warning


def test_a_file_system_that_fails_every_call_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    writer = JsonlWriter(tmp_path / "metrics.jsonl", first_step=0, title="metrics")
    assert writer._file is not None
    os.close(writer._file)  # as a stale handle: writing, truncating and closing fail
    writer.write([line(0)])
    writer.close()
    (warning,) = caplog.messages
    assert "cannot write metrics ([Errno 9] Bad file descriptor); training continues" in warning


def test_a_folder_that_cannot_be_created_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    (tmp_path / "file").write_text("")
    writer = JsonlWriter(tmp_path / "file" / "metrics.jsonl", first_step=0, title="metrics")
    writer.write([line(0)])
    writer.close()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("tail", ['{"step": 3, "ke', "\0\0\0\0\n", json.dumps(line(3)), ""])
def test_later_and_incomplete_lines_are_dropped_in_place(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line(step)) + "\n" for step in range(3)) + tail)
    with no_file_above(1):
        drop_lines_from(path, 2)
    assert list(read_jsonl(path)) == [line(0), line(1)]
    with no_file_above(1):
        drop_lines_from(path, 9)
    assert list(read_jsonl(path)) == [line(0), line(1)]
    drop_lines_from(tmp_path / "none.jsonl", 0)
