"""Parquet manifests: types of columns, folders of files, bad tables, and the export of an index."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinemae.data_tools.__main__ import main
from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import COLUMNS, open_index
from kinemae.data_tools.sources.parquet import ParquetSource
from tests.sharding import shard, write_clip


def table(file: Path, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    for name in columns.get("path", ()):
        (file.parent / name).touch()
    return file


def test_columns_keep_their_types_and_empty_cells_have_no_value(tmp_path: Path) -> None:
    day = datetime.date(2026, 11, 29)
    file = table(
        tmp_path / "list.parquet",
        path=["a.mp4", "b.mp4"],
        Split=pa.array(["train", "val"]).dictionary_encode(),
        score=[0.5, float("nan")],
        views=[3, None],
        sure=[True, False],
        day=[day, None],
        license=["CC-BY-4.0", ""],
        vector=[[1.0], [2.0]],
    )
    first, second = ParquetSource(columns={"split": "Split"}).list_videos(file).videos
    expected = {"score": 0.5, "views": 3, "sure": 1, "day": "2026-11-29", "license": "CC-BY-4.0"}
    assert (first.split, first.extra) == ("train", expected)
    assert (second.split, second.extra) == ("validation", {"sure": 0})


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    table(tmp_path / "1.parquet", path=["c.mp4"], score=[1.5])
    table(tmp_path / "0.parquet", path=["a.mp4", "b.mp4"], score=[1, None])
    found = ParquetSource().list_videos(tmp_path).videos
    assert [(video.name, dict(video.extra)) for video in found] == [
        ("a.mp4", {"score": 1.0}),
        ("b.mp4", {}),
        ("c.mp4", {"score": 1.5}),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected parquet files, got none"):
        ParquetSource().list_videos(tmp_path / "empty")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"video": [b"mp4"]}, "got the bytes of the videos in the column video; fix: write them to tars"),
        (
            {"video_path": ["a.mp4"]},
            "fix: state the column of the paths|add source.args.columns.path=video_path",
        ),
        ({"path": ["a.mp4"], "split": ["trian"]}, "row 1: expected one of the splits"),
        ({"path": ["a.mp4"], "codec": ["h264"]}, "got the column 'codec'"),
    ],
)
def test_a_wrong_table_is_an_error(columns: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    file = table(tmp_path / "list.parquet", **columns)
    with pytest.raises(DataError, match=message):
        ParquetSource().list_videos(file)


def test_an_encoding_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"source\.args\.encoding: expected none for parquet"):
        ParquetSource(encoding="cp1252")


def test_an_index_is_exported_with_names_of_splits_classes_and_shards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,label,split,license", "0.mp4,run,train,CC0", "1.mp4,walk,train,", "2.mp4,walk,val,CC0"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    for number in range(3):
        write_clip(tmp_path / f"{number}.mp4", number)
    out, exported = tmp_path / "shards", tmp_path / "all.parquet"
    assert shard(tmp_path / "list.csv", out) == 0
    capfd.readouterr()
    assert main(["export", str(out), str(exported), "--json"]) == 0
    found = pq.read_table(exported)
    summary = json.loads(capfd.readouterr().out)
    assert summary == {"samples": 3, "columns": found.column_names}
    index = open_index(out / "train")
    assert found.column_names == ["split", *COLUMNS.names, *index.extra]
    by_name = {row["name"]: row for row in found.to_pylist()}
    facts = {name: (row["split"], row["label"], row["license"]) for name, row in by_name.items()}
    assert facts == {
        "0.mp4": ("train", "run", "CC0"),
        "1.mp4": ("train", "walk", None),
        "2.mp4": ("validation", "walk", "CC0"),
    }
    for position in range(2):
        sample = index.sample(position)
        row = by_name[sample.name]
        assert (row["shard"], row["offset"]) == (index.shards[sample.shard].name, sample.offset)
        assert row["phash"] == index.arrow_column("phash")[position].as_py()
    assert main(["export", str(out), str(exported)]) == 2
    assert "expected a new file NAME.parquet" in capfd.readouterr().err
