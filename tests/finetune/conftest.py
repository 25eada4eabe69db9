"""Fixtures of the tests of fine-tuning runs."""

import pytest


@pytest.fixture(scope="module")
def common(synth_shards, repo):
    """Arguments of every run: the demo config on small shards with few steps."""
    return [
        repo / "configs/finetune/demo.yaml",
        f"data.train={synth_shards / 'train'}",
        f"data.validation={synth_shards / 'validation'}",
        "data.num_workers=0",
        "batch.global_clips=8",
        "epochs=0.5",
        "engine.device=cpu",
        "engine.cpu_threads=1",
        "log.every_steps=1",
    ]
