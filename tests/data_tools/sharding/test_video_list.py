"""Parts that read a list of `kinemae data list` equal parts that list the collection."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_DATA
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.parts import Part
from kinemae.data_tools.sharding.video_list import Listing, read_list, write_list
from kinemae.data_tools.storage.location import location
from tests.sharding import contents, encoded, moving, shard


def run(*words: object) -> int:
    return run_program(PROGRAM, [str(word) for word in words])


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("list")
    lines = ["path,label,group,caption,rank,start_s,end_s"]
    for number in range(12):
        (root / f"clip {number}.mp4").write_bytes(encoded(moving(12 + number)))
        part = "0.1,0.4" if number == 5 else ","
        lines.append(f"clip {number}.mp4,{'ab'[number % 2]},g{number // 2},text {number},{number / 2},{part}")
    (root / "videos.csv").write_text("\n".join(lines) + "\n")
    return root / "videos.csv"


def test_parts_of_a_list_equal_parts_of_the_collection(collection: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.arrow"
    drawn = ("seed=3", "validation_fraction=0.4")
    assert run("list", collection, file, *drawn) == 0
    for number in range(3):
        part = ("samples_per_shard=3", f"part={number}/3")
        assert shard(file, tmp_path / "of list", *part) == 0
        assert shard(collection, tmp_path / "of collection", *drawn, *part) == 0
    assert run("merge", tmp_path / "of list/parts", tmp_path / "of list") == 0
    assert run("merge", tmp_path / "of collection/parts", tmp_path / "of collection") == 0
    assert contents(tmp_path / "of list") == contents(tmp_path / "of collection")


def test_a_list_keeps_every_field_of_a_video(tmp_path: Path) -> None:
    videos = (
        SourceVideo(path=Path("/v/a\udcff.mp4"), name="a\\xff.mp4", label="\u00e4", split="train", group="g"),
        SourceVideo(path=Path("b.mp4"), name="b", start_s=0.1, end_s=1 / 3, url="s3://bucket/b.mp4"),
        SourceVideo(path=Path("/v/c"), name="c", frames=("1.jpg", "2.jpg"), fps=29.97),
        SourceVideo(
            path=Path("/v/d.tar"), name="d", member=(512, 1 << 40), extra={"x": 1, "y": 0.1, "z": ""}
        ),
    )
    listing = Listing(
        source="v", settings={"seed": 1}, classes=("\u00e4",), columns={"x": int, "y": float, "z": str},
        fingerprint="0", ignored=2, total=4, videos=videos, keys=tuple("abcd"), splits=("train",) * 4,
    )  # fmt: skip
    write_list(listing, location(tmp_path / "list.arrow"))
    assert read_list(location(tmp_path / "list.arrow"), Part(0, 1)) == listing
    parts = [read_list(location(tmp_path / "list.arrow"), Part(number, 3)) for number in range(3)]
    assert sorted(video.name for part in parts for video in part.videos) == ["a\\xff.mp4", "b", "c", "d"]
    assert parts == [listing.of_part(Part(number, 3)) for number in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["list.arrow"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["seed=4"],
            "seed: expected no value, since SOURCE {list} is a list with 0, got 4; fix: leave it out",
        ),
        (["source.name=folder"], "source: expected no value"),
        (["classes=x.txt"], "classes: expected no value"),
        (["validation_fraction=0.5"], "validation_fraction: expected no value"),
    ],
)
def test_keys_of_a_list_cannot_be_changed(
    words: list[str], message: str, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "list.arrow"
    assert run("list", collection, file) == 0
    assert shard(file, tmp_path / "out", *words) == EXIT_CONFIG
    assert message.format(list=file) in capsys.readouterr().err


def test_wrong_lists_are_errors(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "list.arrow"
    assert run("list", collection, file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 12
    assert run("list", collection, file) == EXIT_CONFIG
    assert f"LIST {file}: expected a new file" in capsys.readouterr().err
    assert run("list", collection, tmp_path / "list.csv") == EXIT_CONFIG
    assert "expected a collection as SOURCE and a new file NAME.arrow as LIST" in capsys.readouterr().err
    assert run("list", collection, tmp_path / "x.arrow", "part=0/2") == EXIT_CONFIG
    file.write_bytes(file.read_bytes()[:-100])
    assert shard(file, tmp_path / "out") == EXIT_DATA
    assert f"SOURCE {file}: expected a list of `kinemae data list`" in capsys.readouterr().err
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int8())])):
        pass
    assert shard(file, tmp_path / "out") == EXIT_DATA
    assert "got another file; fix: list again" in capsys.readouterr().err
    assert shard(tmp_path / "none.arrow", tmp_path / "out") == EXIT_DATA
    assert "expected a list of videos, got no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
