"""Combinations of components at a tiny size: each one trains, or is rejected before the start.

Components are found in their folders, so new ones are included.
"""

import atexit
import functools
import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch

from kinemae.data_tools.components import component_names
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from kinemae.pretrain.builders import check_compatibility
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.runtime.optimizer import parameter_groups
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.token_selection import TokenSelection
from tests.default_components import build_default, default_component
from tests.pretrain.target_models import save_teacher

FOLDERS = {
    "masking": "kinemae.pretrain.masking",
    "pruning": "kinemae.pretrain.pruning",
    "attention": "kinemae.pretrain.model.attention",
    "positions": "kinemae.pretrain.model.positions",
    "target": "kinemae.pretrain.targets",
    "noise": "kinemae.pretrain.noise",
}
CLIPS, FRAMES, SIDE = 2, 8, 24
STEPS = 3
MODEL = {
    "size": "tiny",
    "patch_size": 8,
    "width": 12,
    "heads": 2,
    "depth": 2,
    "decoder_width": 12,
    "decoder_heads": 2,
    "decoder_depth": 1,
}
EXTRAS = {"qk_norm": True, "layer_scale": 0.1, "registers": 1, "drop_path": 0.1}
"""Options of every second combination; with joint attention tokens are merged too."""

Combination = Mapping[str, str]
"""The name of a component for each axis; "cross" or "self" for the decoder."""


def axes() -> dict[str, list[str]]:
    """List the components of each axis."""
    return {axis: component_names(folder) for axis, folder in FOLDERS.items()} | {
        "decoder": ["cross", "self"]
    }


def all_combinations() -> Iterator[Combination]:
    """Yield each combination once."""
    choices = axes()
    return (dict(zip(choices, names, strict=True)) for names in itertools.product(*choices.values()))


def pairwise_covering(choices: Mapping[str, list[str]], seed: int) -> list[Combination]:
    """Select few combinations that cover every pair of components of two axes, greedily and by seed."""
    chance = random.Random(seed)
    missing = {
        frozenset(((one, a), (other, b)))
        for one, other in itertools.combinations(choices, 2)
        for a, b in itertools.product(choices[one], choices[other])
    }
    found = []
    while missing:
        seed_pair = dict(chance.choice(sorted(missing, key=sorted)))
        tries = [_filled(seed_pair, choices, missing, chance) for _ in range(10)]
        best = max(tries, key=lambda combination: len(missing & pairs_of(combination)))
        missing -= pairs_of(best)
        found.append({axis: best[axis] for axis in choices})
    return found


def pairs_of(combination: Combination) -> set[frozenset[tuple[str, str]]]:
    """Return each pair of components of a combination."""
    return {frozenset(pair) for pair in itertools.combinations(combination.items(), 2)}


def _filled(
    start: Combination,
    choices: Mapping[str, list[str]],
    missing: set[frozenset[tuple[str, str]]],
    chance: random.Random,
) -> dict[str, str]:
    """Complete a combination; the other axes, in random order, take the component that covers most pairs."""
    row = dict(start)
    for axis in chance.sample(sorted(choices.keys() - start.keys()), len(choices) - len(start)):
        gains = {
            name: sum(frozenset(((axis, name), chosen)) in missing for chosen in row.items())
            for name in chance.sample(choices[axis], len(choices[axis]))
        }
        row[axis] = max(gains, key=lambda name: gains[name])
    return row


class Prepared(NamedTuple):
    """Model and token selection of an accepted config."""

    model: MaskedAutoencoder
    split: TokenSelection


def prepare(combination: Combination) -> Prepared:
    """Build what `training.make_plan` builds, without the data.

    Raises:
        ValueError: the combination is rejected.
    """
    given = {"encoder": str(teacher())} if combination["target"] == "teacher" else {}
    components = {
        "masking": build_default(FOLDERS["masking"], combination["masking"], Masking),
        "pruning": build_default(FOLDERS["pruning"], combination["pruning"], Pruning),
        "noise": build_default(FOLDERS["noise"], combination["noise"], Noise),
        "target": build_default(FOLDERS["target"], combination["target"], Target, **given),
    }
    config = _model_config(combination, **components)
    patch = config.shape().encoder.patch
    grid = TokenGrid.of(FRAMES, SIDE, patch)
    components["masking"].counts(grid)
    check_compatibility(config, **components)
    torch.manual_seed(0)
    masking = components.pop("masking")
    model = build_autoencoder(config, grid, **components, clips=STEPS * CLIPS)
    split = TokenSelection(
        masking=masking,
        grid=grid,
        patch=patch,
        seed=0,
        pruning=components["pruning"],
        clips_per_step=CLIPS,
        predict_ratio=config.predict_ratio,
        predict=config.predict,
    )
    return Prepared(model, split)


