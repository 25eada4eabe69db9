"""Recorded attention equals the fused one; rollout and merge groups equal plain references."""

import pytest
import torch

from kinemae.data_tools.components import Component
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.visualize.attention import rollout
from kinemae.pretrain.visualize.recording import record
from kinemae.pretrain.visualize.tokens import merged_groups

SMALL, LARGE = TokenGrid(4, 3, 5), TokenGrid(6, 8, 12)  # 576 tokens: chunks of queries, sparse backends
KINDS = {
    "joint": {},
    "divided": {},
    "windowed": {"window": [2, 2, 3]},
    "sparse": {"window": [1, 3, 3], "top_k": 2},
}


def encoder_of(kind="joint", grid=SMALL, **changes):
    torch.manual_seed(0)
    attention = Component(name=kind, args=KINDS[kind])
    shape = {"width": 24, "depth": 2, "heads": 2, "mlp_width": 48, "patch": (1, 2, 2), **changes}
    encoder = Encoder(EncoderShape(attention=attention, **shape), grid).eval().requires_grad_(False)
    for block in encoder.blocks:
        for _, attn, _ in block.branches():
            attn.qkv.weight.mul_(3)  # far from equal attention
    return encoder


def recorded(encoder, visible_BK=None):
    tokens = encoder.grid.tokens if visible_BK is None else visible_BK.shape[1]
    patches_BKP = torch.randn(1, tokens, encoder.shape.patch_values)
    passes = record(encoder, lambda: encoder(patches_BKP, visible_BK))
    return passes[0], encoder(patches_BKP, visible_BK)


def dense(attention):
    return torch.cat([weight_AQN for _, weight_AQN in attention.weights()], dim=1)


@pytest.mark.parametrize("positions", ["sine", "rotary"])
@pytest.mark.parametrize("layout", ["all", "large", "visible", "registers"])
@pytest.mark.parametrize("kind", KINDS)
def test_explicit_attention_times_the_values_is_the_fused_output(kind, layout, positions):
    encoder = encoder_of(
        kind,
        LARGE if layout == "large" else SMALL,
        positions=Component(name=positions),
        registers=2 if layout == "registers" else 0,
        qk_norm=layout == "visible",
    )
    visible_BK = torch.randperm(SMALL.tokens)[None, :31].sort().values if layout == "visible" else None
    of_pass, _ = recorded(encoder, visible_BK)
    assert len(of_pass.attentions) == 2 * len(encoder.patterns[0]) and len(of_pass.block_ND) == 2
    for attention in of_pass.attentions:
        weight_ANN = dense(attention)
        assert torch.allclose(weight_ANN.sum(dim=2), torch.ones(()), atol=1e-5)
        assert torch.allclose(weight_ANN @ attention.value_ANF, attention.output_ANF, atol=1e-5)


def test_weights_are_pulled_and_rolled_out_like_matrices():
    of_pass, _ = recorded(encoder_of("divided", registers=1))
    start_N = torch.rand(len(of_pass.index_N))
    product_NN = torch.eye(len(start_N))
    for attention in of_pass.attentions:
        pulled_AN = attention.pull(start_N.expand(2, -1))
        assert torch.allclose(pulled_AN, torch.einsum("n,anm->am", start_N, dense(attention)), atol=1e-5)
        product_NN = (dense(attention).mean(dim=0) + torch.eye(len(start_N))) / 2 @ product_NN
    assert torch.allclose(rollout(of_pass, start_N), start_N @ product_NN, atol=1e-5)


def test_recording_leaves_the_encoder_and_its_tokens_unchanged():
    encoder = encoder_of(registers=2)
    encoder.merge_tokens(5)
    hooks = [len(block._forward_hooks) for block in encoder.blocks]
    of_pass, merged_BND = recorded(encoder)
    assert encoder.merge_per_block == 5 and [len(block._forward_hooks) for block in encoder.blocks] == hooks
    encoder.merge_tokens(0)
    of_pass, tokens_BND = recorded(encoder)
    last_ND = of_pass.on_grid(encoder.norm(of_pass.block_ND[-1]))
    assert torch.equal(last_ND, tokens_BND[0]) and not torch.equal(tokens_BND, merged_BND)


def test_tokens_that_were_not_encoded_are_not_on_the_grid():
    visible_BK = torch.tensor([[0, 7, 9, 50]])
    of_pass, _ = recorded(encoder_of(registers=2), visible_BK)
    grid_NX = of_pass.on_grid(of_pass.block_ND[-1])
    assert torch.equal(grid_NX.isnan().any(dim=1).logical_not().nonzero()[:, 0], visible_BK[0])


def test_merged_groups_are_the_tokens_with_equal_vectors():
    encoder = encoder_of(registers=2)
    encoder.merge_tokens(20)
    of_pass, tokens_BND = recorded(encoder)
    after = [group_N[of_pass.is_token_N] for group_N in merged_groups(encoder, of_pass, 20)]
    assert [len(group_N.unique()) for group_N in after] == [SMALL.tokens - 20, SMALL.tokens - 40]
    is_same_NN = after[-1][:, None] == after[-1][None]
    assert torch.equal(is_same_NN, (tokens_BND[0][:, None] == tokens_BND[0][None]).all(dim=2))
