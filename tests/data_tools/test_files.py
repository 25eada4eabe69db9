"""Reads and writes are complete after short system calls; only regular files are opened."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from kinemae.data_tools import files
from kinemae.data_tools.__main__ import main
from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_DATA
from kinemae.data_tools.files import (
    Descriptor,
    atomic_write_text,
    commit_of_code,
    names_in,
    open_regular,
    read_at,
    read_blocks,
    read_json,
    read_jsonl,
    replaced_file,
    to_jsonl,
    write_at,
)
from kinemae.data_tools.sharding.rejects import read_entries
from kinemae.data_tools.storage.location import StorageError, location
from tests.full_disk import no_file_above

MAX_PER_CALL = 0x7FFFF000  # limit of one read on Linux
DATA = bytes(range(256)) * 40


def test_a_descriptor_knows_whether_its_file_is_still_at_a_path(tmp_path: Path):
    path, moved = tmp_path / "lock", tmp_path / "moved"
    opened = Descriptor(str(path), os.O_RDWR | os.O_CREAT)
    assert opened.is_at(path)
    path.rename(moved)
    assert opened.is_at(moved) and not opened.is_at(path)
    path.touch()
    assert not opened.is_at(path)


@pytest.mark.parametrize("at_once", [1000, 10_240, 1 << 26])
def test_read_at_is_complete_with_any_limit_per_call(tmp_path: Path, at_once: int):
    (tmp_path / "x").write_bytes(DATA)
    with (tmp_path / "x").open("rb") as file:
        for offset, length in [(0, len(DATA)), (5, 3000), (len(DATA) - 10, 3000), (len(DATA), 5), (0, 0)]:
            assert read_at(file.fileno(), offset, length, at_once=at_once) == DATA[offset:][:length]


def test_read_at_continues_after_a_short_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x").write_bytes(DATA)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, offset: real(file, min(length, 999), offset))
    with (tmp_path / "x").open("rb") as file:
        assert read_at(file.fileno(), 7, 5000) == DATA[7:5007]


def test_read_at_reads_at_offsets_above_two_gibibytes(tmp_path: Path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(MAX_PER_CALL + 100)  # sparse file
    with (tmp_path / "x").open("rb") as file:
        assert read_at(file.fileno(), MAX_PER_CALL, 200) == bytes(100)


def test_write_at_continues_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: real(file, content[:999], offset))
    with (tmp_path / "x").open("wb") as file:
        write_at(file.fileno(), 3, DATA)
    assert (tmp_path / "x").read_bytes() == bytes(3) + DATA


def test_an_irregular_file_is_rejected_without_opening_it(tmp_path: Path):
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
        message = f"cannot read {re.escape(str(path))}: expected a regular file, got {kind}"
        with pytest.raises(StorageError, match=message):
            location(path).read()


def test_an_installed_package_has_no_commit_of_the_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "another project"]):
        subprocess.run([*git, *words], check=True)
    package = tmp_path / ".venv" / "kinemae"
    (package / "data_tools").mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(package / "data_tools" / "files.py"))
    assert commit_of_code() is None
    (package / "pyproject.toml").touch()  # a checkout
    assert commit_of_code()


def test_a_name_with_a_line_separator_is_one_entry(tmp_path: Path):
    entries = [{"name": "a\u2028b\x85c\nd"}, {"name": "second"}]
    (tmp_path / "log.jsonl").write_text(to_jsonl(entries) + '{"name": "cut', encoding="utf-8")
    assert list(read_jsonl(tmp_path / "log.jsonl")) == entries
    assert read_entries(to_jsonl(entries)) == entries


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for content in (b"[1", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: expected JSON, got an error: "):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent.json")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    file = tmp_path / "list.json"
    atomic_write_text(file, "old")
    with pytest.raises(KeyboardInterrupt), replaced_file(file) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(file, "\udcff")
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]
    assert file.read_text() == "old"


@pytest.mark.parametrize("words", [["export", "out.parquet"], ["card", "out.md"]])
def test_a_full_disk_leaves_no_incomplete_file(
    words: list[str], tmp_path: Path, synth_shards: Path, capsys: pytest.CaptureFixture[str]
):
    command, name = words
    with no_file_above(500):
        assert main([command, str(synth_shards / "validation"), str(tmp_path / name)]) == EXIT_DATA
    assert "File too large" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("command", "name"),
    [("export", "a.parquet"), ("report", "a.html"), ("card", "a.md"), ("duplicates", "a"), ("synth", "a")],
)
def test_a_url_is_no_local_out(
    command: str,
    name: str,
    tmp_path: Path,
    synth_shards: Path,
    monkeypatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    source = [] if command == "synth" else [str(synth_shards / "validation")]
    assert main([command, *source, f"s3://bucket/{name}"]) == EXIT_CONFIG
    assert f"OUT s3://bucket/{name}: expected a path, got a URL" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_the_content_is_on_the_disk_before_the_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.extend(one.name for one in tmp_path.iterdir() if one.read_text() == "new")

    monkeypatch.setattr(os, "fsync", watched_fsync)
    atomic_write_text(tmp_path / "file", "new")
    assert synced == ["file.partial"] and (tmp_path / "file").read_text() == "new"


def test_a_folder_that_is_absent_has_no_names_and_one_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "a").touch()
    assert names_in(tmp_path) == ["a"]
    assert names_in(tmp_path / "absent") == []
    with pytest.raises(NotADirectoryError):
        names_in(tmp_path / "a")
