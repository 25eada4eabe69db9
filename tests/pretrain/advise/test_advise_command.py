"""`kinemae pretrain advise` on small data sets of three kinds; the config that it writes runs."""

import csv
import json

import pytest
import torch
import yaml

from kinemae.data_tools.__main__ import PROGRAM as DATA_TOOLS
from kinemae.data_tools.command import DataError, run_program
from kinemae.data_tools.config import load_config
from kinemae.data_tools.encoding.encode import EncodeConfig, write_video
from kinemae.data_tools.files import read_jsonl
from kinemae.data_tools.randomness import generator
from kinemae.pretrain.__main__ import PROGRAM
from kinemae.pretrain.advise.budget import measure_speed
from kinemae.pretrain.config import PretrainConfig
from tests.forked import run_forked
from tests.label_index import label_index

pytestmark = pytest.mark.slow
VIDEOS = 24
SMALL = ["model.width=24", "model.depth=1", "model.decoder_width=24", "model.decoder_depth=1"]


def advise(*arguments, out, speed=100):
    given = [] if speed is None else ["--clips-per-s", str(speed)]
    words = ["advise", *map(str, arguments), "--device", "cpu", "--out", str(out), *given]
    return run_program(PROGRAM, words)


def frames_of(kind, number):
    """Frames of a video: smooth noise that stays or moves by one pixel per frame."""
    chance = generator(number, purpose="test")
    noise_1CHW = torch.rand(1, 3, 16, 16, generator=chance)
    picture_CHW = torch.nn.functional.interpolate(noise_1CHW, size=(64, 96), mode="bilinear")[0] * 255
    side = 48 if kind == "metadata" and number % 2 else 40
    places = [0] * 20 if kind == "static" else range(6 if kind == "short" else 20)
    frames_TCHW = torch.stack([picture_CHW[:, :40, place : place + side] for place in places])
    return frames_TCHW.permute(0, 2, 3, 1).to(torch.uint8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A data set of each kind: as surveillance cameras, as short clips of several speakers, and still."""
    root = tmp_path_factory.mktemp("kinds")
    for kind in ("metadata", "short", "static"):
        rows = [["path", "label", "group"]]
        for number in range(VIDEOS):
            path = root / f"{kind}-{number:02}.mp4"
            write_video(path, frames_of(kind, number), EncodeConfig())
            group = f"speaker {number // 4}" if kind == "short" else ""
            rows.append([str(path), f"class {number % 2}", group])
        with (root / f"{kind}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        given = ["validation_fraction=0", "workers=1"]
        assert run_program(DATA_TOOLS, ["shard", str(root / f"{kind}.csv"), str(root / kind), *given]) == 0
    return root


def test_kinds_of_data_sets_get_their_settings_and_warnings(shards, tmp_path, capsys):
    found = {}
    for kind in ("metadata", "short", "static"):
        assert advise(shards / kind / "train", "--json", out=tmp_path / f"{kind}.yaml") == 0
        found[kind] = json.loads(capsys.readouterr().out)

    assert "metadata_floor" in found["metadata"]["warnings"]
    assert found["metadata"]["facts"]["floors"]["has_groups"] is False
    assert found["metadata"]["settings"]["clip.stride"] > 1
    assert found["short"]["settings"]["clip.sampling"] == "uniform"
    assert found["short"]["facts"]["floors"]["has_groups"] is True
    assert "short_videos" in found["short"]["warnings"]
    assert "static" in found["static"]["warnings"]
    for advice in found.values():
        assert "few_videos" in advice["warnings"] and all(each["source"] for each in advice["advice"])
        assert advice["cost"]["clips_per_s"] == 100 and advice["cost"]["flops"] > 0


def test_the_advice_repeats_and_its_config_trains(synth_shards, repo, tmp_path, capsys):
    folder, run_dir, out = synth_shards / "train", tmp_path / "run", tmp_path / "new" / "advised.yaml"
    arguments = [folder, "--hours", "0.5", f"run_dir={run_dir}", "model.size=tiny", *SMALL]
    assert advise(*arguments, out=out) == 0
    text = capsys.readouterr().out
    written = out.read_text()
    assert advise(*arguments, "--json", out=tmp_path / "again.yaml") == 0
    advice = json.loads(capsys.readouterr().out)

    again = (tmp_path / "again.yaml").read_text()
    assert written.replace(str(out), "") == again.replace(str(tmp_path / "again.yaml"), "")
    assert f"videos      32 in {folder}" in text and "\nyour choice\n  model.size=tiny\n" in text
    assert f"To train:\n\n  kinemae pretrain {out}\n" in text and "\nwarnings\n  - 32 videos are few" in text
    assert advice["settings"]["steps"] == 3200 * 32 // 16 and "long" in advice["warnings"]
    config = yaml.safe_load(written)
    assert config["augment"]["flip"] is False and config["model"]["width"] == 24
    assert config["clip"] == {"frames": 8, "stride": 1, "size": 32}  # as the demo

    changes = ["steps=2", "data.num_workers=0", "pictures.every_steps=0"]
    run_forked("-m", "kinemae", "pretrain", str(out), *changes)
    assert [line["step"] for line in read_jsonl(run_dir / "metrics.jsonl")] == [0, 1]


@pytest.mark.nightly
def test_the_speed_is_measured_by_a_few_steps(synth_shards, tmp_path, capsys):
    out = tmp_path / "advised.yaml"
    given = ["data.num_workers=0", "clip.frames=2", "batch.global_clips=4", *SMALL]
    assert advise(synth_shards / "unlabelled", "--json", *given, "steps=7", out=out, speed=None) == 0
    advice = json.loads(capsys.readouterr().out)

    cost = advice["cost"]
    assert cost["is_measured"] and cost["clips_per_s"] > 0 and 0 < cost["data_wait"] < 1
    assert cost["steps"] == 7 and cost["hours"] == pytest.approx(7 * 4 / cost["clips_per_s"] / 3600)
    assert advice["facts"]["floors"] is None and "steps" not in advice["settings"]


def config_of_unreadable_videos(folder, *overrides):
    label_index(folder, labels=[0] * 40)
    given = [f"data.shards={folder}", "run_dir=r", "steps=1", "model.size=tiny", "batch.global_clips=8"]
    clip = "clip={frames: 2, size: 32}"
    return load_config(PretrainConfig, None, [*given, clip, "data.num_workers=0", *SMALL, *overrides])


def test_steps_that_fail_are_one_line(tmp_path):
    config = config_of_unreadable_videos(tmp_path, "target={name: teacher, args: {encoder: no/folder}}")
    with pytest.raises(DataError, match=r"the measured steps failed: target\.args\.encoder: no/folder"):
        measure_speed(config, 10**6, device="cpu")


@pytest.mark.nightly
def test_settings_for_the_whole_run_and_unreadable_videos_do_not_stop_the_measured_steps(tmp_path):
    """The clips of so large a model would be measured one at a time, which the target cannot compare."""
    config = config_of_unreadable_videos(
        tmp_path, "optim.warmup_steps=500", "keep_every_steps=1000", "target.name=views"
    )
    assert measure_speed(config, 10**12, device="cpu").clips_per_s > 0


def test_a_data_set_without_a_readable_video_is_refused(tmp_path, capsys):
    label_index(tmp_path, labels=[0] * 4)
    assert advise(tmp_path, out=tmp_path / "advised.yaml") == 3
    expected = f"{tmp_path}: expected videos that can be decoded, got none among 4; fix: `kinemae data verify"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--hours", "0"], 2, "--hours must be a number above 0, got '0'"),
        (["--hours", "two"], 2, "--hours must be a number above 0, got 'two'"),
        (["--clips-per-s", "nan"], 2, "--clips-per-s must be a number above 0, got 'nan'"),
        (["--device", "tpu"], 2, "engine.device"),
        (["data.shards=other"], 2, "data.shards must be omitted, since SHARDS names the data set"),
        (["data.mixture={a: 1}"], 2, "data.mixture must be omitted"),
        (["clip.size=0"], 2, "clip.size must be at least 1, got 0"),
        (["clip.frame=8"], 2, "did you mean"),
        (["--out", "pyproject.toml"], 2, "--out must name a file that does not exist, got 'pyproject.toml'"),
    ],
)
def test_wrong_input_is_one_line_before_videos_are_read(words, code, message, repo, monkeypatch, capsys):
    monkeypatch.chdir(repo)
    assert run_program(PROGRAM, ["advise", "no/such/shards", *words]) == code
    assert message in capsys.readouterr().err


def test_a_folder_without_shards_is_refused(tmp_path, capsys):
    assert run_program(PROGRAM, ["advise", str(tmp_path), "--out", str(tmp_path / "out.yaml")]) == 3
    assert str(tmp_path) in capsys.readouterr().err
