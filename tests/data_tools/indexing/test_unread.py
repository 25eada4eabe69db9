"""`index probe=none`: headers alone. Frames and checksums are unknown, and reading finds the frames."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import kinemae
from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import DataError, run_program
from kinemae.data_tools.conditions import Condition
from kinemae.data_tools.index import NO_LABEL, ShardIndex, open_index
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem, EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips
from kinemae.data_tools.stream.mixture import open_source
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.data_tools.stream.video_reader import read_video
from tests.faulty_server import FaultyServer, faulty_server
from tests.sharding import encoded, moving, shard
from tests.source_collections import write_tar, write_text

CLIP = ClipConfig(frames=4, stride=2, size=16)
UNKNOWN = {"crc32": 0, "frames": 0, "duration_s": 0.0, "width": 0, "height": 0, "codec": "", "content": ""}


def run(command: str, *arguments: object) -> int:
    return run_program(PROGRAM, [command, *map(str, arguments)])


def index(*arguments: object) -> int:
    return run("index", *arguments, "workers=1")


def video(number: int, padding: int = 0) -> bytes:
    """A video of 12 to 15 frames; the padding is a box that players skip."""
    box = (padding + 8).to_bytes(4, "big") + b"free" + bytes(padding)
    return encoded(moving(12 + number % 4, 32, 32)) + box


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of six videos each, with class numbers and captions."""
    root = tmp_path_factory.mktemp("tars")
    for tar in range(2):
        members = []
        for number in range(6 * tar, 6 * tar + 6):
            caption = json.dumps({"caption": f"text {number}"}).encode()
            members += [(f"k{number}.cls", b"%d" % (number % 3)), (f"k{number}.json", caption)]
            members.append((f"k{number}.mp4", video(number, padding=600_000)))
        write_tar(root / f"x-{tar}.tar", members)
    return root


