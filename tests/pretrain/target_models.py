"""Small models and clips on which targets are tested."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.exported_model import EncoderDescription, save_encoder
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import Patch, TokenGrid, gather_tokens, patchify
from kinemae.pretrain.noise.gaussian import GaussianNoise
from kinemae.pretrain.targets.base import Target, TargetInputs
from tests.default_components import build_default

FOLDER = "kinemae.pretrain.targets"
PATCH = (2, 4, 4)
GRID = TokenGrid(2, 2, 2)
TARGET = torch.tensor([[3, 0, 7], [5, 6, 1]])
VISIBLE = torch.tensor([[1, 2, 4], [0, 2, 4]])


def random_clip(grid: TokenGrid = GRID, patch: Patch = PATCH, *, low: int = 0, high: int = 256) -> Tensor:
    """Two clips of independent pixels from `low` to below `high`."""
    size = (2, 3, grid.t * patch[0], grid.h * patch[1], grid.w * patch[2])
    return torch.randint(low, high, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def target_inputs(clip_BCTHW: Tensor, **changes: Any) -> TargetInputs:
    """Target inputs for clips of the usual grid."""
    usual = TargetInputs(
        clip_BCTHW=clip_BCTHW,
        target_BM=TARGET,
        visible_BK=VISIBLE,
        added_BKP=None,
        patch=PATCH,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return replace(usual, **changes)


def wanted_pixels(clip_BCTHW: Tensor) -> Tensor:
    return gather_tokens(patchify(clip_BCTHW, PATCH), TARGET)


def batch_of(clip_BCTHW: Tensor, grid: TokenGrid = GRID) -> ClipBatch:
    """A batch in which about a third of the tokens is visible."""
    chance = torch.Generator().manual_seed(1)
    order_BN = torch.rand(len(clip_BCTHW), grid.tokens, generator=chance).argsort(dim=1)
    count = max(1, grid.tokens // 3)
    return ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.arange(len(clip_BCTHW)),
        label_B=torch.zeros(len(clip_BCTHW), dtype=torch.int64),
        weight_B=torch.ones(len(clip_BCTHW)),
        tokens={"visible": order_BN[:, :count], "target": order_BN[:, count:]},
    )


def draws(seed: int = 0) -> ClipRandom:
    return ClipRandom(seed, torch.arange(2))


def small_config(patch: Patch = PATCH, **changes: Any) -> ModelConfig:
    sizes = {"width": 24, "depth": 2, "decoder_width": 24, "decoder_depth": 1}
    return ModelConfig(size="tiny", patch_frames=patch[0], patch_size=patch[1], **sizes | changes)


def save_teacher(
    folder: Path, grid: TokenGrid = GRID, patch: Patch = PATCH, *, standardize: bool = False, **changes: Any
) -> tuple[Encoder, EncoderDescription]:
    """Export an encoder that is wider than the models here, with other weights."""
    torch.manual_seed(7)
    shape = replace(small_config(patch, width=36).shape().encoder, standardize=standardize)
    encoder = Encoder(shape, grid).eval()
    description = EncoderDescription(
        shape=encoder.shape,
        grid=grid,
        reference=grid,
        frames=grid.t * patch[0],
        stride=1,
        size=grid.h * patch[1],
        **changes,
    )
    save_encoder(folder, encoder, description)
    return encoder, description


def build_target(name: str, teacher: Path) -> Target:
    """A target by name, with its required arguments; `teacher` is the folder of `save_teacher`."""
    needed: dict[str, dict[str, Any]] = {
        "teacher": {"encoder": str(teacher)},
        "weighted": {"parts": {"motion": {}, "noise": {"weight": 0.5}, "features": {}, "pixels": {}}},
    }
    return build_default(FOLDER, name, Target, **needed.get(name, {}))


def build_model(
    target: Target, grid: TokenGrid = GRID, patch: Patch = PATCH, **changes: Any
) -> MaskedAutoencoder:
    """A model for a target, with noise, which some targets need."""
    torch.manual_seed(0)
    return build_autoencoder(
        small_config(patch, **changes), grid, target=target, noise=GaussianNoise(), clips=100
    )
