"""Shards have their final names only when they are complete."""

import resource
import zlib
from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.sharding.tar_writer import ShardSample, into_shards, write_shard


def some_samples(folder: Path, sizes: list[int]) -> list[ShardSample]:
    """Samples that are ranges of one file, like the members of a tar."""
    file, samples, offset = folder / "videos", [], 7
    content = b"before." + b"".join(bytes([number]) * size for number, size in enumerate(sizes))
    file.write_bytes(content)
    for number, size in enumerate(sizes):
        crc32 = zlib.crc32(content[offset : offset + size])
        samples.append(
            ShardSample(
                key=f"k{number}",
                description=b"{}",
                extension="mp4",
                file=file,
                offset=offset,
                length=size,
                crc32=crc32,
            )
        )
        offset += size
    return samples


def test_a_shard_ends_before_it_exceeds_a_limit(tmp_path: Path):
    samples = some_samples(tmp_path, [400, 400, 400, 5000, 100])
    groups = list(into_shards(samples, samples_per_shard=10, bytes_per_shard=1000))
    assert [[sample.key for sample in group] for group in groups] == [["k0", "k1"], ["k2"], ["k3"], ["k4"]]
    assert [len(group) for group in into_shards(samples, samples_per_shard=2, bytes_per_shard=10**6)] == [
        2,
        2,
        1,
    ]
    assert list(into_shards([], samples_per_shard=5, bytes_per_shard=1000)) == []


def test_places_give_the_positions_of_the_bytes(tmp_path: Path):
    samples = some_samples(tmp_path, [10, 0, 3000])
    shard, places = write_shard(tmp_path, 3, samples)
    content = (tmp_path / "shard-000003.tar").read_bytes()
    assert (shard.name, shard.samples, shard.bytes) == ("shard-000003.tar", 3, len(content))
    for number, (place, size) in enumerate(zip(places, [10, 0, 3000], strict=True)):
        assert content[place.offset : place.offset + place.length] == bytes([number]) * size
        assert (place.key, place.shard) == (f"k{number}", 3)


def test_a_full_disk_is_an_error_and_leaves_no_partial_shard(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    small, large = some_samples(tmp_path, [5000, 90_000])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        write_shard(out, 0, [small])
        with pytest.raises(DataError, match=r"cannot write to .*; fix that and run the same command again"):
            write_shard(out, 1, [large])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in out.iterdir()] == ["shard-000000.tar"]


@pytest.mark.parametrize("damage", [b"before.\x09", b"bef"])
def test_a_video_that_changed_after_its_check_is_an_error(tmp_path: Path, damage: bytes):
    samples = some_samples(tmp_path, [100])
    content = samples[0].file.read_bytes()
    samples[0].file.write_bytes(damage + content[len(damage) :] if len(damage) > 5 else damage)
    with pytest.raises(DataError, match=r"videos: expected the bytes that were checked, got others"):
        write_shard(tmp_path, 0, samples)
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_equal_samples_give_equal_bytes(tmp_path: Path):
    samples = some_samples(tmp_path, [10, 20])
    for number in range(2):
        write_shard(tmp_path, number, samples)
    assert (tmp_path / "shard-000000.tar").read_bytes() == (tmp_path / "shard-000001.tar").read_bytes()