@pytest.fixture(scope="module")
def unread(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unread")
    assert index(tars, folder, "probe=none", "label=cls", "columns=[caption]") == 0
    return folder


@pytest.fixture(scope="module")
def counted(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counted")
    assert index(tars, folder, "label=cls", "columns=[caption]") == 0
    return folder


def bytes_sent(server: FaultyServer, sizes: dict[str, int]) -> int:
    total = 0
    for method, path, range_ in server.requests:
        if method == "GET":
            begin, _, end = range_.removeprefix("bytes=").partition("-")
            size = sizes[path.rpartition("/")[2]]
            total += max(min(int(end) + 1, size) - int(begin), 0)
    return total


def test_headers_and_labels_are_read_without_the_videos(tars: Path, counted: Path, tmp_path: Path):
    sizes = {path.name: path.stat().st_size for path in tars.glob("*.tar")}
    with faulty_server(tars) as server:
        pattern = f"{server.url}/x-{{0..1}}.tar"
        assert index(pattern, tmp_path / "out", "probe=none", "label=cls", "columns=[caption]") == 0
        sent, gets = bytes_sent(server, sizes), server.ranges()
        assert sent < 0.06 * sum(sizes.values())
        assert len(gets) < 2.5 * 12
        found, known = open_index(tmp_path / "out", check_shards=False), open_index(counted)
        for name in ("key", "shard", "offset", "length", "label", "caption"):
            assert found.column(name).tolist() == known.column(name).tolist()
        for name, value in UNKNOWN.items():
            assert set(found.column(name).tolist()) == {value}
        assert [shard.bytes for shard in found.shards] == [shard.bytes for shard in known.shards]
        assert {shard.sha256 for shard in found.shards} == {""}
        assert read_video(found, found.sample(3)) == read_video(known, known.sample(3))


def test_index_says_what_is_unknown(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert index(tars, tmp_path / "out", "probe=none") == 0
    expected = "12 videos were not read: checksum, frames, duration, size and codec are unknown"
    assert expected in capsys.readouterr().err


def test_rows_of_shard_are_complete_without_the_videos(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(video(0))
    assert shard(tmp_path / "videos", tmp_path / "set", "layout.name=copy") == 0
    assert index(tmp_path / "set", tmp_path / "out", "probe=none") == 0
    one, other = open_index(tmp_path / "set" / "train"), open_index(tmp_path / "out" / "train")
    assert one.files["index"].sha256 == other.files["index"].sha256


def training(data_set: ShardIndex) -> TrainingClips:
    return TrainingClips(data_set, clip=CLIP, augment=AugmentConfig(), seed=3)


def test_training_reads_the_clips_of_a_complete_index(unread: Path, counted: Path):
    one, other = (training(open_index(folder)).batch(range(12)) for folder in (unread, counted))
    assert one.keys == other.keys and one.skipped == other.skipped == ()
    assert torch.equal(one.pixels.rgb(), other.pixels.rgb())  # type: ignore[union-attr]
    assert torch.equal(one.time_BT, other.time_BT) and torch.equal(one.label_B, other.label_B)


def test_a_loop_with_workers_reads_such_a_set(unread: Path):
    batches = kinemae.clips(str(unread), CLIP, batch_size=6, workers=2, columns=["caption"])
    first = next(iter(batches))
    assert first["weight"].tolist() == [1.0] * 6
    assert first["caption"][0].startswith("text")


def test_a_video_that_ends_early_is_counted(tars: Path, tmp_path: Path):
    broken = video(0)
    end = broken.index(b"mdat") + 4
    write_tar(tmp_path / "x.tar", [("a.mp4", broken[: end + 40]), ("b.mp4", video(1))])
    assert index(tmp_path / "x.tar", tmp_path / "out", "probe=none") == 0
    batch = training(open_index(tmp_path / "out")).batch(range(2))
    assert [each.key for each in batch.skipped] == ["a"]
    assert sorted(batch.weight_B.tolist()) == [0.0, 1.0]


def evaluated(folder: Path, clips: int | SlidingClips) -> list[EvaluationItem]:
    videos = EvaluationVideos(open_index(folder), range(12), clip=CLIP, temporal_clips=clips, spatial_crops=1)
    return [videos.read(number, quarantined={}, on_sample=lambda key: None) for number in range(len(videos))]


def test_a_fixed_number_of_clips_is_evaluated(unread: Path, counted: Path):
    for one, other in zip(evaluated(unread, 2), evaluated(counted, 2), strict=True):
        assert torch.equal(one.pixels.rgb(), other.pixels.rgb())  # type: ignore[union-attr]
        assert torch.equal(one.time_VT, other.time_VT)


def test_sliding_clips_and_reports_need_a_complete_index(
    unread: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fix = r"got 12 of 12 samples without, from `kinemae data index probe=none`; fix: index the tars again"
    with pytest.raises(DataError, match=f"sliding clips expected numbers of frames and checksums, {fix}"):
        evaluated(unread, SlidingClips(overlap=0.5))
    for command in ("report", "card"):
        assert run(command, unread, tmp_path / f"out.{'html' if command == 'report' else 'md'}") == 3
        assert "a report or a card expected numbers of frames and checksums" in capsys.readouterr().err


def test_a_cache_needs_checksums(unread: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"data.cache_dir expected numbers of frames and checksums, got 12"):
        open_source(str(unread), cache=Cache(folder=tmp_path / "cache", size=1 << 30))


def test_bytes_that_are_missing_are_noticed(unread: Path, tmp_path: Path):
    write_tar(tmp_path / "x.tar", [("a.mp4", video(0)), ("b.mp4", video(1))])
    assert index(tmp_path / "x.tar", tmp_path / "out", "probe=none") == 0
    data_set = open_index(tmp_path / "out")
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[: data_set.sample(1).offset + 9])
    with pytest.raises(BadVideo, match="sample b is cut short: 9 of"):
        read_video(data_set, data_set.sample(1))


@pytest.mark.parametrize(
    "where, count", [("frames >= 1", 0), ("frames is None", 12), ("not width > 5", 0), ("label == '1'", 4)]
)
def test_unknown_values_are_missing_in_conditions(unread: Path, where: str, count: int):
    assert int(Condition(where, key="where").mask(open_index(unread)).sum()) == count


def test_unknown_values_are_null_in_a_table(unread: Path, tmp_path: Path):
    assert run("export", unread, tmp_path / "x.parquet") == 0
    table = pq.read_table(tmp_path / "x.parquet")
    for name in ("crc32", "frames", "duration_s", "width", "height", "codec"):
        assert table.column(name).null_count == 12
    assert table.column("length").null_count == 0


def test_show_counts_them(unread: Path, capsys: pytest.CaptureFixture[str]):
    assert run("show", unread) == 0
    out = capsys.readouterr().out
    assert "not read     12, whose frames, duration, size and codec are unknown" in out
    assert "frame rate" not in out


def test_verify_compares_the_rest(unread: Path, capsys: pytest.CaptureFixture[str]):
    assert run("verify", unread, "--full", "workers=1") == 0
    assert "12 samples have no checksum in the index" in capsys.readouterr().err


def test_a_merged_set_keeps_unknown_values(unread: Path, tmp_path: Path, tars: Path):
    write_tar(
        tmp_path / "y.tar", [("new.cls", b"1"), ("new.json", b'{"caption": "c"}'), ("new.mp4", video(3))]
    )
    classes = f"classes={write_text(tmp_path / 'classes.json', json.dumps(['0', '1', '2']))}"
    assert index(tmp_path / "y.tar", tmp_path / "new", "label=cls", "columns=[caption]", classes) == 0
    assert run("merge", unread, tmp_path / "new", tmp_path / "all") == 0
    merged = open_index(tmp_path / "all")
    assert merged.column("frames").tolist() == [0] * 12 + [15]
    assert (merged.column("label") != NO_LABEL).all()
    batch = training(merged).batch(range(13))
    assert batch.skipped == () and np.isfinite(batch.time_BT.numpy()).all()


def test_curation_columns_are_those_of_shard(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    for number in range(3):
        (tmp_path / "videos" / f"v{number}.mp4").write_bytes(video(number))
    assert shard(tmp_path / "videos", tmp_path / "set", "layout.name=copy", "segment_s=null") == 0
    write_tar(tmp_path / "x.tar", [(f"v{number}.mp4", video(number)) for number in range(3)])
    assert index(tmp_path / "x.tar", tmp_path / "plain") == 0
    assert index(tmp_path / "x.tar", tmp_path / "curated", "curate=true") == 0
    assert index(tmp_path / "set", tmp_path / "again", "curate=true") == 0
    known, found = open_index(tmp_path / "set" / "train"), open_index(tmp_path / "curated")
    again = open_index(tmp_path / "again" / "train")
    assert open_index(tmp_path / "plain").extra == ()
    assert found.extra == known.extra and "phash" in found.extra
    order = np.argsort(known.column("key"))
    for name in found.extra:
        assert found.column(name).tolist() == known.column(name)[order].tolist()
        assert again.column(name).tolist() == known.column(name).tolist()


@pytest.mark.parametrize(
    "options, message",
    [
        (["curate=true", "probe=header"], "curate must be false unless probe=full"),
        (["curate=true", "columns=[motion]"], "columns must not hold names of curation columns"),
        (["probe=headers"], "probe"),
    ],
)
def test_options_that_exclude_each_other(
    options: list[str], message: str, tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert index(tars, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
