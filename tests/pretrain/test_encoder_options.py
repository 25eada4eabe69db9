"""The encoder and the self decoder with every attention kind and with all options."""

from dataclasses import replace

import pytest
import torch

from kinemae.data_tools.components import Component, component_names
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.attention.base import Tokens
from kinemae.pretrain.model.decoder import SelfDecoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import DecoderShape, EncoderShape
from kinemae.pretrain.model.token_positions import REGISTER, TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.optimizer import parameter_groups

PLAIN = EncoderShape(width=32, depth=2, heads=2, mlp_width=64, patch=(1, 2, 2))
FULL = replace(PLAIN, qk_norm=True, layer_scale=0.1, registers=2, run_lengths=3)
RMS = replace(FULL, norm="rms", positions=Component(name="learned_joint"))
VJEPA = replace(PLAIN, positions=Component(name="vjepa"))
SHAPES = pytest.mark.parametrize("shape", [PLAIN, FULL, RMS, VJEPA], ids=["plain", "full", "rms", "vjepa"])
GRID = TokenGrid(3, 3, 4)
VISIBLE = torch.tensor([[1, 5, 9, 13, 35], [0, 2, 12, 24, 11]])
KINDS = component_names("kinemae.pretrain.model.attention")
kinds = pytest.mark.parametrize("kind", KINDS)


def build(shape=PLAIN, *, kind="joint", **options):
    torch.manual_seed(0)
    encoder = Encoder(replace(shape, attention=Component(name=kind)), GRID, **options)
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)  # zeros and ones would hide mistakes
    return encoder


def random_patches(clips=2, tokens=5):
    return torch.randn(clips, tokens, PLAIN.patch_values, generator=torch.Generator().manual_seed(1))


def slow_plain(encoder, patches_BKP, visible_BK, run_length_BK):
    registers = encoder.reg_token.expand(len(patches_BKP), -1, -1)
    index_BN = torch.cat([torch.full(registers.shape[:2], REGISTER), visible_BK], dim=1)
    positions = TokenPositions(grid=GRID, index_BN=index_BN)
    x = encoder.patch_embed(patches_BKP) + encoder.pos_embed(visible_BK)
    x = torch.cat([registers, x + encoder.run_length_embed[run_length_BK - 1]], dim=1)
    for block, patterns in zip(encoder.blocks, encoder.patterns, strict=True):
        for (norm, attn, scale), pattern in zip(block.branches(), patterns, strict=True):
            allowed_BNN = pattern.allowed(Tokens.at(positions, torch.device("cpu")))
            x = x + scale.gamma * plain_attention(attn, norm(x), allowed_BNN)
        x = x + block.ls2.gamma * block.mlp(block.norm2(x))
    return encoder.norm(x)[:, 2:]


def plain_attention(attention, x, allowed_BNN):
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    together = isinstance(attention.q_norm, torch.nn.RMSNorm)
    if together:
        query, key = attention.q_norm(query), attention.k_norm(key)
    heads = []
    for part in torch.arange(x.shape[-1]).chunk(attention.heads):
        q, k = query[..., part], key[..., part]
        q, k = (q, k) if together else (attention.q_norm(q), attention.k_norm(k))
        scores = (q @ k.transpose(1, 2) / len(part) ** 0.5).masked_fill(~allowed_BNN, -torch.inf)
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    return attention.proj(torch.cat(heads, dim=-1))


def gradients(output, module):
    weights = torch.arange(output.numel()).view(output.shape).sin()
    return torch.autograd.grad((output * weights).sum(), list(module.parameters()))


@kinds
@pytest.mark.parametrize("shape", [FULL, RMS], ids=["full", "rms"])
def test_an_encoder_with_all_options_and_its_gradients_equal_a_plain_one(kind, shape):
    encoder, patches_BKP = build(shape, kind=kind), random_patches()
    run_length_BK = torch.tensor([[1, 2, 3, 1, 3], [2, 2, 1, 1, 1]])
    found = encoder.encode(encoder.embed(patches_BKP, VISIBLE, run_length_BK), VISIBLE)
    expected = slow_plain(encoder, patches_BKP, VISIBLE, run_length_BK)
    assert found.shape == (2, 5, 32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(found, encoder), gradients(expected, encoder), atol=1e-4, rtol=1e-4)


