"""Shards have their names only when they are whole."""

import resource
from pathlib import Path

import pytest

from data_tools.command import DataError
from data_tools.shard_writer import ShardSample, write_shards


def some_samples(sizes: list[int]) -> list[ShardSample]:
    return [
        ShardSample(key=f"k{number}", description=b"{}", ending="mp4", video=bytes([number]) * size)
        for number, size in enumerate(sizes)
    ]


def test_a_shard_ends_where_it_would_be_too_large(tmp_path: Path):
    shards, places = write_shards(
        tmp_path, some_samples([400, 400, 400, 5000, 100]), samples_per_shard=10, bytes_per_shard=1000
    )
    assert [entry.samples for entry in shards] == [2, 1, 1, 1]
    assert [place.shard for place in places] == [0, 0, 1, 2, 3]


def test_a_full_disk_is_named_and_leaves_no_half_shard(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write to .*; mend that and run the same command again"):
            write_shards(tmp_path, some_samples([5000, 90_000]), samples_per_shard=1, bytes_per_shard=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]


def test_equal_samples_give_equal_bytes(tmp_path: Path):
    written = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, some_samples([10, 20]), samples_per_shard=5, bytes_per_shard=1000)
        written.append((tmp_path / name / "shard-000000.tar").read_bytes())
    assert written[0] == written[1]


def test_no_samples_make_no_shards(tmp_path: Path):
    assert write_shards(tmp_path, [], samples_per_shard=5, bytes_per_shard=1000) == ([], [])
    assert not list(tmp_path.iterdir())
