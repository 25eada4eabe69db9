from dataclasses import replace

import pytest
import torch

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid, normalize, standardize, take_patches
from kinemae.pretrain.noise.gaussian import GaussianNoise
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.token_selection import TokenSelection

PATCH = (2, 4, 4)
GRID = TokenGrid.of(4, 16, PATCH)
SMALL = {"size": "tiny", "width": 32, "depth": 2, "decoder_width": 16, "decoder_depth": 1, "patch_size": 4}


def build(*, noise=None, **options):
    torch.manual_seed(0)
    return build_autoencoder(
        ModelConfig(**SMALL | options), GRID, target=PixelTarget(), noise=noise or NoNoise()
    )


def make_batch(clips=(5, 6, 7), predict_ratio=0.5):
    clip_BCTHW = torch.stack([random_clip(clip) for clip in clips])
    split = TokenSelection(
        masking=TubeMasking(ratio=0.75), grid=GRID, patch=PATCH, seed=0, predict_ratio=predict_ratio
    )
    rows = [split(clip_BCTHW[row, 0], clip) for row, clip in enumerate(clips)]
    return ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.tensor(clips),
        label_B=torch.zeros(len(clips), dtype=torch.int64),
        weight_B=torch.ones(len(clips)),
        tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


def random_clip(clip):
    chance = torch.Generator().manual_seed(clip)
    return torch.randint(0, 256, (3, 4, 16, 16), dtype=torch.uint8, generator=chance)


def draws_of(batch):
    return ClipRandom(0, batch.clip_index_B)


def predicted(model, batch):
    return model.predict(batch, draws_of(batch))[0].decoded_BMP


decoders = pytest.mark.parametrize("decoder", ["cross", "self"])


@decoders
def test_hidden_pixels_do_not_change_predictions(decoder):
    model, batch = build(decoder=decoder), make_batch()
    before_BMP = predicted(model, batch)
    visible = torch.zeros(3, GRID.tokens, dtype=torch.bool).scatter(1, batch.tokens["visible"], True)
    seen = visible.view(3, 1, 2, 4, 4).repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    batch.clip_BCTHW.copy_(torch.where(seen, batch.clip_BCTHW, 255 - batch.clip_BCTHW))
    assert torch.equal(predicted(model, batch), before_BMP)


@decoders
def test_a_clips_loss_does_not_depend_on_its_batch(decoder):
    model = build(decoder=decoder, noise=GaussianNoise(), drop_path=0.3)
    together, alone = make_batch((5, 6, 7)), make_batch((6,))
    loss_B = model(together, draws_of(together))["loss"]
    assert loss_B.shape == (3,)
    torch.testing.assert_close(loss_B[1:2], model(alone, draws_of(alone))["loss"])


def test_noise_is_on_the_encoder_input_and_not_on_the_target():
    model, batch = build(noise=GaussianNoise(std=1.0, min_std=1.0)), make_batch()
    clean_BKP = normalize(take_patches(batch.clip_BCTHW, batch.tokens["visible"], PATCH))
    assert (model.encoder_inputs(batch, draws_of(batch)).patches_BKP - clean_BKP).std() > 0.9
    prediction, inputs = model.predict(batch, draws_of(batch))
    expected_B = (prediction.decoded_BMP - PixelTarget().compute_target(inputs)).square().mean(dim=(1, 2))
    torch.testing.assert_close(model(batch, draws_of(batch))["loss"], expected_B)


def test_a_model_that_standardizes_clips_sees_and_predicts_standardized_ones():
    batch = make_batch()
    standardized, plain = build(standardize=True), build()
    clip_BCTHW = standardize(batch.clip_BCTHW, plain.mean, plain.std)
    expected, inputs = plain.predict(replace(batch, pixels=clip_BCTHW), draws_of(batch))
    found, own = standardized.predict(batch, draws_of(batch))
    assert found.decoded_BMP.equal(expected.decoded_BMP) and not predicted(plain, batch).equal(
        found.decoded_BMP
    )
    assert own.clip_BCTHW.equal(inputs.clip_BCTHW)


