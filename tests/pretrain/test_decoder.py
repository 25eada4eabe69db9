import pytest
import torch

from kinemae.pretrain.model.decoder import CrossDecoder, SelfDecoder
from kinemae.pretrain.model.sizes import DecoderShape
from kinemae.pretrain.model.tokens import TokenGrid

GRID = TokenGrid(2, 3, 4)
VISIBLE = torch.tensor([[1, 5, 9, 23], [0, 2, 3, 11]])
TARGET = torch.tensor([[2, 6, 20], [22, 4, 7]])


def build(kind):
    torch.manual_seed(0)
    return kind(DecoderShape(width=16, depth=2, heads=2), GRID, memory_width=32, values=12)


def random_memory():
    return torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))


both = pytest.mark.parametrize("kind", [SelfDecoder, CrossDecoder])


@both
def test_it_predicts_the_target_tokens_only(kind):
    assert build(kind)(random_memory(), VISIBLE, TARGET).shape == (2, 3, 12)


@both
def test_predictions_are_in_the_order_of_the_target_tokens(kind):
    decoder, memory_BKD, order = build(kind), random_memory(), [2, 0, 1]
    prediction_BMP = decoder(memory_BKD, VISIBLE, TARGET)
    torch.testing.assert_close(decoder(memory_BKD, VISIBLE, TARGET[:, order]), prediction_BMP[:, order])


@both
def test_predictions_depend_on_the_memory_and_its_positions(kind):
    decoder, memory_BKD = build(kind), random_memory()
    prediction_BMP = decoder(memory_BKD, VISIBLE, TARGET)
    assert not torch.allclose(decoder(memory_BKD.flip(2), VISIBLE, TARGET), prediction_BMP, atol=1e-3)
    assert not torch.allclose(decoder(memory_BKD, VISIBLE.flip(1), TARGET), prediction_BMP, atol=1e-3)


def test_a_cross_decoders_prediction_does_not_depend_on_other_target_tokens():
    decoder, memory_BKD = build(CrossDecoder), random_memory()
    together_BMP = decoder(memory_BKD, VISIBLE, TARGET)
    torch.testing.assert_close(decoder(memory_BKD, VISIBLE, TARGET[:, 1:2]), together_BMP[:, 1:2])


def test_a_self_decoders_prediction_depends_on_other_target_tokens():
    decoder, memory_BKD = build(SelfDecoder), random_memory()
    together_BMP = decoder(memory_BKD, VISIBLE, TARGET)
    assert not torch.allclose(decoder(memory_BKD, VISIBLE, TARGET[:, 1:2]), together_BMP[:, 1:2], atol=1e-4)


def test_the_cross_decoder_equals_a_slow_plain_one():
    decoder, memory_BKD = build(CrossDecoder), random_memory()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    memory = decoder.norm_memory(memory_BKD @ decoder.embed.weight.T + decoder.pos_embed.table_ND[VISIBLE])
    x = decoder.mask_token + decoder.pos_embed.table_ND[TARGET]
    for block in decoder.blocks:
        query = block.cross_attn.q(block.norm1(x))
        key, value = block.cross_attn.kv(memory).chunk(2, dim=-1)
        heads = [
            (query[..., part] @ key[..., part].transpose(1, 2) / 8**0.5).softmax(dim=-1) @ value[..., part]
            for part in (slice(0, 8), slice(8, 16))
        ]
        x = x + block.cross_attn.proj(torch.cat(heads, dim=-1))
        x = x + block.mlp(block.norm2(x))
    expected_BMP = decoder.head(decoder.norm(x))
    torch.testing.assert_close(decoder(memory_BKD, VISIBLE, TARGET), expected_BMP, atol=1e-5, rtol=1e-5)


@both
def test_every_parameter_learns(kind):
    decoder = build(kind)
    decoder(random_memory(), VISIBLE, TARGET).square().mean().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in decoder.parameters())
