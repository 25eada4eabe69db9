"""Batches: planes from the loader, RGB on the device."""

import shutil
from dataclasses import replace

import pytest
import torch

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream import training_clips as clips_module
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.colour import JitterConfig
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips
from kinemae.data_tools.stream.video_reader import decode_sample
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips

CLIP = ClipConfig(frames=4, stride=2, size=24)
GRAY = AugmentConfig(jitter=JitterConfig(grayscale=1.0))
HERE = torch.device("cpu")


def clips_of(folder, augment=None, **options):
    augment = augment or AugmentConfig()
    return TrainingClips(open_index(folder), clip=CLIP, augment=augment, seed=5, views=2, **options)


@pytest.fixture
def damaged(synth_shards, tmp_path):
    """A copy of the training shards whose first video is damaged, and that video's key."""
    folder = tmp_path / "train"
    shutil.copytree(synth_shards / "train", folder)
    sample = open_index(folder).sample(0)
    with (folder / open_index(folder).shards[sample.shard].name).open("r+b") as file:
        file.seek(sample.offset + sample.length // 2)
        file.write(b"\xff\x00\xff\x00")
    return folder, sample.key


def test_clips_are_planes_in_the_loader_and_rgb_on_the_device(synth_shards):
    batch = clips_of(synth_shards / "train").batch(range(6))
    assert isinstance(batch.pixels, YuvClips)
    planes = (batch.pixels.luma_BTHW, batch.pixels.chroma_BCTHW)
    assert [plane.shape for plane in planes] == [(6, 4, 24, 24), (6, 2, 4, 12, 12)]
    arrived = batch.to(HERE)
    assert isinstance(arrived.pixels, torch.Tensor) and arrived.pixels.dtype == torch.uint8
    assert arrived.clip_BCTHW is arrived.pixels and arrived.clip_BCTHW.shape == (6, 3, 4, 24, 24)
    assert torch.equal(arrived.clip_BCTHW, batch.clip_BCTHW)
    assert arrived.keys == batch.keys and torch.equal(arrived.label_B, batch.label_B)


def test_clips_are_rgb_after_colour_augmentation_in_the_worker(synth_shards):
    plain = clips_of(synth_shards / "train").batch(range(6))
    gray = clips_of(synth_shards / "train", GRAY).batch(range(6))
    assert isinstance(gray.pixels, torch.Tensor)
    red, green, blue = gray.clip_BCTHW.unbind(1)
    assert torch.equal(red, green) and torch.equal(red, blue)
    brightness = (plain.clip_BCTHW.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)).sum(dim=1)
    assert (red.float() - brightness).abs().max() <= 2  # the same boxes, mirrored alike


def levels_seen(folder, augment=None, **options):
    """The luma that `annotate` gets for two clips."""
    seen = []

    def look(luma_THW, clip_index):
        seen.append(luma_THW)
        return {}

    clips_of(folder, augment, annotate=look, **options).batch(range(2))
    return seen


def test_annotate_gets_the_same_luma_for_planes_and_rgb(synth_shards):
    planes, rgb = (levels_seen(synth_shards / "train", augment) for augment in (AugmentConfig(), GRAY))
    assert all(luma_THW.shape == (4, 24, 24) and luma_THW.dtype == torch.uint8 for luma_THW in planes + rgb)
    difference = (torch.stack(planes).int() - torch.stack(rgb).int()).abs()
    # torchvision's grey is rounded down, and RGB clips a few colours.
    assert (difference <= 1).float().mean() > 0.98 and difference.max() < 8


def test_luma_is_not_computed_if_annotate_does_not_need_it(synth_shards):
    assert levels_seen(synth_shards / "train", needs_luma=False) == [None, None]


@pytest.mark.parametrize("augment", [AugmentConfig(), GRAY])
def test_a_skipped_clip_is_black(damaged, augment):
    folder, key = damaged
    clips = clips_of(folder, augment)
    batch = clips.batch(range(2 * len(clips.index)))
    rows = [row for row, name in enumerate(batch.keys) if name == key]
    assert len(rows) == 2 == sum(batch.weight_B == 0) and not batch.clip_BCTHW[rows].any()
    assert batch.to(HERE).clip_BCTHW.flatten(1).any(dim=1).sum() == len(batch.keys) - 2


def test_a_video_that_fails_while_decoding_gives_zeros(synth_shards, monkeypatch):
    def failing(*args, **options):
        pictures = decode_sample(*args, **options)
        yield next(pictures)
        yield next(pictures)
        raise BadVideo("gone")

    monkeypatch.setattr(clips_module, "decode_sample", failing)
    batch = clips_of(synth_shards / "train").batch(range(2))
    assert not batch.weight_B.any() and not batch.clip_BCTHW.any() and not batch.pixels.luma_BTHW.any()


def test_a_quarantined_sample_is_not_read_and_the_others_are_reported(synth_shards):
    clips, announced = clips_of(synth_shards / "train"), []
    whole = clips.batch(range(6), on_sample=announced.append)
    assert announced == list(whole.keys[::2])
    announced.clear()
    part = clips.batch(range(6), quarantined={whole.keys[2]: "it hung"}, on_sample=announced.append)
    assert announced == [whole.keys[0], whole.keys[4]]
    assert [(clip.key, clip.reason) for clip in part.skipped] == [(whole.keys[2], "it hung")] * 2
    assert not part.clip_BCTHW[2:4].any() and torch.equal(part.clip_BCTHW[4:], whole.clip_BCTHW[4:])


def test_a_batch_of_rgb_is_not_converted():
    rgb = torch.randint(0, 256, (2, 3, 1, 4, 4), dtype=torch.uint8)
    nothing = torch.zeros(2)
    batch = ClipBatch(pixels=rgb, clip_index_B=nothing.long(), label_B=nothing.long(), weight_B=nothing)
    assert torch.equal(batch.to(HERE).clip_BCTHW, rgb)
    assert replace(batch, tokens={"visible": nothing}).to(HERE).tokens["visible"].shape == (2,)
