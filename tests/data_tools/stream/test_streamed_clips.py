"""Training clips of tars without an index: pixels of the indexed reader, bad samples, dead workers."""

import io
import os
import signal
from functools import partial

import av
import numpy as np
import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import DataError, run_program
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.loader import training_loader
from kinemae.data_tools.stream.order import plan_batch
from kinemae.data_tools.stream.streamed_clips import StreamedClips
from kinemae.data_tools.stream.tar_list import open_tars
from kinemae.data_tools.stream.training_clips import TrainingClips
from tests.data_tools.stream.tars import SAMPLES, clip, key, write_tars
from tests.sharding import shard, write_clip
from tests.source_collections import write_tar

CLIP = ClipConfig(frames=2, stride=2, size=16)
SETTINGS = {"clip": CLIP, "augment": AugmentConfig(), "seed": 3}


def streamed(tars, **settings):
    return StreamedClips(open_tars(tars), **{**SETTINGS, "buffer": 1, **settings})


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    root = tmp_path_factory.mktemp("ours")
    for number in range(4):
        write_clip(
            root / "videos" / "ab"[number % 2] / f"{number}.mp4", number, frames=13, height=32, width=48
        )
    options = ("validation_fraction=0", "layout.args.every=2")
    assert shard(root / "videos", root / "out", *options) == 0
    return root / "out" / "train"