@functools.cache
def teacher() -> Path:
    """Make a folder with an exported encoder for these clips, deleted when the process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    patch = ModelConfig(**MODEL).shape().encoder.patch
    save_teacher(folder, TokenGrid.of(FRAMES, SIDE, patch), patch)
    return folder


def _model_config(combination: Combination, *, noise: Noise, target: Target, **other: object) -> ModelConfig:
    attention = default_component(FOLDERS["attention"], combination["attention"])
    has_decoder = target.target_values(ModelConfig(**MODEL).shape().encoder) > 0
    is_odd = len("".join(combination.values())) % 2 == 1
    return ModelConfig(
        **MODEL,
        **(EXTRAS if is_odd else {}),
        **({"merge_per_block": 1} if is_odd and attention.name == "joint" else {}),
        **({"decoder_attention": attention} if combination["decoder"] == "self" else {}),
        decoder=combination["decoder"],
        attention=attention,
        positions=default_component(FOLDERS["positions"], combination["positions"]),
        noise_conditioning=noise.has_level and has_decoder,
        predict="running_cell" if is_odd else "random",
    )


def train(prepared: Prepared) -> None:
    """Train a few steps.

    Raises:
        AssertionError: a loss or gradient is not finite, or a parameter or group has no gradient.
    """
    model, split = prepared
    model.train()
    groups = parameter_groups(model, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    for step in range(STEPS):
        clips = range(step * CLIPS, (step + 1) * CLIPS)
        batch = make_batch(split, clips)
        losses = model(batch, ClipRandom(0, batch.clip_index_B))
        assert all(value_B.shape == (CLIPS,) for value_B in losses.values())
        assert all(value_B.isfinite().all() for value_B in losses.values()), losses
        optimizer.zero_grad()
        losses["loss"].mean().backward()
        _check_gradients(model, groups)
        optimizer.step()
        model.after_update((step + 1) / STEPS)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def _check_gradients(model: MaskedAutoencoder, groups: list[dict]) -> None:
    size_of: dict[torch.nn.Parameter, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            size_of[parameter] = float(parameter.grad.abs().sum())
            assert isfinite(size_of[parameter]), f"the gradient of {name} is not finite"
    for group in groups:
        assert any(size_of[parameter] for parameter in group["params"]), "a group's gradient is zero"
    for name, child in model.named_children():
        sizes = [size_of[parameter] for parameter in child.parameters() if parameter in size_of]
        assert not sizes or any(sizes), f"the gradient of {name} is zero"


def make_batch(split: TokenSelection, clips: range) -> ClipBatch:
    """Make clips of noise; one third of the width is static, one third moves in the second half only."""
    chance = torch.Generator().manual_seed(clips[0])
    size = (len(clips), 3, FRAMES, SIDE, SIDE)
    clip_BCTHW = torch.randint(0, 256, size, dtype=torch.uint8, generator=chance)
    still, late = slice(0, SIDE // 3), slice(SIDE // 3, 2 * SIDE // 3)
    clip_BCTHW[..., still] = clip_BCTHW[:, :, :1, :, still]
    clip_BCTHW[:, :, : FRAMES // 2, :, late] = clip_BCTHW[:, :, :1, :, late]
    rows = [split(luma_THW, clip) for luma_THW, clip in zip(to_luma(clip_BCTHW), clips, strict=True)]
    return ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.tensor(clips),
        label_B=torch.zeros(len(clips), dtype=torch.int64),
        weight_B=torch.ones(len(clips)),
        tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


def train_or_reject(combination: Combination) -> str | None:
    """Train a combination; return None, or the reason for which it is rejected."""
    try:
        prepared = prepare(combination)
    except ValueError as error:
        return str(error)
    train(prepared)
    return None
