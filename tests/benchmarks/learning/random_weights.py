"""Encoders with random weights: the row of untrained encoders, and teachers whose FLOPs are counted."""

from pathlib import Path

import torch

from kinemae.pretrain.builders import build_components, build_model
from kinemae.pretrain.checkpoint_encoder import describe_run_encoder
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.exported_model import save_encoder
from kinemae.pretrain.model.tokens import TokenGrid


def draw_encoder(config: PretrainConfig, folder: Path) -> None:
    """Save an encoder with the initial weights of a run with this config and seed."""
    grid = TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    torch.manual_seed(config.seed)
    encoder = build_model(config, grid, build_components(config, grid)).encoder
    save_encoder(folder, encoder, describe_run_encoder(config, encoder, {"steps": 0}))
