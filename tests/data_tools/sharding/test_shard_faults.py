"""Faulty inputs of `shard`: each video is stored or rejected with a reason, without effect on others."""

import json
import resource
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.decode import decode_at, probe
from tests.sharding import MATROSKA, cut_after, encoded, moving, shard, video_bytes

LAYOUTS = ("copy", "h264")


def with_streams(*, path: Path, sound: bool = False, films: tuple[tuple[int, int], ...] = ()) -> bytes:
    """Write a file with a sound stream and video streams of these sizes (height, width)."""
    with av.open(str(path), "w", format="mp4") as output:
        made = []
        for height, width in films:
            stream = output.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            made.append(stream)
        if sound:
            voice = output.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            output.mux(voice.encode(frame))
            output.mux(voice.encode())
        for (height, width), stream in zip(films, made, strict=True):
            for picture in moving(10, height, width):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(stream.encode())
    return path.read_bytes()


def damaged_in_the_middle() -> bytes:
    video = bytearray(encoded(moving(60), is_index_first=True))
    end = len(cut_after(bytes(video), 30))
    video[end - 60 : end + 400] = bytes(460)
    return bytes(video)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    (root / "videos").mkdir()
    whole = encoded(moving(30))
    files = {
        "good.mp4": whole,
        "zero.mp4": b"",
        "garbage.mp4": np.random.default_rng(0).bytes(5000),
        "text.mp4": b"no video at all",
        "moov_missing.mp4": whole[: len(whole) // 2],
        "middle.mp4": damaged_in_the_middle(),
        "tail.mp4": cut_after(encoded(moving(40), is_index_first=True), 25),
        "varying.mkv": encoded(
            moving(10), ticks=[500, 540, 580, 800, 840, 900, 940, 980, 1300, 1400], kind=MATROSKA
        ),
        "odd.mp4": encoded([np.full((241, 321, 3), 70, np.uint8)] * 4, kind=("mp4", "libx264", "yuv444p")),
        "one_pixel.mkv": encoded(
            [np.full((1, 1, 3), 70, np.uint8)] * 4, kind=("matroska", "ffv1", "yuv420p")
        ),
        "huge.mkv": encoded([np.zeros((8192, 8192, 3), np.uint8)], kind=("matroska", "mjpeg", "yuvj420p")),
        "unknown_codec.mp4": whole.replace(b"avc1", b"zzzz"),
        "one_frame.mp4": encoded(moving(1)),
        "sound.mp4": with_streams(path=root / "sound.mp4", sound=True),
        "two_films.mp4": with_streams(path=root / "films.mp4", films=((48, 64), (96, 128))),
        "playlist.mp4": b"ffconcat version 1.0\nfile good.mp4\n",
        "hls.mp4": b"#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, content in files.items():
        (root / "videos" / name).write_bytes(content)
    return root / "videos"


@pytest.fixture(scope="module", params=LAYOUTS)
def sharded(request: pytest.FixtureRequest, collection: Path) -> Path:
    out = collection.parent / request.param
    assert shard(collection, out, f"layout.name={request.param}") == 0
    return out


def rows(out: Path) -> dict[str, dict[str, object]]:
    index = open_index(out / "train")
    return {index.sample(n).name: vars(index.sample(n)) for n in range(len(index))}


def test_unreadable_videos_are_rejected_with_a_reason(sharded: Path):
    lines = (sharded / "rejected.jsonl").read_text().splitlines()
    reasons = {entry["path"]: entry["reason"] for entry in map(json.loads, lines)}
    assert set(reasons) == {
        *("zero.mp4", "garbage.mp4", "text.mp4", "moov_missing.mp4", "middle.mp4", "huge.mkv", "sound.mp4"),
        *("playlist.mp4", "hls.mp4", "unknown_codec.mp4"),
    }
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert reasons["huge.mkv"] == "frames of 8192x8192 are larger than 33554432 pixels"
    assert reasons["unknown_codec.mp4"] == "FFmpeg has no decoder for its codec"
    assert reasons["sound.mp4"] == "it holds no video stream"
    assert "Invalid data" in reasons["garbage.mp4"]


def test_reasons_are_counted_in_the_log_and_in_json(
    sharded: Path, collection: Path, capsys: pytest.CaptureFixture[str]
):
    assert shard(collection, sharded, f"layout.name={sharded.name}", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rejected"], report["notes"]) == (10, 1 + (sharded.name != "copy"))
    assert sum(report["reasons"].values()) == 10
    assert report["reasons"]["frames of NxN are larger than N pixels"] == 1
    assert list(report["reasons"].values()) == sorted(report["reasons"].values(), reverse=True)


@pytest.mark.slow
def test_the_log_gives_reasons_with_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "good.mp4").write_bytes(encoded(moving(5)))
    (tmp_path / "videos" / "middle.mp4").write_bytes(damaged_in_the_middle())
    for side in (8192, 8448):
        huge = encoded([np.zeros((side, 8192, 3), np.uint8)], kind=("matroska", "mjpeg", "yuvj420p"))
        (tmp_path / "videos" / f"{side}.mkv").write_bytes(huge)
    (tmp_path / "videos" / "tail.mp4").write_bytes(cut_after(encoded(moving(40), is_index_first=True), 25))
    assert shard(tmp_path / "videos", tmp_path / "out") == 0
    log = capsys.readouterr().err
    size = "frames of 8192x8192 are larger than 33554432 pixels"
    assert f"rejected 2, the first of them: {size}" in log
    assert "rejected 1: FFmpeg cannot read it after 2" in log and " of 60 frames" in log
    assert "1 videos have anomalies, first tail.mp4: 25 of 40 frames; see notes.jsonl" in log
    assert " of N frames" not in log


def test_a_truncated_video_is_noted_and_its_frames_are_stored(sharded: Path):
    lines = (sharded / "notes.jsonl").read_text().splitlines()
    notes = {entry["path"]: entry["note"] for entry in map(json.loads, lines)}
    assert notes.pop("tail.mp4") == "25 of 40 frames"
    if sharded.name != "copy":
        varying = "variable frame rate, resampled to 25 fps: 0 of 10 frames lost, 15 repeated"
        assert notes.pop("varying.mkv") == varying
    assert notes == {}
    assert rows(sharded)["tail.mp4"]["frames"] == 25


def test_the_index_describes_the_stored_videos(sharded: Path, collection: Path):
    index = open_index(sharded / "train")
    found = video_bytes(index)
    for number in range(len(index)):
        sample = index.sample(number)
        info = probe(found[sample.key])
        assert (info.frames, info.width, info.height) == (sample.frames, sample.width, sample.height)
        assert info.duration_s == pytest.approx(sample.duration_s, rel=1e-6)
    sizes = {name: (row["width"], row["height"]) for name, row in rows(sharded).items()}
    best = probe(collection / "two_films.mp4")
    assert sizes["two_films.mp4"] == (best.width, best.height)
    if sharded.name == "copy":
        assert (sizes["odd.mp4"], sizes["one_pixel.mkv"]) == ((321, 241), (1, 1))
    else:
        assert (sizes["odd.mp4"], sizes["one_pixel.mkv"]) == ((320, 240), (2, 2))


def test_a_nonzero_start_and_a_varying_rate_keep_timestamps(sharded: Path, collection: Path):
    index = open_index(sharded / "train")
    row = rows(sharded)["varying.mkv"]
    assert row["duration_s"] == pytest.approx(0.9 * 10 / 9, rel=1e-3)
    timestamps_s = [0.06, 0.2, 0.5, 0.75]
    stored = decode_at(video_bytes(index)[str(row["key"])], timestamps_s).float().mean(dim=(1, 2, 3))
    wanted = decode_at((collection / "varying.mkv").read_bytes(), timestamps_s).float().mean(dim=(1, 2, 3))
    assert (stored - wanted).abs().max() < 6  # within a frame at the mean rate


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_file_name_gives_a_safe_key_and_stays_in_the_json(layout: str, tmp_path: Path):
    composed = unicodedata.normalize("NFC", "caf\u00e9.mp4")
    names = ["a.b.c.mp4", "a b.mp4", "new\nline.mp4", "A B.mp4", "x..mp4.mp4", "\u6253.mp4", composed]
    names += [unicodedata.normalize("NFD", composed), "quote'\".mp4", "back\\slash.mp4"]
    source = tmp_path / "videos"
    source.mkdir()
    for number, name in enumerate(names):
        (source / name).write_bytes(encoded(moving(2 + number)))
    (tmp_path / "outside.mp4").write_bytes(encoded(moving(30)))
    lines = [*(f'"{name}"' for name in names if "\n" not in name and '"' not in name), "../outside.mp4"]
    (source / "list.csv").write_text("path\n" + "\n".join(lines) + "\n", encoding="utf-8")
    for place, expected in ((source, names), (source / "list.csv", [line.strip('"') for line in lines])):
        out = tmp_path / f"shards of {place.name}"
        assert shard(place, out, f"layout.name={layout}") == 0
        index = open_index(out / "train")
        keys = index.column("key").tolist()
        assert sorted(index.column("name").tolist()) == sorted(expected)
        assert len(set(keys)) == len(keys) == len(expected)
        assert all(key.strip("abcdefghijklmnopqrstuvwxyz0123456789_-") == "" for key in keys)
        frames = {index.sample(n).name: index.sample(n).frames for n in range(len(index))}
        assert all(frames[name] == 2 + names.index(name) for name in expected if name in names)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("limit", [6_000, 20_000])
def test_a_full_disk_is_an_error_and_the_next_run_resumes(
    layout: str, limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "videos"
    source.mkdir()
    for number in range(6):
        (source / f"{number}.mp4").write_bytes(encoded(moving(20 + number)))
    arguments = (f"layout.name={layout}", "samples_per_shard=4")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert shard(source, tmp_path / "out", *arguments) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "; fix that and run the same command again" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not list((tmp_path / "out").rglob("*.tar"))
    assert shard(source, tmp_path / "out", *arguments) == 0
    assert shard(source, tmp_path / "unbroken", *arguments) == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "out" / "train").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "unbroken" / "train").iterdir()}
    assert not (tmp_path / "out" / "work").exists()


def test_a_file_removed_after_listing_is_rejected(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(encoded(moving(5)))
    (tmp_path / "list.csv").write_text("path\na.mp4\nlost.mp4\n")
    assert (
        shard(tmp_path / "list.csv", tmp_path / "out", "source={name: csv, args: {max_missing_fraction: 1}}")
        == 0
    )
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["path"] == "lost.mp4"
