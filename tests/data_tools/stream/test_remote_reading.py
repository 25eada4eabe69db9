"""Remote shards give the bytes of local ones despite network faults, or an error with the cause."""

import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex, open_index, write_index
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.storage.location import Location, RetryPolicy, StorageUnavailable, location
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.video_reader import read_video
from tests.faulty_server import FaultyServer

QUICK = RetryPolicy(attempts=4, idle_s=0.5, total_s=5.0, pause_s=0.01)
PATIENT = RetryPolicy(attempts=12, idle_s=2.0, total_s=30.0, pause_s=0.01)


@pytest.fixture
def folder(server: FaultyServer) -> Location:
    return location(f"{server.url}/train", retry_policy=QUICK)


def videos_of(index: ShardIndex) -> list[bytes]:
    return [read_video(index, index.sample(position)) for position in range(len(index))]


def test_remote_shards_give_the_bytes_of_local_ones(shards: Path, server: FaultyServer):
    index = open_index(location(f"{server.url}/train", retry_policy=PATIENT))
    server.at_random(0.3, seed=0)
    assert videos_of(index) == videos_of(open_index(shards))


def test_a_sample_is_one_ranged_request(folder: Location, server: FaultyServer):
    index = open_index(folder)
    server.requests.clear()
    sample = index.sample(2)
    read_video(index, sample)
    assert server.ranges() == [f"bytes={sample.offset}-{sample.offset + sample.length - 1}"]
    assert len(server.requests) == 1


def test_opening_reads_no_shard(folder: Location, server: FaultyServer):
    open_index(folder)
    assert not [path for _, path, _ in server.requests if path.endswith(".tar")]


@pytest.mark.parametrize(
    "fault, kind, message",
    [
        (503, StorageUnavailable, r"sample .*: cannot read http.*shard-000000.tar: HTTP 503, retried for"),
        (
            "slow",
            StorageUnavailable,
            r"sample .*: cannot read http.*shard-000000.tar: .*Timeout.*, retried for",
        ),
        (403, BadVideo, r"access denied \(HTTP 403\).*; no sample of that shard can be read$"),
        (404, BadVideo, r"no such file \(HTTP 404\); check the name; no sample of that shard can be read$"),
    ],
)
def test_a_storage_error_has_its_reason(
    folder: Location, server: FaultyServer, fault: str | int, kind: type[Exception], message: str
):
    index = open_index(folder)
    server.fault = lambda method, path: fault
    with pytest.raises(kind, match=message):
        read_video(index, index.sample(0))


def test_a_flipped_remote_bit_is_detected_and_not_cached(shards: Path, folder: Location, tmp_path: Path):
    cache = Cache(folder=tmp_path / "cache", size=10**8)
    index = open_index(folder, cache=cache)
    sample = index.sample(0)
    path = shards / index.shards[sample.shard].name
    good = path.read_bytes()
    middle = sample.offset + sample.length // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    with pytest.raises(BadVideo, match=r"was changed after .* shard-000000.tar"):
        read_video(index, sample)
    path.write_bytes(good)
    assert read_video(index, sample) == good[sample.offset :][: sample.length]


def test_the_second_read_comes_from_the_cache(
    shards: Path, folder: Location, server: FaultyServer, tmp_path: Path
):
    index = open_index(folder, cache=Cache(folder=tmp_path / "cache", size=10**8))
    expected = videos_of(open_index(shards))
    backwards = [read_video(index, index.sample(position)) for position in reversed(range(len(index)))]
    assert backwards == expected[::-1]  # so that most samples are in a hole
    server.requests.clear()
    assert videos_of(index) == expected
    again = open_index(folder, cache=index.cache)
    assert videos_of(again) == expected
    assert not [path for _, path, _ in server.requests if not path.endswith(("dataset.json", "train/"))]


def test_a_damaged_cache_entry_is_read_again(shards: Path, folder: Location, tmp_path: Path):
    index = open_index(folder, cache=Cache(folder=tmp_path / "cache", size=10**8))
    expected = videos_of(index)
    for entry in (tmp_path / "cache").glob("sets/*/*.shard"):
        entry.write_bytes(bytes(byte ^ 1 for byte in entry.read_bytes()))
    assert videos_of(index) == expected == videos_of(index)


