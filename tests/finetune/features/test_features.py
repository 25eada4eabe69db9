"""Features of videos: their values, their files, repeated and parallel commands, and wrong input."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.views import crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips, to_rgb
from kinemae.finetune.features import extract
from kinemae.finetune.features.files import read_features, read_provenance
from kinemae.finetune.inference.load import load
from tests.finetune.features.conftest import CPU
from tests.finetune.probe.conftest import finetune, read
from tests.ranks import run_ranks


def embed(encoder, video, times_s):
    """Mean token of a clip of the frames at these times."""
    pixels = YuvClips.empty(1, len(times_s), 16)
    crop_views(yuv_frames_at(video.read_bytes(), times_s), lambda h, w: evaluation_views(h, w, 1), pixels)
    return load(encoder).embed(to_rgb(pixels))[0]


def middles(start_s, end_s):
    """Middles of the 4 frames of a window, which are every second of 7."""
    period_s = (end_s - start_s) / 7
    return [start_s + (0.5 + 2 * number) * period_s for number in range(4)]


def test_a_clip_feature_is_the_mean_of_the_tokens_of_its_frames(clips, encoder, videos):
    table = read_features(clips)

    assert list(dict.fromkeys(table.videos)) == ["a.mp4", "b.mp4", "more/a.mp4"]
    for row in (0, len(table) // 2, len(table) - 1):
        times_s = middles(table.columns["start_s"][row], table.columns["end_s"][row])
        expected_D = embed(encoder, videos / table.videos[row], times_s)
        torch.testing.assert_close(torch.from_numpy(table.features[row]), expected_D, atol=1e-5, rtol=0)
    for video in set(table.videos):
        rows = [row for row, each in enumerate(table.videos) if each == video]
        starts_s = np.array(table.columns["start_s"])[rows]
        assert starts_s[0] == 0 and len(set(np.diff(starts_s).round(3))) <= 2
        assert len(table.thumbnails[rows[0]]) > 100


def test_kinds_are_pools_of_the_same_tokens(write, clips, tmp_path):
    tokens = read_features(write(tmp_path / "tokens.parquet", "kind=tokens", "overlap=0.5"))
    slices = read_features(write(tmp_path / "slices.npz", "kind=slices", "overlap=0.5"))
    pooled = read_features(write(tmp_path / "pooled.npz", "kind=pooled", "pool=statistics", "overlap=0.5"))
    clip = read_features(clips)

    tokens_RtSD = tokens.features.reshape(len(tokens), 2, 4, 32)
    np.testing.assert_allclose(tokens_RtSD.mean(axis=(1, 2)), clip.features, atol=1e-5)
    np.testing.assert_allclose(tokens_RtSD.mean(axis=2).reshape(-1, 32), slices.features, atol=1e-5)
    assert slices.keys[:3] == ["a.mp4#0000.0", "a.mp4#0000.1", "a.mp4#0001.0"]
    assert slices.columns["end_s"][1] == clip.columns["end_s"][0]
    for row, video in enumerate(pooled.keys):
        rows = [at for at, each in enumerate(clip.videos) if each == video]
        np.testing.assert_allclose(pooled.features[row, :32], clip.features[rows].mean(axis=0), atol=1e-5)
    assert pooled.features.shape == (3, 64)


def test_npz_equals_parquet(write, clips, tmp_path):
    npz, parquet = read_features(write(tmp_path / "clips.npz", "overlap=0.5")), read_features(clips)

    assert np.array_equal(npz.features, parquet.features)
    assert npz.columns == parquet.columns
    assert npz.provenance == parquet.provenance
    half = read_features(write(tmp_path / "half.parquet", "overlap=0.5", "dtype=float16"))
    assert half.features.dtype == np.float16
    assert np.array_equal(half.features, parquet.features.astype(np.float16))


def test_provenance_states_how_features_were_made(clips, encoder):
    found = read_provenance(clips)

    assert found["clip"] == {
        "frames": 4, "stride": 2, "fps": None, "sampling": "dense", "size": 16, "short_video": "hold"
    }  # fmt: skip
    assert found["window"] == {"overlap": 0.5, "step_s": None, "temporal_clips": None}
    wanted = ("kind", "pool", "layer", "dtype", "crop", "precision")
    assert [found[name] for name in wanted] == ["clip", "mean", 2, "float32", "centre", "fp32"]
    assert found["encoder"] == str(encoder) and len(found["encoder_sha256"]) == 64
    assert set(found["versions"]) == {"kinemae", "torch", "av", "numpy", "pyarrow"}


@pytest.mark.slow
def test_a_probe_reads_the_files_and_agrees_with_its_own_features(encoder, synth_shards, tmp_path):
    files = []
    for split in ("train", "validation"):
        out = tmp_path / f"{split}.parquet"
        one = ["kind=pooled", "pool=statistics", "temporal_clips=1"]
        assert finetune("features", encoder, synth_shards / split, out, *CPU, *one) == 0
        files.append(f"data.{split}={out}")
    data = [f"data.{split}={synth_shards / split}" for split in ("train", "validation")]
    common = ["engine={device: cpu, cpu_threads: 1}", "knn.k=[5]"]
    store = [*data, f"encoder={encoder}", "data.num_workers=0", f"run_dir={tmp_path / 'store'}"]

    assert finetune("knn", *store, *common) == 0
    assert finetune("knn", *files, *common, f"run_dir={tmp_path / 'file'}") == 0

    own, other = (read(tmp_path / name / "knn/result.json") for name in ("store", "file"))
    assert own["confusion_matrix"] == other["confusion_matrix"]
    [layer] = (tmp_path / "store/features").rglob("train/layer-02.npy")
    np.testing.assert_allclose(
        np.load(layer)[:, 0], read_features(tmp_path / "train.parquet").features, atol=1e-5
    )


@pytest.mark.slow
def test_an_attentive_probe_reads_tokens(encoder, synth_shards, tmp_path):
    files = []
    for split in ("train", "validation"):
        out = tmp_path / f"{split}.npz"
        assert (
            finetune("features", encoder, synth_shards / split, out, *CPU, "kind=tokens", "temporal_clips=1")
            == 0
        )
        files.append(f"data.{split}={out}")
    grid = "grid={lr: [0.001], weight_decay: [0.0]}"
    train = ["train={min_steps: 4, epochs: 1, batch: 8}", "engine={device: cpu, cpu_threads: 1}", grid]

    assert finetune("probe", *files, "method=attentive", *train, f"run_dir={tmp_path / 'run'}") == 0

    assert read(tmp_path / "run/attentive/result.json")["videos"] > 0


def test_a_killed_command_repeated_ends_the_same(encoder, videos, clips, tmp_path, monkeypatch):
    out = tmp_path / "clips.parquet"
    command = ["features", encoder, videos, out, *CPU, "overlap=0.5"]
    monkeypatch.setattr("kinemae.finetune.features.command._UNIT_WINDOWS", 0.1)  # a video per unit
    join = extract._join

    def killed(rows, dtype):
        if rows[0][1]["video"] == "b.mp4":
            raise KeyboardInterrupt
        return join(rows, dtype)

    monkeypatch.setattr(extract, "_join", killed)
    assert finetune(*command) == 130
    monkeypatch.setattr(extract, "_join", join)
    done = tmp_path / "clips.parquet.partial/units/000000.parquet"
    before = done.stat().st_mtime_ns
    assert not out.exists()
    partial = shutil.copytree(done.parents[1], tmp_path / "copy")
    assert not (partial / "units/000001.json").exists()

    assert finetune(*command) == 0

    assert before > 0 and not done.exists()
    assert pq.read_table(out).equals(pq.read_table(clips))
    assert [path.name for path in tmp_path.iterdir()].sort() == ["clips.parquet", "copy"].sort()
    assert finetune(*command) == 0, "a complete file is not written again"


@pytest.mark.processes
def test_two_processes_equal_one(encoder, videos, clips, tmp_path):
    out = tmp_path / "clips.parquet"
    words = [
        "-m",
        "kinemae",
        "finetune",
        "features",
        encoder,
        videos,
        out,
        *CPU,
        "overlap=0.5",
        "clips_per_device=1",
    ]

    run_ranks(2, *map(str, words))

    found, expected = read_features(out), read_features(clips)
    assert found.columns == expected.columns
    np.testing.assert_allclose(found.features, expected.features, atol=1e-5)


def test_unreadable_videos_are_named_and_left_out(encoder, videos, clips, tmp_path, capsys):
    folder = shutil.copytree(videos, tmp_path / "videos")
    (folder / "broken.mp4").write_bytes(b"broken")
    command = ["features", encoder, folder, tmp_path / "clips.npz", *CPU, "overlap=0.5"]

    assert finetune(*command) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "max_bad_fraction=0.1 of the videos to be unreadable, got 1 of 4, first broken.mp4: " in message
    assert finetune(*command, "max_bad_fraction=0.5") == 0

    found = read_features(tmp_path / "clips.npz")
    assert np.array_equal(found.features, read_features(clips).features)
    assert list(found.provenance["skipped"]) == ["broken.mp4"]


def test_a_folder_for_action_detection_has_exact_steps(encoder, videos, tmp_path):
    out = tmp_path / "detection"
    assert finetune("features", encoder, videos, out, *CPU, "overlap=0.5", "subset=validation") == 0

    grid = read_provenance(out)["grid"]
    assert grid == {
        "feat_stride": 4, "num_frames": 7, "offset_frames": 3.5, "input_dim": 32, "default_fps": None
    }  # fmt: skip
    database = json.loads((out / "annotations.json").read_text())["database"]
    assert list(database) == ["a", "b", "more/a"]
    for name, entry in database.items():
        features_TD = np.load(out / "features" / f"{name}.npy")
        assert entry["subset"] == "validation" and entry["annotations"] == []
        assert entry["frame"] == round(entry["fps"] * entry["duration"])
        assert len(features_TD) == (entry["frame"] - 7) // 4 + 1
        # ActionFormer: position = (time * fps - num_frames / 2) / feat_stride
        for at in (1, len(features_TD) - 1):
            centre_s = (at * grid["feat_stride"] + grid["num_frames"] / 2) / entry["fps"]
            start_s, end_s = (centre_s + side * 3.5 / entry["fps"] for side in (-1, 1))
            expected_D = embed(encoder, videos / f"{name}.mp4", middles(start_s, end_s))
            torch.testing.assert_close(torch.from_numpy(features_TD[at]), expected_D, atol=1e-5, rtol=0)


def test_segments_become_annotations(encoder, synth_videos, tmp_path):
    shards = tmp_path / "shards"
    listed = sorted((synth_videos / "unlabelled").rglob("*.mp4"))[:4]
    cells = ['[[0.1, 0.5, "up"], [0.6, 0.9, "down"]]', "[]", '[[0.2, 0.4, "down"]]', '[[0.0, 0.3, "up"]]']
    rows = [
        {"path": str(path), "split": "train", "events": cell}
        for path, cell in zip(listed, cells, strict=True)
    ]
    (tmp_path / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from kinemae.data_tools.__main__ import main

    assert main(["shard", str(tmp_path / "videos.jsonl"), str(shards), "workers=1"]) == 0
    out = tmp_path / "detection"

    assert finetune("features", encoder, shards / "train", out, *CPU, "segments=events", "kind=slices") == 0

    database = json.loads((out / "annotations.json").read_text())["database"]
    by_events = {index.sample(at).key: index.arrow_column("events")[at].as_py()
                 for index in [open_index(shards / "train")] for at in range(len(index))}  # fmt: skip
    for key, cell in by_events.items():
        expected = [{"segment": [start, end], "label": label, "label_id": ["down", "up"].index(label)}
                    for start, end, label in json.loads(cell)]  # fmt: skip
        assert database[key]["annotations"] == expected
        step = read_provenance(out)["grid"]["feat_stride"]
        assert step == 4 and len(np.load(out / "features" / f"{key}.npy")) % 2 == 0
    assert (out / "category_idx.txt").read_text() == "down\nup\n"


@pytest.mark.parametrize(
    ("out", "overrides", "message"),
    [
        ("x.parquet", ["kind=tokens", "pool=statistics"], "pool must be mean with kind=tokens"),
        ("x.parquet", ["overlap=1"], "overlap must lie in [0, 1), got 1"),
        ("x.parquet", ["temporal_clips=2", "overlap=0.5"], "temporal_clips must be omitted with overlap"),
        ("x.parquet", ["layer=3"], "layer: expected blocks from 0 to 2"),
        ("x.parquet", ["frames=3"], "3 frames"),
        ("x.csv", [], "got the suffix .csv; fix: give OUT the suffix .parquet or .npz"),
        ("folder", ["kind=pooled"], "kind: expected clip or slices for a folder of ActionFormer, got pooled"),
        (
            "folder",
            ["temporal_clips=3"],
            "temporal_clips: expected sliding windows for a folder of ActionFormer",
        ),
        ("folder", ["overlap=0.3"], "overlap: expected a step of a whole number of frames"),
        ("folder", ["step_s=0.5"], "step_s: expected null, or fps too"),
        ("folder", ["kind=slices", "overlap=0.5"], "overlap: expected 0 with kind=slices"),
    ],
)
def test_a_wrong_config_is_one_line(  # noqa: PLR0913 - fixtures and cases
    encoder, videos, tmp_path, capsys, out, overrides, message
):
    assert finetune("features", encoder, videos, tmp_path / out, *CPU, *overrides) == 2

    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_wrong_sources_encoders_and_existing_files_are_one_line(encoder, videos, clips, tmp_path, capsys):
    def fails(code, message, *words):
        assert finetune("features", *words, *CPU) == code
        assert message in capsys.readouterr().err.splitlines()[-1]

    (tmp_path / "empty").mkdir()
    out = tmp_path / "x.npz"
    fails(3, "expected videos, got a folder without any", encoder, tmp_path / "empty", out)
    fails(3, "got no such file or folder", encoder, tmp_path / "absent", out)
    fails(4, "got no such path", tmp_path / "absent", videos, out)
    fails(2, "window.overlap: store 0.5, here 0.0", encoder, videos, clips)
    out.write_bytes(b"other")
    fails(3, "expected features of `kinemae finetune features`", encoder, videos, out)
    fails(3, "expected features of `kinemae finetune features`", encoder, videos, tmp_path, "rebuild=true")
    assert (tmp_path / "empty").is_dir()
    shutil.copy(clips, tmp_path / "y.parquet")
    assert finetune("features", encoder, videos, tmp_path / "y.parquet", *CPU, "rebuild=true") == 0
    assert read_provenance(tmp_path / "y.parquet")["window"]["overlap"] == 0
