"""Shard files: any process reads any range; gaps and overlaps are detected."""

import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kinemae.pretrain.runtime.checkpoint_files import FileChecksum, ShardStream, write_shards
from kinemae.pretrain.runtime.tensor_shards import ShardRange, ShardTable


def test_safetensors_reads_a_shard_file_and_the_checksum_is_correct(tmp_path: Path) -> None:
    spans = [ShardRange("f", "weight", "strange/na@me", 0, 3), ShardRange("f", "exp_avg", "b", 5, 6)]
    mark = write_shards(tmp_path / "f", spans, [torch.tensor([1.0, -2.0]), torch.tensor([3.5, 4.0])])
    found = load_file(tmp_path / "f")
    assert {name: values.tolist() for name, values in found.items()} == {
        "weight/strange/na@me@0": [1.0, -2.0, 3.5],
        "exp_avg/b@5": [4.0],
    }
    content = (tmp_path / "f").read_bytes()
    assert mark == FileChecksum.of(content) == FileChecksum(len(content), zlib.crc32(content))
    stream = ShardStream(tmp_path / "f", mark)
    assert stream.ranges == spans
    for values in ([1.0], [-2.0, 3.5], [4.0]):
        values_V = torch.empty(len(values))
        stream.read_into(values_V)
        assert values_V.tolist() == values
        stream.close()  # it is opened again
    stream.check_end()


def test_safetensors_reads_a_file_without_values(tmp_path: Path) -> None:
    write_shards(tmp_path / "f", [], [])
    with safe_open(tmp_path / "f", framework="pt") as file:
        assert list(file.keys()) == []


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


@pytest.mark.parametrize(
    "content", [b'{"no": "shards"}', b"", b"short", b"\x02" + bytes(7) + b"[]", bytes(99)]
)
def test_a_file_of_another_format_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match=r"^f has changed since it was written: "):
        ShardStream(tmp_path / "f", FileChecksum.of(content))
