"""Compiled blocks: one static graph for each shape, and no recompilation between steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.masking.jitter import JitterMasking
from kinemae.pretrain.masking.uniform import UniformMasking
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.blocks import set_up_blocks
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.base import Target
from kinemae.pretrain.targets.features import FeatureTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.token_selection import TokenSelection

STEPS, CLIPS, FRAMES, SIZE = 20, 2, 4, 32
WINDOW = {"window": [2, 2, 2]}


class Graphs:
    """A backend of torch.compile that runs graphs eagerly and counts them, and the dynamic ones."""

    def __init__(self) -> None:
        self.count = self.dynamic = 0

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        self.count += 1
        self.dynamic += not all(isinstance(given, Tensor) for given in inputs)  # otherwise a size is symbolic
        return graph.forward


def graphs_by_step(target: Target, masking: Masking, **model: Any) -> tuple[list[int], Graphs]:
    """Number of compiled graphs after each step of a small run."""
    torch._dynamo.reset()
    graphs = Graphs()
    config = ModelConfig(
        size="tiny", patch_size=8, width=24, depth=2, decoder_width=24, decoder_depth=1, **model
    )
    patch = config.shape().encoder.patch
    grid = TokenGrid.of(FRAMES, SIZE, patch)
    autoencoder = build_autoencoder(config, grid, target=target, noise=NoNoise(), clips=CLIPS * STEPS)
    set_up_blocks(autoencoder, recompute=False, compiled=True, backend=graphs)
    split = TokenSelection(masking=masking, grid=grid, patch=patch, seed=0, clips_per_step=CLIPS)
    counts = []
    for step in range(STEPS):
        places = torch.arange(CLIPS) + step * CLIPS
        rows = [split(None, int(place)) for place in places]
        batch = ClipBatch(
            pixels=torch.randint(0, 256, (CLIPS, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8),
            clip_index_B=places,
            label_B=torch.zeros(CLIPS, dtype=torch.int64),
            weight_B=torch.ones(CLIPS),
            tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
        )
        autoencoder(batch, ClipRandom(0, places))["loss"].mean().backward()
        counts.append(graphs.count)
    return counts, graphs


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"decoder": "cross"},
        {"decoder": "self", "positions": Component(name="rotary"), "drop_path": 0.2},
        {"decoder": "cross", "attention": Component(name="divided")},
        {"decoder": "self", "attention": Component(name="windowed", args=WINDOW)},
        {"decoder": "cross", "attention": Component(name="sparse", args={"window": [1, 3, 3]})},
    ],
    ids=["joint", "rotary", "divided", "windowed", "sparse"],
)
def test_no_kind_of_attention_is_compiled_again_from_step_to_step(model: dict[str, Any]) -> None:
    counts, graphs = graphs_by_step(PixelTarget(), UniformMasking(ratio=0.5), **model)
    assert counts[0] > 0 and counts == [counts[0]] * STEPS
    assert not graphs.dynamic


@pytest.mark.slow
def test_each_ratio_of_a_jittered_mask_is_compiled_once() -> None:
    masking = JitterMasking(of="uniform", min_ratio=0.5, max_ratio=0.75)
    counts, graphs = graphs_by_step(PixelTarget(), masking, decoder="self")
    assert counts[-1] == counts[STEPS // 2] and not graphs.dynamic


@pytest.mark.slow
def test_a_teacher_of_whole_clips_is_compiled_once() -> None:
    counts, graphs = graphs_by_step(FeatureTarget(), UniformMasking(ratio=0.5))
    assert counts == [counts[0]] * STEPS and not graphs.dynamic
