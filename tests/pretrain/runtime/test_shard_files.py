"""Shard files: any process reads any range; gaps and overlaps are detected."""

import json
import os
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from kinemae.data_tools.command import CheckpointError
from kinemae.pretrain.runtime.checkpoint_files import (
    FileChecksum,
    ShardReader,
    checksum_of,
    read_ranges,
    write_shards,
)
from kinemae.pretrain.runtime.tensor_shards import ShardRange, ShardTable
from tests.seeds import examples

COUNT = 23


def write_runs(folder: Path, edges: list[int], files: int) -> list[ShardRange]:
    """A parameter with values 0, 1, 2, ..., split at `edges` into files."""
    values_V = torch.arange(float(COUNT))
    spans = [
        ShardRange(f"shards-{number % files}", "weight", "w", start, stop)
        for number, (start, stop) in enumerate(zip([0, *edges], [*edges, COUNT], strict=True))
    ]
    for file in {span.file for span in spans}:
        own = [span for span in spans if span.file == file]
        write_shards(folder / file, own, [values_V[span.start : span.stop] for span in own])
    return spans


@examples(40)
@given(
    edges=st.sets(st.integers(1, COUNT - 1)).map(sorted),
    files=st.integers(1, 4),
    run=st.tuples(st.integers(0, COUNT), st.integers(0, COUNT)).map(sorted),
)
def test_any_range_is_read_from_any_partition_into_files(
    tmp_path_factory: pytest.TempPathFactory, edges: list[int], files: int, run: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    written = write_runs(folder, edges, files)
    spans = [span for path in folder.iterdir() for span in read_ranges(path)]
    assert sorted(spans) == sorted(written)
    table = ShardTable(spans)
    assert table.find_fault({"w": (COUNT,)}, {}) is None
    store = ShardReader(folder, table)
    assert store.read("w", "weight", *run).tolist() == list(range(*run))


def test_safetensors_reads_a_shard_file_and_the_checksum_is_correct(tmp_path: Path) -> None:
    spans = [ShardRange("f", "weight", "strange/na@me", 0, 3), ShardRange("f", "exp_avg", "b", 5, 6)]
    mark = write_shards(tmp_path / "f", spans, [torch.tensor([1.0, -2.0]), torch.tensor([3.5, 4.0])])
    found = load_file(tmp_path / "f")
    assert {name: values.tolist() for name, values in found.items()} == {
        "weight/strange/na@me@0": [1.0, -2.0, 3.5],
        "exp_avg/b@5": [4.0],
    }
    assert sorted(read_ranges(tmp_path / "f")) == sorted(spans)
    content = (tmp_path / "f").read_bytes()
    assert mark == checksum_of(tmp_path / "f") == FileChecksum(len(content), zlib.crc32(content))


def test_safetensors_reads_a_file_without_values(tmp_path: Path) -> None:
    write_shards(tmp_path / "f", [], [])
    with safe_open(tmp_path / "f", framework="pt") as file:
        assert list(file.keys()) == []


def test_missing_moments_are_read_as_zeros(tmp_path: Path) -> None:
    store = ShardReader(tmp_path, ShardTable(write_runs(tmp_path, [], 1)))
    assert store.read("w", "exp_avg", 3, 5).tolist() == [0.0, 0.0]


def test_a_checkpoint_may_have_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    store = ShardReader(tmp_path, ShardTable(write_runs(tmp_path, list(range(1, COUNT)), COUNT)))
    before = len(os.listdir("/proc/self/fd"))
    assert store.read("w", "weight", 0, COUNT).tolist() == list(range(COUNT))
    assert len(os.listdir("/proc/self/fd")) - before <= 16 < COUNT
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "nothing stays mapped"


def test_read_values_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    store = ShardReader(tmp_path, ShardTable(write_runs(tmp_path, [], 1)))
    store.read("w", "weight", 0, COUNT).zero_()
    assert store.read("w", "weight", 0, COUNT).tolist() == list(range(COUNT))


@pytest.mark.parametrize(
    ("runs", "fault"),
    [
        ([("weight", "w", 0, 4), ("weight", "w", 6, 8)], "values 4 to 6 of weight of w are missing"),
        ([("weight", "w", 0, 5), ("weight", "w", 4, 8)], "values 4 to 5 of weight of w are held twice"),
        ([("weight", "w", 0, 8), ("weight", "w", 0, 8)], "values 0 to 8 of weight of w are held twice"),
        ([("weight", "w", 0, 6)], "expected 8 values of weight of w, got 6"),
        ([("weight", "w", 0, 9)], "expected 8 values of weight of w, got 9"),
        ([], "expected 8 values of weight of w, got 0"),
        (
            [("weight", "w", 0, 8), ("weight", "v", 0, 1)],
            "expected only the parameters of parameters.json, got weight of v too",
        ),
        ([("weight", "w", 0, 8), ("exp_avg", "w", 0, 8)], "expected 8 values of exp_avg_sq of w, got 0"),
    ],
)
def test_gaps_and_overlaps_are_found(
    tmp_path: Path, runs: list[tuple[str, str, int, int]], fault: str
) -> None:
    table = ShardTable([ShardRange("f", *run) for run in runs])
    updates = {"w": 3} if "exp_avg" in fault else {}
    assert table.find_fault({"w": (2, 4)}, updates) == fault


def test_moments_may_be_absent_before_the_first_update(tmp_path: Path) -> None:
    table = ShardTable([ShardRange("f", "weight", "w", 0, 8)])
    assert table.find_fault({"w": (8,)}, {"w": 0}) is None
    assert table.find_fault({"w": (8,)}, {"w": 1}) == "expected 8 values of exp_avg of w, got 0"


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(json.dumps({"no": "shards"}))
    with pytest.raises(ValueError, match=r"^f: "):
        read_ranges(tmp_path / "f")
    with pytest.raises(CheckpointError, match=r"cannot read .*/f: "):
        ShardReader(tmp_path, ShardTable([ShardRange("f", "weight", "w", 0, 8)])).read("w", "weight", 0, 8)
