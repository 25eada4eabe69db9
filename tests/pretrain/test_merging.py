"""Token merging against a plain loop over pairs, and its invariants."""

import pytest
import torch
from torch.nn import functional

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.merging import Merging, match
from kinemae.pretrain.model.sizes import EncoderShape, ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.pixels import PixelTarget

GRID = TokenGrid(2, 3, 3)
WIDTH, HEADS = 24, 2


def build(*, depth=2, **options):
    torch.manual_seed(0)
    shape = EncoderShape(width=WIDTH, depth=depth, heads=HEADS, mlp_width=48, patch=(2, 4, 4), **options)
    return Encoder(shape, GRID)


def some_patches(clips=2, tokens=GRID.tokens):
    return torch.randn(clips, tokens, 96, generator=torch.Generator().manual_seed(1))


def merged_by_a_loop(x_ND, key_NF, sizes, count, first):
    """Section 3 of the paper, pair by pair: remaining tokens, their sizes, and the target of each merge."""
    best = []
    for source in range(first, len(x_ND), 2):
        likeness = {
            target: functional.cosine_similarity(key_NF[source], key_NF[target], dim=0).item()
            for target in range(first + 1, len(x_ND), 2)
        }
        target = max(likeness, key=likeness.get)
        best.append((likeness[target], source, target))
    went = {source: target for _, source, target in sorted(best, reverse=True)[:count]}
    groups = {token: [token] for token in range(len(x_ND)) if token not in went}
    for source, target in went.items():
        groups[target].append(source)
    total = [sum(sizes[token] for token in members) for members in groups.values()]
    mean = [
        sum(sizes[token] * x_ND[token] for token in members) / size
        for members, size in zip(groups.values(), total, strict=True)
    ]
    order = list(groups)
    return torch.stack(mean), total, [order.index(went.get(token, token)) for token in range(len(x_ND))]


def attention_by_a_loop(block, x_ND, sizes):
    """Attention of a block with keys weighted by the size of their tokens."""
    attention = block.attn
    query, key, value = attention.qkv(block.norm1(x_ND)).chunk(3, dim=1)
    width = WIDTH // HEADS
    seen, keys = [], []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        strength = (query[:, part] @ key[:, part].T / width**0.5).exp() * torch.tensor(sizes)
        seen.append(strength / strength.sum(dim=1, keepdim=True) @ value[:, part])
        keys.append(key[:, part])
    return x_ND + attention.proj(torch.cat(seen, dim=1)), torch.stack(keys).mean(dim=0)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("per_block", [1, 4, 100])
@torch.no_grad()
def test_an_encoder_that_merges_equals_a_loop_over_its_tokens(registers, per_block):
    encoder, patches_BNP = build(registers=registers), some_patches()
    encoder.merge_tokens(per_block)

    tokens_BND = encoder(patches_BNP, None)

    for clip, patches_NP in enumerate(patches_BNP):
        x_ND = encoder.embed(patches_NP[None], None)[0]
        if registers:
            x_ND = torch.cat([encoder.reg_token[0], x_ND])
        sizes, group = [1.0] * len(x_ND), list(range(len(x_ND)))
        for block in encoder.blocks:
            x_ND, key_NF = attention_by_a_loop(block, x_ND, sizes)
            count = min(per_block, (len(x_ND) - registers) // 2)
            x_ND, sizes, place = merged_by_a_loop(x_ND, key_NF, sizes, count, registers)
            group = [place[token] for token in group]
            x_ND = x_ND + block.mlp(block.norm2(x_ND))
        expected_ND = encoder.norm(x_ND)[group][registers:]
        assert torch.allclose(tokens_BND[clip], expected_ND, atol=1e-5)


def test_sizes_add_up_and_unmerging_copies_the_vector_of_the_group():
    x_BND = torch.randn(2, 11, WIDTH)
    merging = Merging(3, torch.arange(11).expand(2, -1), registers=1)

    for _ in range(3):
        query_BANF = torch.randn(2, HEADS, x_BND.shape[1], 4)
        merging.attention_fn()(query_BANF, query_BANF, query_BANF)
        x_BND = merging.merge(x_BND)

    assert torch.equal(merging.size_BN.sum(dim=1), torch.tensor([11.0, 11.0]))
    assert x_BND.shape[1] == merging.size_BN.shape[1] == merging.index_BN.shape[1] == 11 - 3 - 3 - 2
    members_BN = torch.zeros(2, x_BND.shape[1]).scatter_add(1, merging.group_BN, torch.ones(2, 11))
    assert torch.equal(members_BN, merging.size_BN)
    all_BND = merging.unmerge(x_BND)
    for clip, token in [(0, 0), (0, 5), (1, 10)]:
        assert torch.equal(all_BND[clip, token], x_BND[clip, merging.group_BN[clip, token]])
    assert (merging.size_BN[:, 0] == 1).all(), "a register stays by itself"


def test_the_most_similar_tokens_are_matched():
    key_BNF = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [1.1, 1], [0, 5], [1, 3]]])

    pairs = match(key_BNF, 2)

    assert pairs.source_BR.tolist() == [[2, 4]]
    assert pairs.target_BR.tolist() == [[3, 1]]
    assert pairs.kept_BK.tolist() == [[0, 1, 3, 5]]


