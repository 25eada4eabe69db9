"""Validation of the config, and the number of steps."""

import pytest

from kinemae.data_tools.config import load_config
from kinemae.finetune.config import FinetuneConfig, total_steps

NEEDED = [
    "run_dir=run",
    "epochs=2",
    "data.train=train",
    "data.validation=validation",
    "batch.global_clips=8",
    "optim.lr=1e-3",
]


def load(*overrides):
    return load_config(FinetuneConfig, None, [*NEEDED, *overrides])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=0", "epochs must be above 0, got 0"),
        ("run_dir=''", "run_dir must name a folder"),
        ("encoder=''", "encoder must name a folder, or be null"),
        ("drop_path=1", r"drop_path must lie in \[0, 1\), got 1"),
        ("save_every_steps=0", "save_every_steps must be at least 1"),
        ("keep_checkpoints=0", "keep_checkpoints must be at least 1"),
        ("keep_every_steps=750", r"keep_every_steps must be 0 \(none\) or a multiple of .*=500"),
        ("keep_every_steps=-500", r"keep_every_steps must be 0 \(none\) or a multiple of .*=500"),
        ("data.num_workers=-2", "data.num_workers must be 0 or more, or -1 .automatic., got -2"),
        ("data.views_per_video=0", "data.views_per_video must be at least 1"),
        ("data.max_bad_fraction=2", r"data.max_bad_fraction must lie between 0 and 1, got 2"),
        ("merge.per_block=-1", "merge.per_block must be 0 or more, got -1"),
        ("optim.layer_decay=0", r"optim.layer_decay must be null or lie in \(0, 1\], got 0"),
        ("optim.lr=0", "optim.lr must be above 0"),
        ("evaluate.temporal_clips=0", "evaluate.temporal_clips must be at least 1"),
        ("evaluate.spatial_crops=2", "evaluate.spatial_crops must be 1 or 3, got 2"),
        ("clip.short_video=cut", "clip.short_video"),
        ("frezee=true", "frezee"),
        ("adapt.method=perhaps", "adapt.method"),
    ],
)
def test_an_invalid_value_is_rejected_with_its_key(override, message):
    with pytest.raises(ValueError, match=message):
        load(override)


def test_muon_is_refused_for_adapters():
    with pytest.raises(
        ValueError, match=r"optim.optimizer must be adamw with adapt.method=lora: .*, got 'muon'"
    ):
        load("optim.optimizer=muon", "adapt.method=lora")


@pytest.mark.parametrize(
    ("epochs", "views", "samples", "steps"),
    [(2, 1, 30, 8), (2, 2, 30, 15), (0.1, 1, 240, 3), (0.1, 1, 241, 4), (0.001, 1, 8, 1)],
)
def test_steps_are_clips_per_batch_rounded_up(epochs, views, samples, steps):
    assert total_steps(load(f"epochs={epochs}", f"data.views_per_video={views}"), samples) == steps


def test_the_betas_have_fine_tunings_default():
    assert load().optim.betas == [0.9, 0.999]