@kinds
@SHAPES
def test_packed_clips_are_encoded_like_single_ones(kind, shape):
    encoder = build(shape, kind=kind, drop_path=0.5)
    index = [torch.tensor([[1, 5, 9, 13, 35]]), torch.tensor([[7]]), torch.arange(36)[None]]
    tokens = [random_patches(1, one.shape[1]) for one in index]
    clip_B = torch.tensor([4, 9, 2])
    row_1LD = encoder.embed(torch.cat(tokens, dim=1), torch.cat(index, dim=1))
    draws = ClipRandom(0, clip_B)
    packed = encoder.encode(row_1LD, torch.cat(index, dim=1), draws, lengths=(5, 1, 36)).split([5, 1, 36], 1)
    for found, patches_BKP, visible_BK, clip in zip(packed, tokens, index, clip_B, strict=True):
        expected = encoder(patches_BKP, visible_BK, ClipRandom(0, clip[None]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@kinds
@pytest.mark.parametrize("cast", ["autocast", "weights"])
@pytest.mark.parametrize("shape", [FULL, RMS], ids=["full", "rms"])
def test_every_kind_runs_in_bfloat16_with_gradients_for_every_parameter(kind, shape, cast):
    encoder = build(shape, kind=kind)
    exact_BKD = encoder(random_patches(), VISIBLE)
    encoder = encoder.bfloat16() if cast == "weights" else encoder
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        x_BKD = encoder.embed(random_patches(), VISIBLE, torch.ones_like(VISIBLE))
        found_BKD = encoder.encode(x_BKD, VISIBLE)
    found_BKD.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    assert all(parameter.grad.any() for parameter in encoder.parameters())
    encoder.run_length_embed.data.zero_()
    assert (found_BKD.float() - exact_BKD).abs().mean() < 0.2


@pytest.mark.parametrize(
    "option, count",
    [
        # 2 blocks of width 32 with 2 heads of 16.
        ({"registers": 3}, 3 * 32),
        ({"run_lengths": 5}, 5 * 32),
        ({"layer_scale": 1e-4}, 2 * 2 * 32),
        ({"qk_norm": True}, 2 * 2 * 2 * 16),
        ({"attention": Component(name="divided")}, 2 * (2 * 32 + (32 + 1) * 4 * 32)),
        (
            {"attention": Component(name="divided"), "layer_scale": 0.1},
            2 * (2 * 32 + (32 + 1) * 4 * 32 + 3 * 32),
        ),
        ({"attention": Component(name="windowed")}, 0),
        ({"attention": Component(name="sparse")}, 0),
        ({"final_norm": False}, -2 * 32),
        ({"norm": "rms"}, -5 * 32),
        ({"norm": "rms", "qk_norm": True}, -5 * 32 + 2 * 2 * 32),
        ({"positions": Component(name="learned_joint")}, 36 * 32),
    ],
)
def test_options_add_the_expected_number_of_parameters(option, count):
    def parameters(shape):
        return sum(parameter.numel() for parameter in Encoder(shape, GRID).parameters())

    assert parameters(replace(PLAIN, **option)) - parameters(PLAIN) == count


def test_registers_change_the_tokens_and_are_not_returned():
    encoder, patches_BKP = build(FULL), random_patches()
    before_BKD = encoder(patches_BKP, VISIBLE)
    encoder.reg_token.data.normal_()
    assert before_BKD.shape == (2, 5, 32)
    assert not torch.allclose(encoder(patches_BKP, VISIBLE), before_BKD, atol=1e-3)


def test_a_vanishing_layer_scale_leaves_the_embedded_tokens():
    torch.manual_seed(0)
    encoder = Encoder(replace(PLAIN, layer_scale=1e-8), GRID)
    x_BKD = encoder.embed(random_patches(), VISIBLE)
    torch.testing.assert_close(encoder.encode(x_BKD, VISIBLE), encoder.norm(x_BKD))


def test_with_qk_norm_the_scale_of_queries_and_keys_does_not_matter():
    encoder, patches_BKP = Encoder(replace(PLAIN, qk_norm=True), GRID), random_patches()
    before_BKD = encoder(patches_BKP, VISIBLE)
    for block in encoder.blocks:
        block.attn.qkv.weight.data[:64] *= 30
    torch.testing.assert_close(encoder(patches_BKP, VISIBLE), before_BKD, atol=1e-4, rtol=1e-4)


def test_run_lengths_change_nothing_at_first_and_are_clamped():
    torch.manual_seed(0)
    encoder, patches_BKP = Encoder(FULL, GRID), random_patches()
    run_length_BK = torch.tensor([[1, 2, 3, 4, 50]]).expand(2, -1)
    without_BKD = encoder.embed(patches_BKP, VISIBLE)
    torch.testing.assert_close(encoder.embed(patches_BKP, VISIBLE, run_length_BK), without_BKD)
    encoder.run_length_embed.data.copy_(torch.arange(1.0, 4.0)[:, None].expand(-1, 32))
    added_BKD = encoder.embed(patches_BKP, VISIBLE, run_length_BK) - without_BKD
    torch.testing.assert_close(added_BKD[0, :, 0], torch.tensor([1.0, 2.0, 3.0, 3.0, 3.0]))


@kinds
def test_only_the_weights_of_layers_decay(kind):
    encoder = Encoder(replace(FULL, attention=Component(name=kind)), GRID)
    decayed = {
        id(p) for group in parameter_groups(encoder, 0.05) if group["weight_decay"] for p in group["params"]
    }
    linear = {id(m.weight) for m in encoder.modules() if isinstance(m, torch.nn.Linear)}
    assert decayed == linear


@kinds
class TestSelfDecoder:
    """The self decoder with every attention kind, on visible and target tokens."""

    TARGET = torch.tensor([[2, 6, 20], [22, 4, 7]])

    def build(self, kind):
        torch.manual_seed(0)
        shape = DecoderShape(width=16, depth=2, heads=2, attention=Component(name=kind))
        return SelfDecoder(shape, GRID, memory_width=32, values=12)

    def memory(self):
        return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))

    def test_it_predicts_the_target_tokens_in_order_from_the_memory(self, kind):
        decoder, memory_BKD, order = self.build(kind), self.memory(), [2, 0, 1]
        prediction_BMP = decoder(memory_BKD, VISIBLE, self.TARGET)
        assert prediction_BMP.shape == (2, 3, 12)
        turned_BMP = decoder(memory_BKD, VISIBLE, self.TARGET[:, order])
        torch.testing.assert_close(turned_BMP, prediction_BMP[:, order])
        assert not torch.allclose(
            decoder(memory_BKD.flip(2), VISIBLE, self.TARGET), prediction_BMP, atol=1e-4
        )

    def test_every_parameter_learns(self, kind):
        decoder = self.build(kind)
        decoder(self.memory(), VISIBLE, self.TARGET).square().mean().backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in decoder.parameters())
