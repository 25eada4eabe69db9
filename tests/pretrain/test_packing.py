"""Packing of clips of different lengths into one row, and unpacking."""

import pytest
import torch

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.packing import Packing, kept_count, top_tokens
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid, gather_tokens, patchify, take_patches

GRID = TokenGrid(2, 3, 3)
IS_KEPT_BN = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])
SCORE_BN = torch.tensor([[0.0, 0, 0, 0], [1, 3, 3, 2], [0, 0, 0, 0]])


def test_a_packed_row_holds_each_clips_kept_tokens_in_order_and_at_least_one():
    packing = Packing.of(IS_KEPT_BN, SCORE_BN)

    assert packing.lengths == (3, 1, 1)
    assert packing.clip_1L.tolist() == [[0, 0, 0, 1, 2]]
    assert packing.index_1L.tolist() == [[0, 2, 3, 1, 1]]


def test_packing_and_unpacking_pads_shorter_clips_with_zeros_of_weight_0():
    packing, x_BND = Packing.of(IS_KEPT_BN, SCORE_BN), torch.randn(3, 4, 5)

    found_BMD, weight_BM = packing.unpack(packing.pack(x_BND))

    assert weight_BM.tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert torch.equal(found_BMD[0], x_BND[0, [0, 2, 3]])
    assert torch.equal(found_BMD[1:, 0], x_BND[[1, 2], [1, 1]])
    assert not found_BMD[1:, 1:].any()


def test_unpacking_passes_gradients_to_every_token():
    packing = Packing.of(IS_KEPT_BN, SCORE_BN)
    x_1LD = torch.randn(1, 5, 2, requires_grad=True)

    packing.unpack(x_1LD)[0].sum().backward()

    assert torch.equal(x_1LD.grad, torch.ones(1, 5, 2))


def test_the_patches_of_packed_tokens_are_those_of_their_clips():
    clip_BCTHW = torch.randint(256, (3, 3, 4, 12, 12), dtype=torch.uint8)
    is_kept_BN = torch.rand(3, GRID.tokens) < 0.4
    packing = Packing.of(is_kept_BN, torch.zeros(3, GRID.tokens))

    patches_1LP = take_patches(clip_BCTHW, packing.index_1L, (2, 4, 4), clip_BK=packing.clip_1L)

    assert torch.equal(patches_1LP, packing.pack(patchify(clip_BCTHW, (2, 4, 4))))


def test_the_top_tokens_are_in_order_and_ties_take_the_first():
    score_BN = torch.tensor([[1.0, 5, 2, 5, 0], [0, 0, 0, 0, 0], [0, 1, torch.inf, 1, 1]])

    assert top_tokens(score_BN, 3).tolist() == [[1, 2, 3], [0, 1, 2], [1, 2, 3]]


@pytest.mark.parametrize(("count", "share", "expected"), [(160, 0.5, 80), (3, 0.1, 1), (5, 1.0, 5)])
def test_a_fraction_of_tokens_is_rounded_and_at_least_one(count, share, expected):
    assert kept_count(count, share) == expected


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("positions", ["sine", "rotary"])
def test_packed_clips_are_encoded_like_single_ones(registers, positions):
    torch.manual_seed(0)
    shape = EncoderShape(
        width=24,
        depth=2,
        heads=2,
        mlp_width=48,
        patch=(2, 4, 4),
        registers=registers,
        positions=Component(name=positions),
    )
    encoder = Encoder(shape, GRID, drop_path=0.5).train()
    patches_BNP = torch.randn(3, GRID.tokens, shape.patch_values)
    packing = Packing.of(torch.rand(3, GRID.tokens) < 0.5, torch.zeros(3, GRID.tokens))
    x_1LD = encoder.embed(packing.pack(patches_BNP), packing.index_1L)
    draws = ClipRandom(0, torch.arange(3))

    packed_1LD = encoder.encode(x_1LD, packing.index_1L, draws, lengths=packing.lengths)

    for clip, together_LD in enumerate(packed_1LD[0].split(packing.lengths)):
        index_1K = packing.index_1L[packing.clip_1L == clip][None]
        patches_1KP = gather_tokens(patches_BNP[clip : clip + 1], index_1K)
        alone_1KD = encoder(patches_1KP, index_1K, ClipRandom(0, torch.tensor([clip])))
        assert torch.allclose(together_LD, alone_1KD[0], atol=1e-5)
