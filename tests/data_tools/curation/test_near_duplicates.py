"""The search finds all near duplicates, and the command lists the samples to remove."""

import errno
import json
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.__main__ import main
from kinemae.data_tools.curation.duplicates import DuplicatesConfig, find_duplicates
from kinemae.data_tools.curation.frame_stats import HASH_BITS
from kinemae.data_tools.curation.near_duplicates import Arrays, near_duplicate_groups, read_hashes
from kinemae.data_tools.encoding.encode import EncodeConfig
from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED
from kinemae.data_tools.index import Sample, Shard, open_data_sets, open_index, write_index
from kinemae.data_tools.storage.location import location
from tests.data_tools.report.conftest import moving, put
from tests.seeds import examples
from tests.sharding import shard


def groups_by_comparing_all(words_NX: np.ndarray, max_bits: int) -> set[frozenset[int]]:
    """Reference: compare every pair, then join."""
    group = list(range(len(words_NX)))
    for one in range(len(words_NX)):
        for other in range(one):
            if np.bitwise_count(words_NX[one] ^ words_NX[other]).sum() <= max_bits:
                old, new = group[one], group[other]
                group = [new if number == old else number for number in group]
    found = [frozenset(place for place, of in enumerate(group) if of == number) for number in set(group)]
    return {members for members in found if len(members) > 1}


