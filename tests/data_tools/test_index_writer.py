"""Changes of a data set: new files, one commit, old readers undisturbed; one writer at a time."""

import hashlib
import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kinemae.data_tools import index_writer
from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import (
    IndexWriter,
    Sample,
    Shard,
    ShardIndex,
    open_index,
    write_index,
    write_removed,
)
from kinemae.data_tools.storage.location import Location, location

EMPTY = Sample(
    key="", shard=0, offset=0, length=1, crc32=0, frames=2, duration_s=0.5, width=4, height=4, codec="h264",
    label=0, name="",
)  # fmt: skip
SHARDS = [
    Shard(name=f"shard-{number:06d}.tar", samples=5, bytes=3, sha256=f"{number}a") for number in range(2)
]


def samples(count: int = 10) -> list[Sample]:
    return [replace(EMPTY, key=f"k{number}", shard=number % 2, offset=number) for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in SHARDS:
        (tmp_path / shard.name).write_bytes(b"tar")
    write_index(tmp_path, samples(), SHARDS, ["x"], {"by": "a test"}, {"score": [0.5, None] * 5})
    return tmp_path


def keys(index: ShardIndex) -> list[str]:
    found = [index.sample(position).key for position in range(len(index))]
    assert index.column("key").tolist() == found
    batches = index.batches(["key"]) if index._rows is None else [pa.table({"key": found})]
    assert [key for batch in batches for key in batch.column("key").to_pylist()] == found
    return found


def remove(index: ShardIndex, *rows: int) -> None:
    removed_R = np.union1d(index.removed_R, np.array(rows, dtype=np.int64))
    write_removed(index.folder, index.state, removed_R, index.shards)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {shard.name for shard in SHARDS}


def test_batches_of_any_size_give_the_same_file(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(index_writer, "_ROWS_PER_CHUNK", 4)
    index = open_index(folder)
    for sizes in ([1] * 10, [3, 7], [10]):
        with IndexWriter(
            tmp_path / str(sizes[0]), classes=["x"], made_by={}, extra={"score": pa.float64()}
        ) as writer:
            begin = 0
            for size in sizes:
                part = slice(begin, begin + size)
                if size == 3:
                    writer.add_batch(pa.concat_tables([pa.Table.from_batches(index.batches())]).slice(0, 3))
                else:
                    writer.add_samples(samples()[part], {"score": ([0.5, None] * 5)[part]})
                begin += size
            writer.add_shards(index.shards)
            assert writer.shard_count == 2
    first, *others = (open_index(tmp_path / name, check_shards=False) for name in ("1", "3", "10"))
    assert {other.identity for other in others} == {first.identity}
    assert first.arrow_column("score").to_pylist() == [0.5, None] * 5
    assert first.shards[:] == tuple(SHARDS) and list(first.shards) == SHARDS and first.shards.bytes == 6


def test_removed_rows_are_gone_for_every_reader(folder: Path):
    index = open_index(folder)
    remove(index, 3, 4)

    now = open_index(folder)

    assert keys(now) == ["k0", "k1", "k2", "k5", "k6", "k7", "k8", "k9"]
    assert now.rows(np.array([3, 0])).tolist() == [5, 0] and now.row(3) == 5
    assert now.value("score", 3) is None and now.value("score", 4) == 0.5
    assert now.fingerprint != index.fingerprint and now.identity != index.identity
    assert keys(now.view([3, 1, 3])) == ["k5", "k1", "k5"]
    assert keys(pickle.loads(pickle.dumps(now))) == keys(now)
    assert keys(now.with_removed()) == keys(index)
    with pytest.raises(IndexError, match="holds 8 samples, got position 8"):
        now.sample(8)


def test_a_filter_is_a_data_set_of_the_rows_it_keeps(folder: Path):
    remove(open_index(folder), 0)
    index = open_index(folder)

    kept = index.filter(np.arange(9) % 3 == 0)

    assert keys(kept) == ["k1", "k4", "k7"] and kept.row(2) == 7
    assert keys(kept.filter(np.array([False, True, True]))) == ["k4", "k7"]
    assert keys(index.view([8, 0, 1]).filter(np.array([True, False, True]))) == ["k9", "k2"]
    copy = pickle.loads(pickle.dumps(kept))
    assert keys(copy) == keys(kept) and copy.identity == kept.identity != index.identity
    with pytest.raises(ValueError, match="expected a value for each of 9 rows, got 3"):
        index.filter(np.ones(3, dtype=bool))


def test_the_files_of_a_state_live_until_the_change_after_the_next(folder: Path):
    first = open_index(folder)
    assert names(folder) == {"dataset.json", "index.arrow", "shards.arrow"}
    remove(first, 1)
    second = open_index(folder)
    with IndexWriter(folder, classes=["x"], made_by={}, base=second.state) as writer:
        writer.add_samples(samples(4))
        writer.add_shards(SHARDS)
    new = {name for name in names(folder) if name.startswith("index-")}
    assert names(folder) == {"dataset.json", "index.arrow", "shards.arrow", *new} | {
        file.name for file in second.files.values()
    }
    assert keys(pickle.loads(pickle.dumps(second))) == keys(second)  # as in a new loader worker
    third = open_index(folder)
    assert keys(third) == ["k0", "k1", "k2", "k3"]
    remove(third, 0)
    assert names(folder) == {"dataset.json", "shards.arrow", *new} | {
        file.name for file in open_index(folder).files.values()
    }
    assert keys(open_index(folder)) == ["k1", "k2", "k3"]


def test_an_aborted_change_leaves_no_trace(folder: Path):
    before, state = names(folder), (folder / "dataset.json").read_bytes()
    with pytest.raises(KeyError), IndexWriter(folder, classes=["x"], made_by={}) as writer:
        writer.add_samples(samples(3))
        raise KeyError
    assert names(folder) == before and (folder / "dataset.json").read_bytes() == state


def test_a_change_of_an_older_state_is_refused(folder: Path):
    index = open_index(folder)
    remove(index, 1)
    with pytest.raises(DataError, match=r"expected the data set that was opened, .* fix: run the command"):
        remove(index, 2)
    assert len(open_index(folder)) == 9


def test_a_second_writer_is_refused(folder: Path):
    with IndexWriter(folder, classes=[], made_by={}) as writer:
        with pytest.raises(DataError, match="expected one writer, got another process that writes"):
            IndexWriter(folder, classes=[], made_by={}).__enter__()
        writer.add_samples(samples(1))
        writer.add_shards(SHARDS)
    assert len(open_index(folder)) == 1 and "dataset.lock" not in names(folder)


@pytest.mark.processes
@pytest.mark.parametrize("stop", ["add_samples", "add_file", "commit"])
def test_a_killed_writer_changes_nothing_and_the_next_one_cleans_up(folder: Path, stop: str):
    before = keys(open_index(folder))
    script = textwrap.dedent(f"""
        import os, sys
        from kinemae.data_tools.data_set_files import DataSetChange
        from kinemae.data_tools.index import IndexWriter, open_index
        def kill(*args, **named):
            os.kill(os.getpid(), 9)
        for owner in (IndexWriter, DataSetChange):
            if hasattr(owner, {stop!r}):
                real = getattr(owner, {stop!r})
                setattr(owner, {stop!r}, lambda *args, real=real, **named: (real(*args, **named), kill()))
        if {stop!r} == "commit":
            DataSetChange.commit = kill
        index = open_index({str(folder)!r})
        with IndexWriter(index.folder, classes=["x"], made_by={{}}, base=index.state) as writer:
            writer.add_samples([index.sample(0)])
            writer.add_shards(index.shards)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert keys(open_index(folder)) == before
    remove(open_index(folder), 0)
    assert keys(open_index(folder)) == before[1:]
    files = {file.name for file in open_index(folder).files.values()}
    assert names(folder) == {"dataset.json", *files}


def test_an_object_store_refuses_the_second_of_two_changes(bucket: str, folder: Path):
    store = location(f"{bucket}/set")
    write_index(store, samples(), SHARDS, ["x"], {})
    index = open_index(store, check_shards=False)

    with pytest.raises(DataError, match="expected the data set that was opened"):  # noqa: SIM117
        with IndexWriter(store, classes=["x"], made_by={}, base=index.state) as late:
            remove(index, 0)
            late.add_samples(samples(1))

    assert keys(open_index(store, check_shards=False)) == [f"k{number}" for number in range(1, 10)]
    assert keys(pickle.loads(pickle.dumps(index))) == [f"k{number}" for number in range(10)]
    files = {file.name for file in open_index(store, check_shards=False).files.values()}
    assert set(store.list()) == {"dataset.json", *files}


def test_the_loser_of_two_first_writers_takes_nothing_away(bucket: str):
    store = location(f"{bucket}/set")
    with pytest.raises(DataError, match="expected the data set that was opened"):  # noqa: SIM117
        with IndexWriter(store, classes=["x"], made_by={}) as late:
            write_index(store, samples(), SHARDS, ["x"], {})
            late.add_samples(samples(1))
            late.add_shards(SHARDS)
    assert keys(open_index(store, check_shards=False)) == [f"k{number}" for number in range(10)]


def interrupted(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Let another process make a change after the last comparison of a commit, before its write."""
    write = Location.write

    def late_write(place: Location, data: bytes, **options: str | None) -> None:
        monkeypatch.setattr(Location, "write", write)
        change()
        write(place, data, **options)

    monkeypatch.setattr(Location, "write", late_write)


def test_an_object_store_compares_the_state_when_it_is_replaced(bucket: str, monkeypatch: pytest.MonkeyPatch):
    store = location(f"{bucket}/set")
    write_index(store, samples(), SHARDS, ["x"], {})
    index = open_index(store, check_shards=False)
    interrupted(monkeypatch, lambda: remove(index, 0))
    with pytest.raises(DataError, match=r"got another dataset.json: another process changed it"):
        remove(index, 1)
    now = open_index(store, check_shards=False)
    assert now.removed_R.tolist() == [0]
    assert set(store.list()) == {"dataset.json", *(file.name for file in now.files.values())}


def test_an_object_store_lets_one_of_two_first_writers_win(bucket: str, monkeypatch: pytest.MonkeyPatch):
    store = location(f"{bucket}/set")
    interrupted(monkeypatch, lambda: write_index(store, samples(), SHARDS, ["x"], {}))
    with pytest.raises(DataError, match="another process changed it"):
        write_index(store, samples(3), SHARDS, ["x"], {})
    assert keys(open_index(store, check_shards=False)) == [f"k{number}" for number in range(10)]


def test_a_removed_row_outside_the_index_is_an_error(folder: Path):
    index = open_index(folder)
    write_removed(index.folder, index.state, np.array([10]), index.shards)
    with pytest.raises(DataError, match=r"the list of removed rows in .* expected rows below 10, got 10"):
        open_index(folder)


def test_a_folder_that_cannot_be_written_is_an_error(folder: Path):
    index = open_index(folder)
    (folder / "dataset.lock").mkdir()
    with pytest.raises(DataError, match=r"cannot write to .*: Is a directory; fix that"):
        write_removed(index.folder, index.state, np.array([1]), index.shards)


def old_format(folder: Path) -> None:
    """Rewrite the index as format 2 had it."""
    index = open_index(folder)
    (folder / "shards.arrow").unlink()
    file = folder / "index.arrow"
    table = pa.ipc.open_file(file.read_bytes()).read_all().drop_columns(["frame_step"])
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    described = json.loads(index.state)
    described |= {"format": 2, "index_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    described["shards"] = [asdict(shard) for shard in index.shards]
    del described["files"], described["previous"]
    (folder / "dataset.json").write_text(json.dumps(described))


def test_format_2_is_read_and_changed(folder: Path):
    old_format(folder)
    index = open_index(folder)
    assert index.column("frame_step").tolist() == [1] * 10
    assert keys(index) == [f"k{number}" for number in range(10)] and index.shards[1] == SHARDS[1]
    assert keys(pickle.loads(pickle.dumps(index))) == keys(index)
    remove(index, 9)
    now = open_index(folder)
    assert keys(now) == keys(index)[:9] and now.shards[1] == SHARDS[1]
    assert keys(pickle.loads(pickle.dumps(index))) == keys(index)


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "shard-000000.tar", "index.arrow.tar"])
def test_files_outside_the_folder_are_rejected(folder: Path, name: str):
    described = json.loads((folder / "dataset.json").read_text())
    described["files"]["index"]["name"] = name
    (folder / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match=r"is damaged \(unknown file"):
        open_index(folder)
