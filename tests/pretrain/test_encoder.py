import pytest
import torch
import torch.nn.functional as F

from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.blocks import SelfAttention, drop_path_weights
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid

SHAPE = EncoderShape(width=32, depth=3, heads=2, mlp_width=64, patch=(1, 2, 2))
GRID = TokenGrid(2, 3, 4)
VISIBLE = torch.tensor([[1, 5, 9, 23], [0, 2, 3, 11]])


def build(**options):
    torch.manual_seed(0)
    return Encoder(SHAPE, GRID, **options)


def random_patches(clips=2, tokens=4):
    return torch.randn(clips, tokens, SHAPE.patch_values, generator=torch.Generator().manual_seed(1))


def test_it_equals_a_slow_plain_vision_transformer():
    encoder, patches_BKP = build(), random_patches()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # zero biases would hide a mistake
    x = patches_BKP @ encoder.patch_embed.weight.T + encoder.patch_embed.bias
    x = x + encoder.pos_embed.table_ND[VISIBLE]
    for block in encoder.blocks:
        x = x + plain_attention(block.attn, block.norm1(x))
        wide = block.norm2(x) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        x = x + F.gelu(wide) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    torch.testing.assert_close(encoder(patches_BKP, VISIBLE), encoder.norm(x), atol=1e-5, rtol=1e-5)


def plain_attention(attention, x):
    query, key, value = (x @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
    heads = []
    for part in torch.arange(x.shape[-1]).chunk(attention.heads):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / len(part) ** 0.5
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    return torch.cat(heads, dim=-1) @ attention.proj.weight.T + attention.proj.bias


def test_no_index_list_means_all_tokens_in_order():
    encoder, patches_BNP = build(), random_patches(tokens=GRID.tokens)
    every_BN = torch.arange(GRID.tokens).expand(2, -1)
    assert torch.equal(encoder(patches_BNP, None), encoder(patches_BNP, every_BN))


def test_the_order_of_the_visible_tokens_does_not_matter():
    encoder, patches_BKP = build(), random_patches()
    order = [2, 0, 3, 1]
    shuffled_BKD = encoder(patches_BKP[:, order], VISIBLE[:, order])
    torch.testing.assert_close(shuffled_BKD, encoder(patches_BKP, VISIBLE)[:, order])


def test_the_position_of_a_token_changes_its_features():
    encoder, patches_BKP = build(), random_patches()
    assert not torch.allclose(encoder(patches_BKP, VISIBLE), encoder(patches_BKP, VISIBLE.flip(1)), atol=1e-2)


def test_a_key_bias_has_no_effect():
    torch.manual_seed(0)
    attention, x_BND = SelfAttention(32, 2), torch.randn(2, 5, 32)
    everyone = F.scaled_dot_product_attention
    before_BND = attention(x_BND, everyone)
    attention.qkv.bias.data[32:64] += 3.0
    torch.testing.assert_close(attention(x_BND, everyone), before_BND)


def test_drop_path_acts_in_training_only_and_does_not_depend_on_the_batch():
    encoder, patches_BKP = build(drop_path=0.6), random_patches()
    draws = ClipRandom(0, torch.tensor([8, 3]))
    trained_BKD = encoder(patches_BKP, VISIBLE, draws)
    alone_BKD = encoder(patches_BKP[1:], VISIBLE[1:], ClipRandom(0, torch.tensor([3])))
    torch.testing.assert_close(trained_BKD[1:], alone_BKD)
    without_BKD = build()(patches_BKP, VISIBLE)
    assert not torch.allclose(trained_BKD, without_BKD)
    torch.testing.assert_close(encoder.eval()(patches_BKP, VISIBLE), without_BKD)


def test_drop_path_grows_with_depth_and_keeps_the_mean():
    assert build(drop_path=0.6).drop_path_rates == pytest.approx([0.0, 0.3, 0.6])
    keep_B2 = drop_path_weights(ClipRandom(0, torch.arange(20000)).uniform("drop_path/1", (2,)), 0.3)
    torch.testing.assert_close(keep_B2.mean(dim=0), torch.ones(2), atol=0.02, rtol=0)
    assert keep_B2.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


@pytest.mark.parametrize("cast", ["autocast", "weights"])
def test_it_runs_in_bfloat16_with_finite_gradients(cast):
    encoder = build()
    if cast == "weights":
        encoder = encoder.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        encoder(random_patches(), VISIBLE).float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_it_is_initialized_as_mae():
    encoder = build()
    bound = (6 / (SHAPE.width + 3 * SHAPE.width)) ** 0.5
    attention = encoder.blocks[0].attn
    assert 0.9 * bound < attention.qkv.weight.abs().max() <= bound
    assert not attention.qkv.bias.any() and not encoder.patch_embed.bias.any()
    assert (encoder.norm.weight == 1).all() and encoder.norm.eps == 1e-6


def test_positions_are_neither_trained_nor_saved():
    encoder = build()
    assert not any("pos_embed" in name for name in [*encoder.state_dict(), *dict(encoder.named_parameters())])
