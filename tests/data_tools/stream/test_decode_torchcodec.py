"""The second decoder gives the frames of the first, refuses the same, and says so when it is absent."""

import importlib.util

import numpy as np
import pytest
import torch

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream import container as container_module
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import decode_at, probe
from kinemae.data_tools.stream.decode_torchcodec import yuv_frames_at
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips, evaluation_loader
from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from kinemae.pretrain.model.motion_energy import change
from kinemae.pretrain.runtime.settings import StreamConfig
from tests.data_tools.stream.test_decode import GOLDEN
from tests.filming import ALIGNED, FORMATS, encoded, middle_s, scene

CLIP = ClipConfig(frames=4, stride=2, size=24)

with_torchcodec = pytest.mark.skipif(
    importlib.util.find_spec("torchcodec") is None, reason="torchcodec is not installed"
)


def frames_at(video, timestamps_s, **options):
    """The frames as decode_at gives them."""
    found = {}
    for picture, places in yuv_frames_at(video, timestamps_s, **options):
        found.update(dict.fromkeys(places, torch.from_numpy(np.array(picture.planes[0])).permute(2, 0, 1)))
    return torch.stack([found[place] for place in range(len(timestamps_s))])


@with_torchcodec
@pytest.mark.parametrize("name, stream, frame", GOLDEN)
def test_golden_frames_match_and_their_neighbours_do_not(videos, name, stream, frame):
    video = (videos / "formats" / name).read_bytes()
    golden_HWC = torch.load(FORMATS / f"{name}.stream{stream}.frame{frame:06d}.pt", weights_only=True)
    last = probe(video).frames - 1
    near = [n for n in (frame - 1, frame, frame + 1) if 0 <= n <= last]
    frames_TCHW = frames_at(video, middle_s(video, *near))
    errors = (frames_TCHW.float() - golden_HWC.permute(2, 0, 1).float()).abs().mean(dim=(1, 2, 3)).tolist()
    assert errors[near.index(frame)] < 1
    assert all(error > errors[near.index(frame)] for n, error in zip(near, errors, strict=True) if n != frame)


@with_torchcodec
@pytest.mark.parametrize(
    "name",
    ["nasa_13013_rotated.mp4", "test_non_zero_start.mp4", "discard_first_keyframe.mp4", "testsrc2_vp9.webm"],
)
def test_frames_are_those_of_pyav(videos, name):
    video = (videos / "formats" / name).read_bytes()
    last = probe(video).frames - 1
    timestamps_s = middle_s(video, last, 0, last // 2)
    ours, theirs = decode_at(video, timestamps_s), frames_at(video, timestamps_s)
    assert ours.shape == theirs.shape
    assert (ours.float() - theirs.float()).abs().mean() < 1.5


@with_torchcodec
def test_any_order_repeats_and_instants_past_the_end_work():
    video = encoded(scene(40), **ALIGNED)
    timestamps_s = [*middle_s(video, 7, 3, 3, 39, 0), 1.7]
    ours, theirs = decode_at(video, timestamps_s), frames_at(video, timestamps_s)
    assert (ours.float() - theirs.float()).abs().mean() < 1.5
    assert torch.equal(theirs[1], theirs[2]) and torch.equal(theirs[3], theirs[5])


@pytest.mark.parametrize(
    "video",
    [
        b"",
        b"no video\n" * 999,
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"#EXTM3U\nhttp://127.0.0.1:1/a\n",
    ],
)
def test_what_is_no_video_never_reaches_torchcodec(video, monkeypatch):
    from kinemae.data_tools.stream import decode_torchcodec

    monkeypatch.setattr(decode_torchcodec, "_decoder", lambda *args: pytest.fail("torchcodec was asked"))
    with pytest.raises(BadVideo, match="FFmpeg cannot read it"):
        list(yuv_frames_at(video, [0.0]))


def test_large_frames_never_reach_torchcodec(monkeypatch):
    monkeypatch.setattr(container_module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(BadVideo, match="frames of 64x48 are larger than 3071 pixels"):
        list(yuv_frames_at(encoded(scene(3)), [0.0]))


@with_torchcodec
def test_a_video_shorter_than_the_index_says_is_refused():
    video = encoded(scene(10))
    with pytest.raises(BadVideo, match=r"it ends at 0.400 s, the index promises a frame at 0.760 s"):
        list(yuv_frames_at(video, [0.1, 0.78], last_frame_s=0.76))


@with_torchcodec
def test_a_damaged_video_is_a_bad_one():
    video = bytearray(encoded(scene(40), g="10"))
    middle = len(video) // 2
    video[middle - 2000 : middle + 2000] = bytes(4000)
    with pytest.raises(BadVideo, match="torchcodec cannot read it: "):
        list(yuv_frames_at(bytes(video), [number / 25 for number in range(40)]))


@with_torchcodec
def test_training_and_evaluation_run_on_it(synth_shards):
    index = open_index(synth_shards / "train")
    batches = {
        decoder: TrainingClips(
            index, clip=CLIP, augment=AugmentConfig(), seed=5, views=2, decoder=decoder
        ).batch(range(8))
        for decoder in ("pyav", "torchcodec")
    }
    assert isinstance(batches["torchcodec"].pixels, torch.Tensor)
    ours, theirs = (batch.clip_BCTHW.float() for batch in batches.values())
    assert batches["torchcodec"].weight_B.all()
    assert (ours - theirs).abs().mean() < 8 < 24 < (ours - theirs.roll(2, 0)).abs().mean()
    changes = [change(to_luma(batch.pixels), (1, 8, 8)) for batch in batches.values()]
    ours, theirs = (change_BN[change_BN.isfinite()] for change_BN in changes)
    assert ours.mean() > 5
    assert (ours - theirs).abs().max() < 0.05 * ours.max(), "or masks would change with the decoder"

    views = [
        next(
            iter(
                evaluation_loader(
                    open_index(synth_shards / "validation"), clip=CLIP, temporal_clips=2, spatial_crops=3,
                    rank=0, world=1, workers=0, decoder=decoder,
                )
            )
        ).pixels
        for decoder in ("pyav", "torchcodec")
    ]  # fmt: skip
    assert (views[0].rgb().float() - views[1].float()).abs().mean() < 8


def test_without_the_package_the_config_is_refused(synth_shards, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"data.decoder=torchcodec needs the package torchcodec, which is not"
    ):
        TrainingClips(
            open_index(synth_shards / "train"),
            clip=CLIP,
            augment=AugmentConfig(),
            seed=0,
            decoder="torchcodec",
        )


def test_the_config_refuses_an_unknown_decoder_before_anything_is_read():
    with pytest.raises(ValueError, match=r"data.decoder must be pyav or torchcodec, got 'cuda'"):
        StreamConfig(decoder="cuda")


def test_an_unknown_decoder_is_refused(synth_shards):
    with pytest.raises(ValueError, match=r"data.decoder must be pyav or torchcodec, got 'decord'"):
        TrainingClips(
            open_index(synth_shards / "train"), clip=CLIP, augment=AugmentConfig(), seed=0, decoder="decord"
        )
