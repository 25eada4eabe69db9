"""Faults of collections: decompression bombs, unsafe names, pickles, pipe URLs."""

import io
import json
import os
import subprocess
import sys
import tarfile
import unicodedata
from pathlib import Path

import pytest
import torch
import webdataset

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.encoding.encode import EncodeConfig, write_video
from kinemae.data_tools.index import open_index
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.training_clips import TrainingClips

MAX_MEBIBYTES = 300  # more than for a small video; the frames of the bomb are 5,930 MiB as RGB

BOMB = """
import io, sys
from fractions import Fraction
from pathlib import Path
import av, torch
from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.pretrain.runtime.train_step import peak_memory_bytes

GROUP = 100

def bomb(path, width, height, frames):
    small = io.BytesIO()
    with av.open(small, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "0", "g": "250"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
        black = av.VideoFrame(width, height, "yuv420p")
        [plane.update(bytes(plane.buffer_size)) for plane in black.planes]
        for at in range(GROUP):
            black.pts = at
            output.mux(stream.encode(black))
        output.mux(stream.encode())
    with av.open(io.BytesIO(small.getvalue())) as given, av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        packets = [(bytes(p), p.is_keyframe) for p in given.demux(video=0) if p.dts is not None]
        for number in range(frames):
            packet = av.Packet(packets[number % GROUP][0])
            packet.stream, packet.is_keyframe = stream, packets[number % GROUP][1]
            packet.pts = packet.dts = number
            packet.time_base = Fraction(1, 25)
            output.mux(packet)

def through(folder, *size):
    folder.mkdir(parents=True)
    bomb(folder / "black.mp4", *size)
    whole = ["layout.args.every=1", "segment_s=null"]
    assert run_program(PROGRAM, ["shard", str(folder), f"{folder}-shards", "workers=1", *whole]) == 0
    index = open_index(f"{folder}-shards/train")
    clips = TrainingClips(index, clip=ClipConfig(), augment=AugmentConfig(), seed=0)
    assert clips.batch(range(2)).skipped == ()
    page = f"{folder}.html"
    assert run_program(PROGRAM, ["report", f"{folder}-shards", page, "workers=1"]) == 0
    return peak_memory_bytes(torch.device("cpu")), index.sample(0).frames

before, _ = through(Path(sys.argv[1], "small"), 128, 96, 60)
after, frames = through(Path(sys.argv[1], "large"), 1920, 1080, 1000)
size = Path(sys.argv[1], "large", "black.mp4").stat().st_size
sys.stdout.write(f"{(after - before) >> 20} {frames} {size}")
"""


@pytest.mark.slow
def test_a_bomb_is_sharded_read_and_reported_in_bounded_memory(repo: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(tmp_path)], cwd=repo, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    mebibytes, frames, size = map(int, done.stdout.split())
    assert frames == 1000 and size < 150_000
    assert mebibytes < MAX_MEBIBYTES


def put(path: Path, number: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = generator(number, purpose="test")
    frames_THWC = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=chance)
    write_video(path, frames_THWC, EncodeConfig(crf=40))
    return path.read_bytes()


UNSAFE_NAMES = [
    "v1.2.final.mp4",
    "two  spaces .mp4",
    "line\nbreak.mp4",
    "tab\t'quote\".mp4",
    "..mp4",
    "-rf.mp4",
    "a:b|c.mp4",
    "$(touch x).mp4",
    "pipe:cat.mp4",
    unicodedata.normalize("NFC", "cafe\u0301.mp4"),
    unicodedata.normalize("NFD", "caf\u00e9.mp4"),
    "Clip.mp4",
    "clip.mp4",
    "CLIP.MP4",
    "\u202egnp.mp4",
    "\u89c6\u9891.mp4",
    "x" * 200 + ".mp4",
]


def test_unsafe_names_become_safe_keys_and_are_kept_in_the_index(tmp_path: Path):
    source, out = tmp_path / "videos" / "a.b c", tmp_path / "shards"
    written = {f"a.b c/{name}": put(source / name, number) for number, name in enumerate(UNSAFE_NAMES)}
    hidden = {name for name in written if Path(name).name.startswith(".")}
    arguments = [
        "shard",
        str(source.parent),
        str(out),
        "workers=1",
        "layout.name=copy",
        "validation_fraction=0",
    ]
    assert run_program(PROGRAM, arguments) == 0
    found = {}
    for sample in webdataset.WebDataset(str(out / "train" / "shard-000000.tar"), shardshuffle=False):
        assert set(sample["__key__"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
        found[json.loads(sample["json"])["name"]] = sample["mp4"]
    assert found == {name: video for name, video in written.items() if name not in hidden}
    index = open_index(out / "train")
    assert len(set(index.column("key"))) == len(index) == len(found)
    assert set(index.column("name")) == set(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "videos"]


def test_names_in_a_csv_cannot_write_outside_the_output_folder(tmp_path: Path):
    put(tmp_path / "above.mp4", 0)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "list.csv").write_text("path,label\n../above.mp4,x\n")
    out = tmp_path / "shards"
    assert run_program(PROGRAM, ["shard", str(tmp_path / "set" / "list.csv"), str(out), "workers=1"]) == 0
    with tarfile.open(out / "train" / "shard-000000.tar") as tar:
        assert all("." not in name.partition(".")[0] and "/" not in name for name in tar.getnames())


def test_a_pickle_in_a_shard_is_never_opened(tmp_path: Path):
    """verify, index, training and report never open it; webdataset's decoder executes it."""
    source, out = tmp_path / "videos", tmp_path / "shards"
    for number in range(2):
        put(source / f"{number}.mp4", number)
    assert run_program(PROGRAM, ["shard", str(source), str(out), "workers=1", "layout.name=copy"]) == 0
    shard, mark = out / "train" / "shard-000000.tar", tmp_path / "executed"
    code = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    with tarfile.open(shard, "a") as tar:
        member = tarfile.TarInfo("evil.pyd")
        member.size = len(code)
        tar.addfile(member, io.BytesIO(code))
    foreign = tmp_path / "index"
    for command in (["verify", str(out / "train")], ["index", str(out / "train"), str(foreign)]):
        run_program(PROGRAM, [*command, "workers=1"])
    clips = TrainingClips(
        open_index(out / "train", check_shards=False),
        clip=ClipConfig(frames=2, size=16),
        augment=AugmentConfig(),
        seed=0,
    )
    assert clips.batch(range(4)).skipped == ()
    run_program(PROGRAM, ["report", str(out), "workers=1"])
    assert not mark.exists()
    list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    assert mark.exists(), "the pickle is harmful"


@pytest.mark.parametrize("command", ["show", "verify", "report", "bench"])
@pytest.mark.parametrize(
    "url", ["pipe:touch {mark}", "pipe://touch {mark}", "ftp://host/shards", "gopher://x"]
)
def test_every_command_rejects_pipes_and_unknown_url_schemes(
    command: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mark = tmp_path / "executed"
    assert run_program(PROGRAM, [command, url.format(mark=mark)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "expected a path or a URL that begins with" in line
    assert not mark.exists() and not os.path.exists("touch")


@pytest.mark.parametrize("command", ["show", "verify", "report", "bench"])
def test_every_command_names_a_folder_that_is_not_a_data_set(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "gone"):
        assert run_program(PROGRAM, [command, str(folder)]) == 3
        [line] = capsys.readouterr().err.splitlines()
        assert str(folder) in line and ("expected a data set" in line or "no folder of shards" in line)
