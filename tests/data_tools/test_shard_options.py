"""Groups, segments, columns and layouts of source and config arrive in the index."""

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import webdataset

from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import open_index
from kinemae.data_tools.sharding.plan import ShardConfig
from kinemae.data_tools.stream.augment import NO_AUGMENTATION
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.read_clip import read_clip
from kinemae.data_tools.stream.training_clips import TrainingClips
from tests.sharding import encoded, moving, shard, video_bytes, write_clip


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of two seconds; two have the same bytes."""
    root = tmp_path_factory.mktemp("films")
    for number in range(3):
        (root / f"{number}.mp4").write_bytes(encoded(moving(50 + number)))
    (root / "copy of 0.mp4").write_bytes((root / "0.mp4").read_bytes())
    return root


def table(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_h264_is_the_default(films: Path, tmp_path: Path):
    assert shard(films, tmp_path / "out") == 0
    index = open_index(tmp_path / "out" / "train")
    assert set(index.column("reference_stride").tolist()) == {2}
    assert set(index.column("frame_step").tolist()) == {2}  # 25 fps
    layout = json.loads((tmp_path / "out" / "train" / "dataset.json").read_text())["made_by"]["config"][
        "layout"
    ]
    assert layout == {
        "name": "h264",
        "args": {
            **{"every": None, "short_side": 256, "fps": None, "crf": 23},
            **{"encoder": "libx264", "preset": None, "gop": 32, "b_frames": 1},
        },
    }


def test_additional_columns_are_in_the_index_and_in_the_json(films: Path, tmp_path: Path):
    listing = table(
        films,
        "columns.csv",
        "path,label,group,score,views,note",
        "0.mp4,a,g,0.5,3,yes",
        "1.mp4,b,,1.5,,",
        "2.mp4,a,h,2,7,no",
    )
    assert shard(listing, tmp_path / "out", "validation_fraction=0", "curate=false") == 0
    index = open_index(tmp_path / "out" / "train")
    rows = {
        name: [index.column(column)[n] for column in ("group", "score", "note")]
        for n, name in enumerate(index.column("name").tolist())
    }
    assert rows == {"0.mp4": ["g", 0.5, "yes"], "1.mp4": ["", 1.5, None], "2.mp4": ["h", 2.0, "no"]}
    assert index.extra == ("note", "score", "views")
    urls = [str(tmp_path / "out" / "train" / "shard-000000.tar")]
    about = {s["__key__"]: json.loads(s["json"]) for s in webdataset.WebDataset(urls, shardshuffle=False)}
    assert (about["0"]["group"], about["0"]["score"], about["0"]["start_s"]) == ("g", 0.5, 0.0)


def test_segments_of_a_video_are_cut_and_stay_in_one_split(films: Path, tmp_path: Path):
    rows = [f"0.mp4,a,{start},{start + 0.5}" for start in (0, 0.5, 1, 1.5)] + ["1.mp4,a,,", "2.mp4,a,,"]
    listing = table(films, "parts.csv", "path,label,start_s,end_s", *rows)
    assert shard(listing, tmp_path / "out", "validation_fraction=0.3") == 0
    found = {}
    for split in ("train", "validation"):
        index = open_index(tmp_path / "out" / split)
        for number in range(len(index)):
            sample = index.sample(number)
            found[sample.name] = (split, sample.start_s, sample.frames)
    parts = {name: about for name, about in found.items() if name.startswith("0")}
    assert len(parts) == 4
    assert {split for split, _, _ in parts.values()} in ({"train"}, {"validation"})
    assert sorted(start_s for _, start_s, _ in parts.values()) == [0, 0.5, 1, 1.5]
    assert all(12 <= frames <= 13 for _, _, frames in parts.values())


def test_layout_copy_rejects_segments_before_writing(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    listing = table(films, "part.csv", "path,start_s,end_s", "0.mp4,0,1")
    assert shard(listing, tmp_path / "out", "layout.name=copy") == 2
    assert (
        "layout.name=copy: expected whole files, got 0#0-1.mp4 with start_s or end_s"
        in capsys.readouterr().err
    )
    assert shard(films, tmp_path / "out", "source.name=folder", "layout.name=copy", "segment_s=1") == 2
    assert "layout.name=copy: expected no segment_s and scene_cuts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_segments_have_their_own_keys_and_start_times(films: Path, tmp_path: Path):
    assert shard(films, tmp_path / "out", "source.name=folder", "segment_s=0.8") == 0
    index = open_index(tmp_path / "out" / "train")
    starts = {index.sample(n).key: index.sample(n).start_s for n in range(len(index))}
    assert {key: start for key, start in starts.items() if key.startswith("1-")} == pytest.approx(
        {"1-0000": 0.0, "1-0001": 0.8, "1-0002": 1.6}
    )
    assert Counter(index.column("content").tolist())[str(index.sample(0).content)] >= 2
    found = video_bytes(index)
    assert sum(probe(found[key]).frames for key in found if key.startswith("1-")) == 25  # of 51


@pytest.mark.parametrize("layout", ["h264", "copy"])
def test_by_default_videos_without_label_are_cut_after_10_s(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, frames in (("long", 70), ("noted", 70), ("short", 14), ("labelled", 70)):
        (tmp_path / f"{name}.mp4").write_bytes(encoded(moving(frames, 16, 16), rate=Fraction(1)))
    found = []
    lines = ["path,licence,url,note", "long.mp4,MIT,x.org,", "noted.mp4,,,x", "short.mp4,,,"]
    for name, some in (("plain", lines), ("labels", ["path,label", "labelled.mp4,a"])):
        listing, out = table(tmp_path, f"{name}.csv", *some), tmp_path / f"out-{name}"
        assert shard(listing, out, f"layout.name={layout}", "validation_fraction=0") == 0
        index = open_index(out / "train")
        samples = [index.sample(position) for position in range(len(index))]
        found += sorted((each.key, each.frames) for each in samples)
    long = {"h264": [(f"long-{number:04d}", 10) for number in range(7)], "copy": [("long", 70)]}
    assert found == [*long[layout], ("noted", 70), ("short", 14), ("labelled", 70)]
    log = capsys.readouterr().err
    long_samples = {"h264": 1, "copy": 2}[layout]
    assert f"{long_samples} samples are longer than 60 s, up to 70 s" in log


@pytest.mark.parametrize(
    "overrides, samples, codec",
    [
        (["layout={name: clips, args: {frames: 5, stride: 2}}"], 20, "h264"),
        (["layout={name: jpegs, args: {short_side: 24}}"], 4, "mjpeg"),
        (["layout={name: h264, args: {b_frames: 0, fps: 12.5}}"], 4, "h264"),
    ],
)
def test_every_layout_works_in_the_command(
    films: Path, tmp_path: Path, overrides: list[str], samples: int, codec: str
):
    assert shard(films, tmp_path / "out", "source.name=folder", *overrides) == 0
    index = open_index(tmp_path / "out" / "train")
    assert (len(index), set(index.column("codec").tolist())) == (samples, {codec})
    found = video_bytes(index)
    for number in range(len(index)):
        sample = index.sample(number)
        info = probe(found[sample.key])
        assert (info.frames, info.width, info.codec) == (sample.frames, sample.width, codec)


def test_an_encoder_of_pre_cut_clips_reads_originals_at_the_same_speed(films: Path, tmp_path: Path):
    layout = "layout={name: clips, args: {frames: 8, stride: 6, clips: 1, crf: 10}}"
    assert shard(films, tmp_path / "out", layout, "source.name=folder") == 0
    index, clip = open_index(tmp_path / "out" / "train"), ClipConfig(frames=8, stride=6, size=64)
    batch = TrainingClips(index, clip=clip, augment=NO_AUGMENTATION, seed=0).batch(range(1))
    sample = index.sample(int(batch.sample_B[0]))
    original = read_clip(films / sample.name, clip, start_s=sample.start_s + 3 / 25)  # of stride // 2
    assert (sample.frame_step, sample.source_fps) == (6, pytest.approx(25))
    assert batch.time_BT.diff().allclose(torch.tensor(6 / 25, dtype=torch.float64))
    assert (batch.clip_BCTHW.float() - original.float()).abs().mean() < 2
    with pytest.raises(ValueError, match=r"clip.stride: expected at least 6"):
        TrainingClips(index, clip=replace(clip, stride=5), augment=NO_AUGMENTATION, seed=0)


def test_random_splits_separate_neither_groups_nor_copies(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for number in range(20):
        write_clip(tmp_path / "videos" / f"{number}.mp4", number // 2)  # ten pairs of equal videos
    rows = [f"{number}.mp4,a,{f'g{number}' if number < 16 else 'large'}" for number in range(20)]
    listing = table(tmp_path / "videos", "list.csv", "path,label,group", *rows)
    assert shard(listing, tmp_path / "out", "layout.name=copy") == 0
    contents, groups = [], []
    for split in ("train", "validation"):
        index = open_index(tmp_path / "out" / split)
        contents.append(set(index.column("content").tolist()))
        groups.append(set(index.column("group").tolist()))
    assert not contents[0] & contents[1]
    assert not groups[0] & groups[1]
    assert len(open_index(tmp_path / "out" / "validation")) == 4
    assert "10 videos have the same bytes as another one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            ["0.mp4,a,train,", "copy of 0.mp4,a,validation,"],
            "got 1 leaks, first 0.mp4 (train) and copy of 0.mp4 (validation) have the same "
            "content; fix: remove one of them, or set leaks=warn",
        ),
        (
            ["1.mp4,a,train,cam1", "2.mp4,a,validation,cam1"],
            "first 1.mp4 (train) and 2.mp4 (validation) are of the group 'cam1'",
        ),
    ],
)
def test_leaks_between_given_splits_are_an_error_or_a_warning(
    films: Path, tmp_path: Path, rows: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    listing = table(films, "leaks.csv", "path,label,split,group", *rows)
    assert shard(listing, tmp_path / "out", "layout.name=copy") == 3
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("dataset.json"))
    assert shard(listing, tmp_path / "warned", "layout.name=copy", "leaks=warn") == 0
    assert message.split("; fix")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, message",
    [
        ("segment_s=0", "segment_s must be above 0, auto, or null, got 0"),
        ("segment_s=10s", "segment_s must be above 0, auto, or null, got '10s'"),
        ("leaks=maybe", "leaks must be error or warn, got 'maybe'"),
    ],
)
def test_a_wrong_config_names_the_fix(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_config(ShardConfig, None, [override])
