"""Calibration of a head: statistics of the readable clips at the start of a run."""

import shutil
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import open_index
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.heads.base import Standardize, pool_tokens
from kinemae.finetune.train import calibrate_head, prepare, training

SMALL = ("clip.frames=4", "clip.stride=2", "clip.size=16", "model.size=tiny", "model.patch_size=8")
SETTINGS = ("encoder=null", *SMALL, "model.width=32", "model.depth=2", "head.name=linear")


@pytest.fixture
def damaged_run(common, synth_shards, tmp_path):
    """Prepare a run whose training set has some videos of zeros."""

    def prepare_with(damaged: slice):
        folder = Path(shutil.copytree(synth_shards / "train", tmp_path / "train"))
        index = open_index(folder)
        for position in range(len(index))[damaged]:
            sample = index.sample(position)
            with (folder / index.shards[sample.shard].name).open("r+b") as shard:
                shard.seek(sample.offset)
                shard.write(bytes(sample.length))
        arguments = [*common[1:], *SETTINGS, "head.args.norm=standardize", f"data.train={folder}"]
        prepared = prepare(
            load_config(FinetuneConfig, common[0], [*arguments, f"run_dir={tmp_path / 'run'}"])
        )
        return prepared, training(prepared)

    return prepare_with


def test_videos_that_cannot_be_read_do_not_count(damaged_run):
    prepared, run = damaged_run(slice(0, 3))

    calibrate_head(prepared, run)

    model, batch = prepared.model, run.clips.batch(range(len(prepared.train)))
    assert len(batch.skipped) == 3
    with torch.no_grad():
        features = model.eval().features(batch.clip_BCTHW[batch.weight_B > 0])
    expected = Standardize(32)
    expected.measure(pool_tokens(features, "mean"))
    torch.testing.assert_close(model.head.norm.mean_D, expected.mean_D)
    torch.testing.assert_close(model.head.norm.deviation_D, expected.deviation_D)


def test_a_run_without_a_readable_video_is_refused(damaged_run):
    prepared, run = damaged_run(slice(None))

    with pytest.raises(DataError, match=r"data.train=.*: expected readable videos .*standardize, got none"):
        calibrate_head(prepared, run)