@pytest.mark.parametrize("positions", ["sine", "rotary"])
@torch.no_grad()
def test_merging_equal_tokens_changes_nothing(positions):
    encoder = build(positions=Component(name=positions), qk_norm=True, layer_scale=0.5)
    visible_BK = torch.tensor([[3, 3, 7, 7, 9, 9], [0, 0, 1, 1, 17, 17]])
    patches_BKP = some_patches(tokens=3).repeat_interleave(2, dim=1)
    x_BKD, merging = encoder.embed(patches_BKP, visible_BK), Merging(3, visible_BK)
    rotation = encoder.pos_embed.rotation

    for block in encoder.blocks:
        x_BKD = block.attend(x_BKD, [merging.attention_fn()], rotation(merging.index_BN))
        x_BKD = block.feed_forward(merging.merge(x_BKD) if x_BKD.shape[1] == 6 else x_BKD)

    assert x_BKD.shape[1] == 3
    plain_BKD = encoder(patches_BKP, visible_BK)
    assert torch.allclose(encoder.norm(merging.unmerge(x_BKD)), plain_BKD, atol=1e-5)


@pytest.mark.parametrize("positions", ["sine", "rotary"])
def test_merging_no_tokens_is_bit_equal_and_merging_some_is_close(positions):
    encoder, patches_BNP = build(positions=Component(name=positions)), some_patches()
    plain_BND = encoder(patches_BNP, None)

    encoder.merge_tokens(2)
    merged_BND = encoder(patches_BNP, None)
    encoder.merge_tokens(0)

    assert torch.equal(encoder(patches_BNP, None), plain_BND)
    assert merged_BND.shape == plain_BND.shape
    assert not torch.equal(merged_BND, plain_BND)
    assert torch.corrcoef(torch.stack([merged_BND.flatten(), plain_BND.flatten()]))[0, 1] > 0.8


def test_merging_is_deterministic_works_on_any_visible_tokens_and_does_not_mix_clips():
    encoder, visible_BK = build(registers=1), torch.tensor([[1, 4, 5, 9, 12], [0, 2, 3, 11, 17]])
    encoder.merge_tokens(2)
    patches_BKP = some_patches(tokens=5)

    both_BKD = encoder(patches_BKP, visible_BK)

    assert torch.equal(encoder(patches_BKP, visible_BK), both_BKD)
    alone_1KD = encoder(patches_BKP[1:], visible_BK[1:])
    assert torch.allclose(both_BKD[1:], alone_1KD, atol=1e-6)


def test_with_merging_and_drop_path_gradients_reach_all_parameters():
    encoder = build()
    encoder.drop_path_rates = [0.0, 0.5]
    encoder.merge_tokens(4)

    encoder.train()(some_patches(8), None, ClipRandom(0, torch.arange(8))).square().sum().backward()

    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_an_autoencoder_whose_encoder_merges_trains(decoder):
    small = {"size": "tiny", "width": 24, "depth": 2, "decoder_width": 12, "decoder_depth": 1}
    config = ModelConfig(**small, patch_size=4, decoder=decoder, merge_per_block=2)
    model = build_autoencoder(config, GRID, target=PixelTarget(), noise=NoNoise())
    batch = ClipBatch(
        pixels=torch.randint(256, (2, 3, 4, 12, 12), dtype=torch.uint8),
        clip_index_B=torch.arange(2),
        label_B=torch.zeros(2, dtype=torch.int64),
        weight_B=torch.ones(2),
        tokens={
            "visible": torch.tensor([[0, 2, 5, 9, 10, 14]] * 2),
            "target": torch.tensor([[1, 3, 4]] * 2),
        },
    )

    model(batch, ClipRandom(0, batch.clip_index_B))["loss"].mean().backward()

    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert model.encoder.merge_per_block == 2


def test_merging_works_in_bfloat16():
    encoder = build()
    encoder.merge_tokens(4)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens_BND = encoder(some_patches(), None)

    assert torch.isfinite(tokens_BND).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_per_block": -1}, "model.merge_per_block must be 0 or more, got -1"),
        (
            {"merge_per_block": 4, "attention": Component(name="divided")},
            "model.merge_per_block must be 0 where model.attention is divided, not joint, got 4",
        ),
    ],
)
def test_invalid_merging_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(size="tiny", **options)