def rename_shards(folder: Path, rename: Callable[[str], str]) -> None:
    index = open_index(folder, check_shards=False)
    samples = [index.sample(position) for position in range(len(index))]
    named = [replace(shard, name=rename(shard.name)) for shard in index.shards]
    write_index(folder, samples, named, index.classes, {})


def test_the_cache_serves_a_local_index_of_remote_shards(shards: Path, server: FaultyServer, tmp_path: Path):
    here = Path(shutil.copytree(shards, tmp_path / "here", ignore=shutil.ignore_patterns("*.tar")))
    rename_shards(here, lambda name: f"{server.url}/train/{name}")
    index = open_index(here, cache=Cache(folder=tmp_path / "cache", size=10**8))
    assert videos_of(index) == videos_of(open_index(shards))
    server.requests.clear()
    assert videos_of(index) == videos_of(open_index(shards)) and not server.requests


def read_in_child(index: ShardIndex, results: "multiprocessing.Queue[list[bytes]]") -> None:
    results.put(videos_of(index)[:3])


@pytest.mark.parametrize("cached", [False, True])
def test_a_worker_gets_the_index_without_fetching_it_again(
    folder: Location, server: FaultyServer, tmp_path: Path, cached: bool
):
    index = open_index(folder, cache=Cache(folder=tmp_path / "cache", size=10**8) if cached else None)
    assert len(pickle.dumps(index)) < 2000
    server.requests.clear()
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    worker = context.Process(target=read_in_child, args=(index, results))
    worker.start()
    assert results.get(timeout=60) == videos_of(index)[:3]
    worker.join()
    assert not [path for _, path, _ in server.requests if "tar" not in path]


def test_the_copy_of_an_index_is_deleted_after_its_last_use(folder: Location):
    index = open_index(folder)
    place = index.local_index.folder
    assert (place / "index.arrow").is_file()
    del index
    assert not place.exists()


def test_errors_of_a_remote_folder_name_their_cause(shards: Path, server: FaultyServer, folder: Location):
    with pytest.raises(DataError, match=r"127.0.0.1:\d+: expected a data set, .*; did you mean .*/train\?"):
        open_index(location(server.url, retry_policy=QUICK))
    with pytest.raises(DataError, match=r"/nothing: expected a data set, got a folder without dataset.json$"):
        open_index(location(server.url, retry_policy=QUICK) / "nothing")
    server.fault = lambda method, path: 403
    with pytest.raises(DataError, match=r"cannot read .*dataset.json: access denied \(HTTP 403\)"):
        open_index(folder)


def test_a_remote_index_that_names_files_of_this_machine_is_refused(shards: Path, folder: Location):
    rename_shards(shards, lambda name: f"file:///etc/{name}")
    with pytest.raises(DataError, match=r"got the local file file:///etc/shard-000000.tar"):
        open_index(folder)


def test_a_missing_or_truncated_shard_is_an_error_at_opening_if_the_store_lists(shards: Path, bucket: str):
    folder = location(f"{bucket}/train", retry_policy=QUICK)
    for path in shards.iterdir():
        (folder / path.name).upload(path)
    assert len(open_index(folder)) > 0
    shard = folder / "shard-000001.tar"
    data = shard.read()
    shard.write(data[:-1])
    message = rf"shard-000001.tar of {len(data)} bytes, got {len(data) - 1}: it was truncated or changed"
    with pytest.raises(DataError, match=f"expected the shard {message}"):
        open_index(folder)
    beside = location(f"{bucket}/beside", retry_policy=QUICK)
    shards_of_both = [replace(each, name=f"../train/{each.name}") for each in open_index(shards).shards]
    write_index(beside, [open_index(shards).sample(0)], shards_of_both, [], {})
    with pytest.raises(DataError, match=rf"expected the shard ../train/{message}"):
        open_index(beside)
    shard.remove()
    with pytest.raises(DataError, match=r"lacks 1 of its shards, first shard-000001.tar"):
        open_index(folder)


def test_a_program_is_never_started(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be used: expected"):
        open_index(f"pipe:touch {tmp_path}/started")
    assert not (tmp_path / "started").exists()