def test_clips_are_those_of_the_indexed_reader_at_the_same_position(ours, tmp_path):
    tar, index = ours / "shard-000000.tar", open_index(ours)
    rows = {name: row for row, name in enumerate(index.column("key"))}
    stream = streamed(tar, views=2)
    for first in (0, 4):
        batch = stream.batch(range(first, first + 4))
        for row, name in enumerate(batch.keys):
            own = index.view([rows[name.partition("/")[2]]])
            expected = TrainingClips(own, views=2, **SETTINGS).batch(range(first + row, first + row + 1))
            assert batch.clip_BCTHW[row].equal(expected.clip_BCTHW[0])
            assert batch.time_BT[row].equal(expected.time_BT[0])
            assert batch.label_B[row] == expected.label_B[0]
    assert len({*batch.keys}) == 2 and batch.sample_B.tolist() == [-1] * 4
    [bad, *_] = streamed(tar, clip=ClipConfig(frames=2, stride=1, size=16)).batch(range(4)).skipped
    assert bad.reason == "one of 2 frames of its source is stored, and clip.stride=1 is smaller"
    damaged = bytearray(tar.read_bytes())
    sample = index.sample(0)
    damaged[sample.offset + sample.length // 2] ^= 1
    (tmp_path / "x.tar").write_bytes(damaged)
    [bad] = streamed(tmp_path / "x.tar").batch(range(4)).skipped
    assert bad.key == f"x.tar/{sample.key}" and "its checksum differs from the one in its .json" in bad.reason


def mkv(frames):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(frames):
            picture = np.full((32, 32, 3), number * 5, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        out.mux(stream.encode(None))
    return file.getvalue()


def test_a_video_that_ends_before_its_container_states_is_counted(tmp_path):
    video = mkv(40)
    write_tar(tmp_path / "x.tar", [("a.mkv", video[: len(video) // 2])])
    times = [
        float(streamed(tmp_path / "x.tar", seed=seed).batch(range(1)).time_BT.max()) for seed in range(8)
    ]
    assert 0 < max(times) < 2.5  # of 4 seconds


def test_bad_samples_keep_their_place_with_weight_0(tmp_path):
    members = [
        ("a.mp4", clip(0)),
        ("a.webm", b"x"),
        ("b.mp4", b"no video"),
        ("c.mp4", clip(1)),
        ("d.mp4", clip(2)),
    ]
    write_tar(tmp_path / "x.tar", members)
    batch = streamed(tmp_path / "x.tar").batch(range(4), quarantined={"x.tar/d": "it was fatal"})
    assert batch.weight_B.tolist() == [0, 0, 1, 0] and batch.clip_BCTHW[:2].max() == 0
    reasons = {each.key: each.reason for each in batch.skipped}
    assert reasons["x.tar/a"] == "expected one video, got mp4 and webm"
    assert "FFmpeg cannot read it" in reasons["x.tar/b"] and reasons["x.tar/d"] == "it was fatal"


@pytest.mark.parametrize("number", [b"9" * 23, b"-7", b"cat"])
def test_a_class_that_is_no_number_of_64_bits_is_no_label(tmp_path, number):
    write_tar(tmp_path / "x.tar", [("a.mp4", clip(0)), ("a.cls", number)])
    assert streamed(tmp_path / "x.tar").batch(range(1)).label_B.tolist() == [-1]


def test_a_step_back_starts_the_stream_again(tmp_path):
    stream = streamed(write_tars(tmp_path), buffer=7)
    first, second = stream.batch(range(3)), stream.batch(range(9, 12))
    assert not {*first.keys} & {*second.keys}
    again = stream.batch(range(3))
    assert again.keys == first.keys and again.clip_BCTHW.equal(first.clip_BCTHW)
    assert stream.keys(range(3)) == []


def die_once(folder, sample):
    mark = folder / "died"
    if sample["__key__"] == "00202" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return sample


@pytest.mark.processes
def test_workers_read_each_sample_once_and_one_that_dies_loses_none(tmp_path, logged):
    clips = streamed(write_tars(tmp_path, 6), buffer=3)
    clips = clips.with_hook(("map", partial(die_once, tmp_path)))
    plan = plan_batch(5, 5, world=1, views=1)
    loader = training_loader(clips, plan, rank=0, first_step=0, last_step=8, workers=2, pin=False)
    keys = [name for batch in loader for name in batch.keys]
    assert {key(tar, sample) for tar in range(6) for sample in range(SAMPLES)} <= {*keys}
    assert "a loader worker was killed by SIGKILL between two samples" in logged.text


@pytest.mark.processes
def test_batches_are_a_function_of_the_seed_and_the_workers(tmp_path):
    clips = streamed(write_tars(tmp_path), buffer=3)
    plan = plan_batch(2 * SAMPLES, SAMPLES, world=2, views=1)
    runs = []
    for workers in (2, 2, 0):
        loader = training_loader(clips, plan, rank=1, first_step=0, last_step=2, workers=workers, pin=False)
        runs.append([batch.keys for batch in loader])
    assert runs[0] == runs[1]
    assert {name for keys in runs[2] for name in keys} == {name for keys in runs[0] for name in keys}


def test_tars_of_a_union_have_its_class_numbers_after_reshard_and_mixed_numbers_are_an_error(tmp_path, ours):
    write_clip(tmp_path / "videos" / "b" / "x.mp4", 9, frames=13, height=32, width=48)
    assert shard(tmp_path / "videos", tmp_path / "other", "validation_fraction=0") == 0
    sets = [str(ours), str(tmp_path / "other" / "train")]
    merged, out = str(tmp_path / "merged"), tmp_path / "out"
    assert run_program(PROGRAM, ["merge", *sets, merged, "classes=union"]) == 0
    assert run_program(PROGRAM, ["reshard", merged, str(out)]) == 0
    index = open_index(out)
    batch = streamed(next(out.glob("*.tar"))).batch(range(5))
    labels = dict(zip(index.column("key"), index.column("label"), strict=True))
    assert [labels[name.partition("/")[2]] for name in batch.keys] == batch.label_B.tolist()
    with pytest.raises(
        DataError, match=r"expected one number for each class, got '.' as . after '.' as .; fix"
    ):
        streamed([f"{folder}/shard-000000.tar" for folder in sets]).batch(range(8))
    mixed = streamed([f"{folder}/shard-000000.tar" for folder in sets], uses_labels=False)
    assert len(mixed.batch(range(8)).keys) == 8  # pretraining
