"""Compiled blocks and targets: one static graph for each shape, and no recompilation between steps.

On CUDA the attention function is part of the graph, and masked tokens have other backends than on the CPU.
Some tests compile the CUDA backends of short rows on the CPU.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.masking.jitter import JitterMasking
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.masking.uniform import UniformMasking
from kinemae.pretrain.model import blocks
from kinemae.pretrain.model.attention.base import (
    MIN_BLOCK_SPARSE,
    AttentionPattern,
    GroupPattern,
    Tokens,
    build_attention,
)
from kinemae.pretrain.model.attention.divided import SamePlace, SameSlice
from kinemae.pretrain.model.attention.windowed import SameWindow
from kinemae.pretrain.model.attention_backends import AttentionFn, dense
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.blocks import SelfAttention, set_up_blocks
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.base import Prediction, Target
from kinemae.pretrain.targets.features import FeatureTarget
from kinemae.pretrain.targets.motion import MotionTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.targets.weighted import WeightedTarget
from kinemae.pretrain.token_selection import TokenSelection
from tests.pretrain.target_models import TARGET, build_model, random_clip, small_config, target_inputs
from tests.seeds import IS_NIGHTLY

STEPS, CLIPS, FRAMES, SIZE = 200 if IS_NIGHTLY else 40, 2, 4, 32
WINDOW = {"window": [2, 2, 2]}


class Graphs:
    """A backend of torch.compile that runs graphs eagerly and counts them, and the dynamic ones."""

    def __init__(self) -> None:
        self.count = self.dynamic = 0

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        self.count += 1
        self.dynamic += not all(isinstance(given, Tensor) for given in inputs)  # otherwise a size is symbolic
        return graph.forward


def graphs_by_step(
    target: Target, masking: Masking, *, as_on_cuda: bool = False, **model: Any
) -> tuple[list[int], Graphs]:
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
    for child in autoencoder.modules():
        if as_on_cuda and isinstance(child, SelfAttention):
            child.call_attention = blocks._call_attention
    split = TokenSelection(
        masking=masking,
        grid=grid,
        patch=patch,
        seed=0,
        clips_per_step=CLIPS,
        predict_ratio=config.predict_ratio,
        predict=config.predict,
    )
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


def attention_fn_of_cuda(
    pattern: GroupPattern, positions: TokenPositions, device: torch.device
) -> AttentionFn:
    """The backend of masked tokens on CUDA; whole clips have one backend on every device."""
    if positions.index_BN is None:
        return GroupPattern.attention_fn(pattern, positions, device)
    return AttentionPattern.attention_fn(pattern, positions, device)


RECIPES = {
    "kinemae": (UniformMasking(ratio=0.9), {"decoder": "cross", "predict_ratio": 0.5}),
    "videomae": (TubeMasking(ratio=0.9), {"decoder": "self", "positions": Component(name="flat_sine")}),
    "videomae_v2": (
        TubeMasking(ratio=0.9),
        {"decoder": "self", "predict": "running_cell", "predict_ratio": 0.5},
    ),
    "mae_st": (
        UniformMasking(ratio=0.9),
        {"decoder": "self", "positions": Component(name="learned"), "registers": 1},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("masking, model", RECIPES.values(), ids=RECIPES)
def test_no_recipe_is_compiled_again_from_step_to_step(masking: Masking, model: dict[str, Any]) -> None:
    counts, graphs = graphs_by_step(PixelTarget(), masking, as_on_cuda=True, **model)
    assert counts == [3] * STEPS  # of the blocks of encoder and decoder, and of the target
    assert not graphs.dynamic


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        PixelTarget(normalize="patch", frames="one"),
        PixelTarget(normalize="none", motion_weight=1.0),
        MotionTarget(normalize="clip"),
        WeightedTarget(parts=["pixels", "motion"]),
    ],
    ids=["patch", "none", "motion", "weighted"],
)
def test_a_target_is_one_graph_with_the_losses_and_gradients_of_the_formula(target: Target) -> None:
    parts = 2 if isinstance(target, WeightedTarget) else 1
    counts, graphs = graphs_by_step(target, UniformMasking(ratio=0.5), decoder="cross", predict_ratio=0.5)
    assert counts[0] >= parts and counts == [counts[0]] * STEPS and not graphs.dynamic
    torch._dynamo.reset()
    model = build_model(target)
    inputs = target_inputs(random_clip())
    values = target.target_values(small_config().shape().encoder)
    results = []
    for compiled in (False, True):
        set_up_blocks(target, recompute=False, compiled=compiled)
        guess_BMP = torch.linspace(-1, 1, TARGET.numel() * values).view(*TARGET.shape, values)
        guess_BMP.requires_grad_()
        losses = model.target(Prediction(decoded_BMP=guess_BMP), inputs)
        losses["loss"].sum().backward()
        results.append((losses, guess_BMP.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.slow
@pytest.mark.parametrize("as_on_cuda", [False, True], ids=["cpu", "cuda"])
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
def test_no_kind_of_attention_is_compiled_again_from_step_to_step(
    model: dict[str, Any], as_on_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if as_on_cuda:
        for kind in (SamePlace, SameSlice, SameWindow):
            monkeypatch.setattr(kind, "attention_fn", attention_fn_of_cuda)
    counts, graphs = graphs_by_step(PixelTarget(), UniformMasking(ratio=0.5), as_on_cuda=as_on_cuda, **model)
    assert counts[0] > 0 and counts == [counts[0]] * STEPS
    assert not graphs.dynamic


def test_blocks_have_one_graph_whatever_the_dtype_of_their_inputs_is() -> None:
    """The embedding is float32 or bfloat16; the residual stream has one dtype."""
    torch._dynamo.reset()
    graphs, block = Graphs(), blocks.CrossBlock(8, 2, 8)
    set_up_blocks(block, recompute=False, compiled=True, residual_dtype=torch.bfloat16, backend=graphs)
    x_BMD = torch.randn(2, 3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found_BMD = blocks.run_block(block, blocks.run_block(block, x_BMD, x_BMD), x_BMD)
    assert graphs.count == 1 and found_BMD.dtype == torch.bfloat16
    with blocks.as_in_evaluation(block):
        assert blocks.run_block(block, x_BMD, x_BMD).dtype == torch.float32


def test_uncompiled_blocks_make_no_graphs_and_are_compiled_again_afterwards() -> None:
    torch._dynamo.reset()
    graphs, block = Graphs(), blocks.CrossBlock(8, 2, 8)
    set_up_blocks(block, recompute=False, compiled=True, backend=graphs)
    x_BMD = torch.randn(2, 3, 8)
    with blocks.as_in_evaluation(block):
        found_BMD = block(x_BMD, x_BMD)
    assert graphs.count == 0
    assert torch.equal(block(x_BMD, x_BMD), found_BMD)
    assert graphs.count == 1


@pytest.mark.slow
def test_each_ratio_of_a_jittered_mask_is_compiled_once() -> None:
    masking = JitterMasking(of="uniform", min_ratio=0.5, max_ratio=0.75)
    counts, graphs = graphs_by_step(PixelTarget(), masking, decoder="self")
    assert counts[-1] == counts[STEPS // 2] and not graphs.dynamic


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joint", "divided"])
def test_a_teacher_of_whole_clips_is_compiled_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for pattern in (SamePlace, SameSlice):
        monkeypatch.setattr(pattern, "attention_fn", attention_fn_of_cuda)
    attention = Component(name=kind)
    counts, graphs = graphs_by_step(
        FeatureTarget(), UniformMasking(ratio=0.5), as_on_cuda=True, attention=attention
    )
    assert counts == [counts[0]] * STEPS and not graphs.dynamic


@pytest.mark.slow
@torch.no_grad()  # FlexAttention has no gradients on the CPU
def test_block_sparse_attention_is_compiled_once_with_its_block() -> None:
    """Rows of at least `MIN_BLOCK_SPARSE` tokens have FlexAttention on CUDA, with a new mask at each step."""
    torch._dynamo.reset()
    graphs, grid = Graphs(), TokenGrid(4, 12, 14)
    (pattern,) = build_attention(Component(name="sparse", args={"window": [1, 3, 3]})).patterns(0)
    block = blocks.Block(32, 2, 32)
    compiled = copy.deepcopy(block)
    set_up_blocks(compiled, recompute=False, compiled=True, backend=graphs)
    compiled.attn.call_attention = blocks._call_attention
    counts = []
    for step in range(3):
        chance = torch.Generator().manual_seed(step)
        index_BN = torch.rand((2, grid.tokens), generator=chance).argsort(dim=1)[:, :MIN_BLOCK_SPARSE]
        tokens = Tokens.at(TokenPositions(grid=grid, index_BN=index_BN), torch.device("cpu"))
        x_BND = torch.randn((2, MIN_BLOCK_SPARSE, 32), generator=chance)
        found_BND = compiled(x_BND, [pattern.block_sparse(tokens)])
        torch.testing.assert_close(found_BND, block(x_BND, [dense(pattern.allowed(tokens))]))
        counts.append(graphs.count)
    assert counts == [counts[0]] * 3 and not graphs.dynamic
