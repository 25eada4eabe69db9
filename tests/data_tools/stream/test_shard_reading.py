"""Reads of shards: one read per video; changed bytes are errors."""

import os
import shutil
from dataclasses import replace

import pytest

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.video_reader import read_video


@pytest.fixture
def shards(synth_shards, tmp_path):
    return shutil.copytree(synth_shards / "train", tmp_path / "shards")


def change_byte(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 1]))


def test_a_video_is_read_as_it_was_sharded(synth_shards):
    index = open_index(synth_shards / "train")
    for position in (0, len(index) - 1):
        sample = index.sample(position)
        info = probe(read_video(index, sample))
        assert (info.frames, info.duration_s, info.width) == (sample.frames, sample.duration_s, sample.width)


def test_a_flipped_bit_is_detected(shards):
    index = open_index(shards)
    sample = index.sample(3)
    change_byte(index.shard_location(sample).path, sample.offset + sample.length // 2)
    with pytest.raises(BadVideo, match=f"sample {sample.key} was changed .* shard-000000.tar: its checksum"):
        read_video(index, sample)
    assert read_video(index, index.sample(4))


def test_a_truncated_shard_is_detected(shards):
    index = open_index(shards)
    sample = index.sample(0)
    os.truncate(index.shard_location(sample).path, sample.offset + 10)
    with pytest.raises(BadVideo, match=f"sample {sample.key} is cut short: 10 of {sample.length} bytes"):
        read_video(index, sample)


def test_a_missing_shard_is_an_error_with_its_name(shards):
    index = open_index(shards)
    sample = index.sample(0)
    index.shard_location(sample).path.unlink()
    with pytest.raises(
        BadVideo, match=f"sample {sample.key} cannot be read from shard-000000.tar: No such file"
    ):
        read_video(index, sample)


def test_reading_many_shards_keeps_few_of_them_open(shards):
    index = open_index(shards)
    source = index.shard_location(index.sample(0)).path
    first = index.shards[0]
    names = [f"shard-{number:06d}.tar" for number in range(200)]
    for name in names:
        if not (shards / name).exists():
            os.link(source, shards / name)
    index.shards = tuple(replace(first, name=name) for name in names)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        sample = replace(index.sample(0), shard=number)
        read_video(index, replace(sample, crc32=index.sample(0).crc32)) if number != 1 else None
    assert len(os.listdir("/proc/self/fd")) - before <= 64


def test_a_forked_reader_does_not_disturb_its_parent(synth_shards):
    index = open_index(synth_shards / "train")
    expected = [read_video(index, index.sample(position)) for position in range(4)]
    child = os.fork()
    if child == 0:
        good = all(read_video(index, index.sample(n % 4)) == expected[n % 4] for n in range(400))
        os._exit(0 if good else 1)
    assert all(read_video(index, index.sample(n % 4)) == expected[n % 4] for n in range(400))
    assert os.waitpid(child, 0)[1] == 0
