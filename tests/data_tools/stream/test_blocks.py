"""Block order of a remote data set with a cache: a block is one request, and the batches are the same."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.orders.base import Block, Order
from kinemae.data_tools.orders.blocks import BlockOrder
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.storage.location import RetryPolicy, location
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips, training_loader
from kinemae.data_tools.stream.mixture import BalancedClasses, Concatenation, Mixture, Source
from kinemae.data_tools.stream.order import plan_batch
from kinemae.data_tools.stream.training_clips import sample_order
from kinemae.data_tools.stream.video_reader import _range_of
from tests.faulty_server import FaultyServer

CLIP = ClipConfig(frames=4, stride=2, size=24)
QUICK = RetryPolicy(attempts=2, idle_s=5.0, total_s=10.0, pause_s=0.01)
VIDEOS = 4  # of a step


def order_of(index: ShardIndex) -> BlockOrder:
    """Blocks of five samples."""
    bytes_per_sample = sum(shard.bytes for shard in index.shards) / len(index)
    return BlockOrder(block_mb=5 * bytes_per_sample / 1e6, window=4, partitions=1)


def epoch(index: ShardIndex, number: int, *, read_ahead: int = 6, workers: int = 0) -> list[ClipBatch]:
    clips = TrainingClips(
        index, clip=CLIP, augment=AugmentConfig(), seed=3, order=order_of(index), videos_per_step=VIDEOS
    )
    steps = len(index) // VIDEOS
    return list(
        training_loader(
            clips,
            plan_batch(VIDEOS, VIDEOS, 1, 1),
            rank=0,
            first_step=number * steps,
            last_step=(number + 1) * steps,
            workers=workers,
            pin=False,
            read_ahead=read_ahead,
        )
    )


def assert_same(found: list[ClipBatch], expected: list[ClipBatch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys == other.keys and one.skipped == other.skipped == ()
        assert torch.equal(one.clip_BCTHW, other.clip_BCTHW)


def remote(server: FaultyServer, folder: Path, size: int) -> ShardIndex:
    cache = Cache(folder=folder / "cache", size=size)
    index = open_index(location(f"{server.url}/train", retry_policy=QUICK), cache=cache)
    server.requests.clear()
    return index


def block_ranges(index: ShardIndex) -> set[tuple[int, int]]:
    """Shard and first byte of each part of a block."""
    found = set()
    for begin in range(0, len(index), 5):
        samples = [index.sample(position) for position in range(begin, min(begin + 5, len(index)))]
        for shard in {sample.shard for sample in samples}:
            found.add((shard, min(sample.offset for sample in samples if sample.shard == shard)))
    return found


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.processes)])
def test_each_block_is_one_request_and_later_epochs_make_none(
    shards: Path, server: FaultyServer, tmp_path: Path, workers: int
):
    index, here = remote(server, tmp_path, 10**8), open_index(shards)
    assert_same(epoch(index, 0, workers=workers), epoch(here, 0))
    ranges = server.ranges()
    assert len(ranges) == len(set(ranges)) <= len(block_ranges(here))
    epoch(index, 1)
    server.requests.clear()
    assert_same(epoch(index, 2), epoch(here, 2))
    assert server.ranges() == []


def test_a_cache_that_is_too_small_for_the_data_still_reads_blocks_once(
    shards: Path, server: FaultyServer, tmp_path: Path
):
    here = open_index(shards)
    whole = sum(shard.bytes for shard in here.shards)
    index = remote(server, tmp_path, round(0.6 * whole) + 10 * 4096 * len(here))
    for number in range(3):
        server.requests.clear()
        assert_same(epoch(index, number), epoch(here, number))
        assert len(server.ranges()) <= 1.3 * len(block_ranges(here)) + 2


def test_the_range_of_a_block_is_found_in_little_time(shards: Path):
    here = open_index(shards)
    order = np.resize(np.arange(len(here)), 2000)
    for index in (here, here.filter(np.arange(len(here)) % 3 != 0), here.view(np.sort(order))):
        block = Block(range(1, len(index) - 1), 1)
        samples = [index.sample(position) for position in block.positions]
        chosen = samples[:: len(samples) // 3]
        begin_s = time.thread_time()
        found = [_range_of(index, sample, block) for sample in chosen]
        assert time.thread_time() - begin_s < 0.01 * len(chosen)
        for sample, (begin, end) in zip(chosen, found, strict=True):
            together = [each for each in samples if each.shard == sample.shard]
            assert begin == min(each.offset for each in together)
            assert end == max(each.offset + each.length for each in together)


@pytest.mark.parametrize("name", ["locks", "blocks", "sets"])
def test_a_damaged_cache_makes_no_sample_bad(shards: Path, server: FaultyServer, tmp_path: Path, name: str):
    index = remote(server, tmp_path, 10**8)
    folder = tmp_path / "cache" / name
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    assert_same(epoch(index, 0), epoch(open_index(shards), 0))


@pytest.mark.parametrize("size, is_small", [(1 << 30, False), (20_000, True), (0, False)])
def test_a_window_larger_than_half_of_the_cache_is_logged(
    shards: Path, tmp_path: Path, logged: pytest.LogCaptureFixture, size: int, is_small: bool
):
    index = open_index(shards, cache=Cache(folder=tmp_path, size=size) if size else None)
    sample_order(order_of(index), index, VIDEOS)
    assert ("half of data.cache_gb=2e-05 holds fewer" in logged.text) == is_small


def test_without_a_cache_each_sample_is_one_request(shards: Path, server: FaultyServer):
    index, here = open_index(location(f"{server.url}/train", retry_policy=QUICK)), open_index(shards)
    server.requests.clear()
    assert_same(epoch(index, 0), epoch(here, 0))
    assert len(server.ranges()) == len(here) // VIDEOS * VIDEOS


def test_a_damaged_sample_of_a_block_is_skipped_and_its_neighbours_are_read(
    shards: Path, server: FaultyServer, tmp_path: Path
):
    here = open_index(shards)
    sample = here.sample(2)
    path = shards / here.shards[sample.shard].name
    content = bytearray(path.read_bytes())
    content[sample.offset + 100] ^= 16
    path.write_bytes(content)
    skipped = [clip for batch in epoch(remote(server, tmp_path, 10**8), 0) for clip in batch.skipped]
    assert [clip.key for clip in skipped] == [sample.key]
    assert "checksum differs" in skipped[0].reason


@pytest.mark.parametrize("kind", ["weight", "balance", "concatenation"])
def test_blocks_are_refused_where_neighbours_are_not_read_together(shards: Path, kind: str):
    index, order = open_index(shards), BlockOrder()
    sources: dict[str, Source] = {
        "weight": Mixture({"a": index}, {"a": 1.0}, weight="frames"),
        "concatenation": Concatenation({"a": index, "b": index}),
        "balance": BalancedClasses(index, [0] * len(index), balance=1.0),
    }
    with pytest.raises(
        ValueError, match=r"data.order.name must be random with data.concatenate, .*, got 'blocks'"
    ):
        sample_order(order, sources[kind], 4)
    assert sample_order(None, sources[kind], 4) is None
    assert isinstance(order, Order)