@decoders
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_and_reach_every_parameter(decoder, precision):
    model, batch = build(decoder=decoder), make_batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss_B = model(batch, draws_of(batch))["loss"]
    loss_B.mean().backward()
    assert loss_B.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(parameter.grad.any() for parameter in model.parameters())


@decoders
def test_it_overfits_one_batch(decoder):
    model, batch = build(decoder=decoder), make_batch(predict_ratio=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = model(batch, draws_of(batch))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_same_seed_builds_the_same_model():
    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_predicting_all_hidden_tokens_with_the_self_decoder_is_videomae():
    """With the same weights as transformers' VideoMAE, predictions and loss are equal."""
    transformers = pytest.importorskip("transformers")
    peer = tiny_peer(transformers)
    model = build(decoder="self", width=32, depth=2)
    copy_peer(peer, model)
    batch = make_batch(predict_ratio=1.0)
    target_BM = batch.tokens["target"].sort().values
    batch.tokens["target"] = target_BM  # the peer predicts in ascending order
    hidden_BN = torch.zeros(3, GRID.tokens, dtype=torch.bool).scatter(1, target_BM, True)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((batch.clip_BCTHW / 255 - mean) / std).transpose(1, 2)
    with torch.no_grad():
        expected = peer(pixels, bool_masked_pos=hidden_BN)
        prediction_BMP = predicted(model, batch)
        loss = model(batch, draws_of(batch))["loss"].mean()
    torch.testing.assert_close(prediction_BMP, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)


def tiny_peer(transformers):
    peer = transformers.VideoMAEForPreTraining(
        transformers.VideoMAEConfig(
            image_size=16, patch_size=4, num_frames=4, tubelet_size=2, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=1, intermediate_size=128, decoder_hidden_size=16, decoder_num_hidden_layers=1,
            decoder_num_attention_heads=1, decoder_intermediate_size=64,
            use_mean_pooling=False, layer_norm_eps=1e-6,
        )
    )  # fmt: skip
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # biases too: a lost zero bias would not be detected
    peer.decoder.norm.eps = 1e-6  # the only norm there that ignores the config
    return peer.eval()


@torch.no_grad()
def copy_peer(peer, model):
    embed = peer.videomae.embeddings
    kernel_DCTHW = embed.patch_embeddings.projection.weight
    model.encoder.patch_embed.weight.copy_(kernel_DCTHW.permute(0, 2, 3, 4, 1).flatten(1))
    model.encoder.patch_embed.bias.copy_(embed.patch_embeddings.projection.bias)
    model.encoder.pos_embed.table_ND.copy_(embed.position_embeddings[0])
    model.encoder.norm.load_state_dict(peer.videomae.layernorm.state_dict())
    copy_blocks(peer.videomae.encoder.layer, model.encoder.blocks)
    model.decoder.embed.weight.copy_(peer.encoder_to_decoder.weight)
    model.decoder.mask_token.copy_(peer.mask_token.flatten())
    model.decoder.pos_embed.table_ND.copy_(peer.position_embeddings[0])
    copy_blocks(peer.decoder.decoder_layers, model.decoder.blocks)
    model.decoder.norm.load_state_dict(peer.decoder.norm.state_dict())
    model.decoder.head.load_state_dict(peer.decoder.head.state_dict())


def copy_blocks(layers, blocks):
    for layer, block in zip(layers, blocks, strict=True):
        attention = layer.attention.attention
        weights = [part.weight for part in (attention.query, attention.key, attention.value)]
        no_bias = torch.zeros_like(attention.query.bias)
        block.attn.qkv.weight.copy_(torch.cat(weights))
        block.attn.qkv.bias.copy_(torch.cat([attention.query.bias, no_bias, attention.value.bias]))
        block.attn.proj.load_state_dict(layer.attention.output.dense.state_dict())
        block.norm1.load_state_dict(layer.layernorm_before.state_dict())
        block.norm2.load_state_dict(layer.layernorm_after.state_dict())
        block.mlp.fc1.load_state_dict(layer.intermediate.dense.state_dict())
        block.mlp.fc2.load_state_dict(layer.output.dense.state_dict())
