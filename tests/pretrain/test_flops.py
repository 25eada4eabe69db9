"""Counted FLOPs of a clip agree with the formulas of the papers."""

import pytest
import torch

from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.flops import count_flops
from kinemae.pretrain.model.sizes import SIZES, ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.targets.base import Target


def model_of(config: ModelConfig, grid: TokenGrid, target: str = "pixels") -> MaskedAutoencoder:
    with torch.device("meta"):
        return build_autoencoder(
            config,
            grid,
            target=build_component("kinemae.pretrain.targets", Component(name=target), Target),
            noise=NoNoise(),
        )


def clips(grid: TokenGrid, *, visible: int, wanted: int, patch: int = 16, count: int = 1) -> ClipBatch:
    order_BN = torch.randperm(grid.tokens, generator=torch.Generator().manual_seed(0)).expand(count, -1)
    size = (count, 3, 2 * grid.t, patch * grid.h, patch * grid.w)
    return ClipBatch(
        pixels=torch.zeros(size, dtype=torch.uint8),
        clip_index_B=torch.arange(count),
        label_B=torch.zeros(count, dtype=torch.int64),
        weight_B=torch.ones(count),
        tokens={
            "visible": order_BN[:, :visible].sort(dim=1).values,
            "target": order_BN[:, visible : visible + wanted],
        },
    )


def blocks(depth: int, width: int, tokens: int) -> int:
    """FLOPs of plain blocks with an MLP four times as wide: 24 N D^2 + 4 N^2 D each."""
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_flops_of_videomae_agree_with_the_formulas(size: str) -> None:
    grid = TokenGrid(8, 14, 14)
    encoder, decoder = SIZES[size].encoder, SIZES[size].decoder
    flops = count_flops(
        model_of(ModelConfig(size=size, decoder="self"), grid), clips(grid, visible=160, wanted=1408)
    )
    embedding = 2 * 160 * 1536 * encoder.width
    assert flops.encoder == pytest.approx(embedding + blocks(encoder.depth, encoder.width, 160), rel=0.001)
    around = 2 * 160 * encoder.width * decoder.width + 2 * 1408 * decoder.width * 1536
    assert flops.decoder == pytest.approx(around + blocks(decoder.depth, decoder.width, 1568), rel=0.001)
    assert flops.target == 0
    assert flops.training == 3 * (flops.encoder + flops.decoder)


def test_the_flops_of_base_agree_with_the_literature() -> None:
    """The paper has 28.1 G for the encoder's blocks and 39.1 G for the decoder, without the embedding."""
    grid = TokenGrid(8, 14, 14)
    flops = count_flops(
        model_of(ModelConfig(size="base", decoder="self"), grid), clips(grid, visible=160, wanted=1408)
    )
    assert flops.encoder / 1e9 == pytest.approx(28.12 + 0.38, rel=0.02)
    assert flops.decoder / 1e9 == pytest.approx(39.06, rel=0.02)


def test_the_flops_of_the_cross_decoder_agree_with_the_formulas() -> None:
    grid, wanted, memory = TokenGrid(8, 14, 14), 704, 160
    flops = count_flops(model_of(ModelConfig(size="base"), grid), clips(grid, visible=memory, wanted=wanted))
    width = SIZES["base"].decoder.width
    block = (4 + 16) * wanted * width**2 + 4 * memory * width**2 + 4 * wanted * memory * width
    around = 2 * memory * 768 * width + 2 * wanted * width * 1536
    assert flops.decoder == pytest.approx(4 * block + around, rel=0.001)


def tiny(**changes: object) -> ModelConfig:
    fixed = {"width": 24, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 1, "patch_size": 8}
    return ModelConfig(size="tiny", **{**fixed, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", component_names("kinemae.pretrain.model.attention"))
def test_every_attention_kind_is_counted_and_costs_at_most_all_pairs_per_attention(
    kind: str,
) -> None:
    """Kinds that sort tokens by value need a real forward pass."""
    grid = TokenGrid(4, 6, 6)
    batch = clips(grid, visible=36, wanted=50, patch=8)
    torch.manual_seed(0)
    target = build_component("kinemae.pretrain.targets", Component(name="pixels"), Target)
    model, joint = (
        build_autoencoder(tiny(attention=Component(name=name)), grid, target=target, noise=NoNoise())
        for name in (kind, "joint")
    )
    flops, all_pairs = count_flops(model, batch), count_flops(joint, batch)
    assert flops.decoder == all_pairs.decoder
    passes = max(len(patterns) for patterns in model.encoder.patterns)
    assert 0.5 * all_pairs.encoder < flops.encoder <= passes * all_pairs.encoder


def test_the_count_is_per_clip_and_does_not_modify_the_model() -> None:
    grid = TokenGrid(2, 4, 4)
    target = build_component("kinemae.pretrain.targets", Component(name="pixels"), Target)
    model = build_autoencoder(tiny(), grid, target=target, noise=NoNoise())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    one, three = (
        count_flops(model, clips(grid, visible=8, wanted=16, patch=8, count=count)) for count in (1, 3)
    )
    assert one == three
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training and all(weight.requires_grad for weight in model.encoder.parameters())


def test_a_teacher_is_counted_separately() -> None:
    """A teacher encodes all tokens and has no backward pass."""
    grid = TokenGrid(2, 4, 4)
    flops = count_flops(model_of(tiny(), grid, "features"), clips(grid, visible=8, wanted=16, patch=8))
    embedding = 2 * grid.tokens * (2 * 8 * 8 * 3) * 24
    assert flops.target == embedding + blocks(2, 24, grid.tokens)
    assert flops.training == 3 * (flops.encoder + flops.decoder) + flops.target


def test_learned_pruning_reduces_the_flops_of_the_encoder() -> None:
    grid = TokenGrid(2, 4, 4)
    target = build_component("kinemae.pretrain.targets", Component(name="pixels"), Target)
    pruning = build_component(
        "kinemae.pretrain.pruning", Component(name="learned", args={"keep": 0.5}), Pruning
    )
    model = build_autoencoder(tiny(), grid, target=target, noise=NoNoise(), pruning=pruning)
    flops = count_flops(model, clips(grid, visible=8, wanted=16, patch=8))
    embedding, scoring = 2 * 8 * (2 * 8 * 8 * 3) * 24, 8 * 2 * (24 * 8 + 8)
    assert flops.encoder == embedding + scoring + blocks(2, 24, 4)
