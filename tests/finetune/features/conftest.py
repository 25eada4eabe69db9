"""Fixtures of the tests of features: a tiny encoder, three videos, and their features."""

import shutil

import pytest

from tests.finetune.probe.conftest import finetune, write_encoder

CPU = ["num_workers=0", "device=cpu", "cpu_threads=1"]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """An encoder of clips of 4 frames, every second frame of 16 pixels."""
    return write_encoder(tmp_path_factory.mktemp("features") / "encoder")


@pytest.fixture(scope="session")
def videos(synth_videos, tmp_path_factory):
    """A folder with three videos in two folders."""
    folder = tmp_path_factory.mktemp("videos")
    found = sorted((synth_videos / "unlabelled").rglob("*.mp4"))[:3]
    for path, name in zip(found, ["b.mp4", "a.mp4", "more/a.mp4"], strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, folder / name)
    return folder


@pytest.fixture(scope="session")
def write(encoder, videos):
    """Write the features of the videos with some overrides; returns the file."""

    def written(out, *overrides, source=videos):
        assert finetune("features", encoder, source, out, *CPU, *overrides) == 0
        return out

    return written


@pytest.fixture(scope="session")
def clips(write, tmp_path_factory):
    """Features of half-overlapping windows as parquet."""
    return write(tmp_path_factory.mktemp("features") / "clips.parquet", "overlap=0.5")
