"""A small pretraining run: H.264 shards, DeepSpeed on the CPU, a model of width 24."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kinemae.data_tools.config import load_config
from kinemae.pretrain.config import PretrainConfig

SMALL_RUN = """
seed: 3
steps: 6
save_every_steps: 2
data: {num_workers: 0}
clip: {frames: 4, stride: 2, size: 32}
batch: {global_clips: 4}
model: {size: tiny, patch_size: 8, width: 24, depth: 2, decoder_width: 24, decoder_depth: 1}
masking: {name: uniform, args: {ratio: 0.5}}
noise: {name: gaussian, args: {std: 0.3}}
optim: {lr: 1e-3, warmup_fraction: 0.0}
engine: {device: cpu, cpu_threads: 1}
log: {every_steps: 1, samples: true}
pictures: {every_steps: 0}
"""


@pytest.fixture
def small_run(tmp_path: Path, synth_shards: Path) -> Path:
    """A config file for a run of 6 steps on the synthetic shards, in `tmp_path / "run"`."""
    path = tmp_path / "small.yaml"
    places = f"run_dir: {tmp_path / 'run'}\n"
    text = SMALL_RUN.replace("data: {", f"data: {{shards: {synth_shards / 'unlabelled'}, ")
    path.write_text(places + text)
    return path


@pytest.fixture
def small_config(small_run: Path) -> Callable[..., PretrainConfig]:
    """Build the config of the small run with overrides."""
    return lambda *overrides: load_config(PretrainConfig, small_run, list(overrides))
