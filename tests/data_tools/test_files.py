"""Files: complete reads and writes in spite of short system calls; only regular files are opened."""

import os
import re
import socket
from pathlib import Path

import pytest

from kinemae.data_tools.files import open_regular, read_at, read_blocks, write_at
from kinemae.data_tools.storage.location import StorageError, location

MOST_AT_ONCE = 0x7FFFF000  # what Linux reads with one call
DATA = bytes(range(256)) * 40


@pytest.mark.parametrize("at_once", [1000, 10_240, 1 << 26])
def test_a_read_is_whole_whatever_the_system_gives_at_once(tmp_path: Path, at_once: int):
    (tmp_path / "x").write_bytes(DATA)
    with (tmp_path / "x").open("rb") as file:
        for offset, length in [(0, len(DATA)), (5, 3000), (len(DATA) - 10, 3000), (len(DATA), 5), (0, 0)]:
            assert read_at(file.fileno(), offset, length, at_once=at_once) == DATA[offset:][:length]


def test_a_read_that_the_system_cuts_short_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x").write_bytes(DATA)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, offset: real(file, min(length, 999), offset))
    with (tmp_path / "x").open("rb") as file:
        assert read_at(file.fileno(), 7, 5000) == DATA[7:5007]


def test_more_than_two_gibibytes_are_read_from_the_end_of_a_large_file(tmp_path: Path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(MOST_AT_ONCE + 100)  # a hole, which uses no disk space
    with (tmp_path / "x").open("rb") as file:
        assert read_at(file.fileno(), MOST_AT_ONCE, 200) == bytes(100)


def test_a_write_is_whole_whatever_the_system_takes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: real(file, content[:999], offset))
    with (tmp_path / "x").open("wb") as file:
        write_at(file.fileno(), 3, DATA)
    assert (tmp_path / "x").read_bytes() == bytes(3) + DATA


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.mp4"))
    for path, kind in [
        (tmp_path / "pipe.mp4", "a named pipe"),
        (tmp_path / "s.mp4", "a socket"),
        (Path("/dev/zero"), "a device"),
    ]:
        with pytest.raises(OSError, match=f"expected a regular file, got {kind}"):
            open_regular(path)
        with pytest.raises(OSError, match=f"expected a regular file, got {kind}"):
            list(read_blocks(path))
        said = f"cannot read {re.escape(str(path))}: expected a regular file, got {kind}"
        with pytest.raises(StorageError, match=said):
            location(path).read()