@examples(20)
@given(seed=st.integers(0, 2**32), max_bits=st.integers(0, 32), all_pairs=st.sampled_from((0, 4096)))
def test_every_near_pair_is_found_and_no_other(seed: int, max_bits: int, all_pairs: int) -> None:
    chance = np.random.default_rng(seed)
    families = chance.integers(0, 256, (6, HASH_BITS // 8), dtype=np.uint8)
    bits = np.unpackbits(families[chance.integers(0, 6, 40)], axis=1)
    for row in bits:  # few or many flips
        row[chance.permutation(HASH_BITS)[: chance.integers(0, 20)]] ^= 1
    words_NX = np.packbits(bits, axis=1).view(np.uint64)
    groups = near_duplicate_groups(words_NX, max_bits, all_pairs=all_pairs)
    assert {frozenset(group.tolist()) for group in groups} == groups_by_comparing_all(words_NX, max_bits)


def test_many_equal_hashes_are_one_group() -> None:
    [group] = near_duplicate_groups(np.zeros((50_000, 4), np.uint64), 16)
    assert group.tolist() == list(range(50_000))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_hashes_have_no_groups(count: int) -> None:
    assert [*near_duplicate_groups(np.zeros((count, 4), np.uint64), 16)] == []


def data_set(folder: Path, hashes: dict[str, int | None], *, width: int = 16) -> Path:
    """An index of samples with hashes, of the given keys."""
    fixed = dict(shard=0, offset=0, length=1, crc32=0, frames=1, duration_s=1.0, codec="h264", label=-1)
    samples = [Sample(key=key, name=key, width=width, height=16, **fixed) for key in hashes]
    texts = [None if value is None else f"{value:064x}" for value in hashes.values()]
    folder.mkdir(parents=True)
    (folder / "shard-000000.tar").write_bytes(b"0")
    tars = [Shard(name="shard-000000.tar", samples=len(hashes), bytes=1, sha256="")]
    write_index(folder, samples, tars, [], {}, {"phash": texts})
    return folder


def test_held_out_and_larger_samples_are_kept_and_removed_ones_are_near_them(tmp_path: Path) -> None:
    chain = {"a": 0, "b": 0xFF, "c": 0xFFFF, "far": 1 << 200 | 0xFFFFFF << 100, "none": None}
    data_set(tmp_path / "train", chain)
    data_set(tmp_path / "validation", {"v": 0xFF}, width=8)
    groups = find_duplicates(open_data_sets(location(tmp_path)), DuplicatesConfig(bits=8))
    [group] = groups  # a and c differ by 16 bits: both are near v
    assert group["keep"] == {"key": "v", "split": "validation", "name": "v"}
    assert {(entry["key"], entry["bits"]) for entry in group["remove"]} == {("a", 8), ("b", 0), ("c", 8)}
    [group] = find_duplicates({"": open_index(tmp_path / "train")}, DuplicatesConfig(bits=8))
    assert [group["keep"]["key"], *(entry["key"] for entry in group["remove"])] == ["a", "b"]  # c is too far


def test_samples_without_a_hash_are_left_out(tmp_path: Path) -> None:
    index = open_index(data_set(tmp_path / "train", {"a": 1, "b": None, "c": 1 << 255}))
    [(words_RX, position_R)] = read_hashes(index)
    assert position_R.tolist() == [0, 2]
    assert words_RX.tobytes().hex() == f"{1:064x}{1 << 255:064x}"


def test_the_lists_remove_reencoded_copies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    videos = tmp_path / "videos"
    for number in range(3):
        put(videos / f"train/walk/{number}.mp4", moving(number))
    put(videos / "train/walk/small.mp4", moving(0, size=48), EncodeConfig(fps=8, crf=30))
    put(videos / "validation/walk/again.mp4", moving(1, size=56), EncodeConfig(fps=8, crf=30))
    assert shard(videos, tmp_path / "shards") == 0
    capfd.readouterr()
    assert main(["duplicates", str(tmp_path / "shards"), str(tmp_path / "my lists"), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"samples": 5, "groups": 2, "remove": {"train": 2, "validation": 0}}
    assert (tmp_path / "my lists/train.txt").read_text().split() == ["train_walk_1", "train_walk_small"]
    assert f"kinemae data remove {tmp_path / 'shards/train'} '{tmp_path / 'my lists/train.txt'}'" in err
    assert main(["duplicates", str(tmp_path / "shards"), str(tmp_path / "my lists")]) == 2
    assert "expected a new folder" in capfd.readouterr().err


def test_a_data_set_without_hashes_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "videos/walk/0.mp4", moving(0))
    assert shard(tmp_path / "videos", tmp_path / "shards", "curate=false", "validation_fraction=0") == 0
    assert main(["duplicates", str(tmp_path / "shards"), str(tmp_path / "my lists")]) == 3
    assert (
        "expected the column phash, got none; fix: make the data set with curate=true"
        in capfd.readouterr().err
    )


def test_arrays_in_files_give_the_same_groups_and_stay_out_of_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = np.random.default_rng(0)
    words_NX = chance.integers(0, 1 << 63, (6000, 4), dtype=np.uint64)
    words_NX[3000:3100] = words_NX[:100] ^ np.uint64(7)
    words_NX[5000:5100] = words_NX[:100]
    monkeypatch.setattr("kinemae.data_tools.curation.near_duplicates._HASHES_AT_ONCE", 512)
    in_files = near_duplicate_groups(words_NX, 16, arrays=Arrays(tmp_path))
    expected = [[row, 3000 + row, 5000 + row] for row in range(100)]
    assert sorted(group.tolist() for group in in_files) == expected


def test_a_full_disk_ends_the_search_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    data_set(tmp_path / "train", {"a": 1, "b": 1})
    assert main(["duplicates", str(tmp_path / "train"), str(tmp_path / "lists")]) == 3
    assert "No space left on device" in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"train"}


def test_an_interrupted_command_leaves_no_out_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set(tmp_path / "train", {"a": 1, "b": 1})
    words = ["duplicates", str(tmp_path / "train"), str(tmp_path / "lists")]
    for function in ("to_jsonl", "_keys_name", "find_duplicates"):
        with monkeypatch.context() as patch:
            patch.setattr(f"kinemae.data_tools.curation.duplicates.{function}", _interrupted)
            assert main(words) == EXIT_INTERRUPTED
        assert {path.name for path in tmp_path.iterdir()} == {"train"}
    assert main(words) == 0
    assert (tmp_path / "lists" / "keys.txt").read_text() == "b\n"


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt
