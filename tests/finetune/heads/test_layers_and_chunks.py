"""Tokens of several blocks and of several chunks of a clip: what heads get from the encoder."""

import pytest
import torch

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.finetune.config import FinetuneClip
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.model_file import FinetunedModel, load_model, save_model
from kinemae.finetune.task_model import TaskModel, block_numbers
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.exported_model import EncoderDescription
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid, normalize, patchify
from tests.task_models import classification

SHAPE = EncoderShape(width=32, depth=4, heads=2, mlp_width=64, patch=(2, 8, 8), registers=1)
GRID = TokenGrid.of(4, 16, SHAPE.patch)
FIXED = Component(name="motion", args={"keep": 0.5})
PACKED = Component(name="motion", args={"threshold": 30.0})
LEARNED = Component(name="learned", args={"keep": 0.5})


def make(*, head="linear", args=None, pruning=None, merge_per_block=0, drop_path=0.0, **settings):
    torch.manual_seed(0)
    reduction = TokenReduction(pruning=pruning or Component(name="none"), merge_per_block=merge_per_block)
    built = reduction.build_pruning(SHAPE)
    encoder = reduction.apply(Encoder(SHAPE, GRID, drop_path=drop_path), built)
    default = {"init_std": 0.5} if head == "linear" else {}
    head = build_head(Component(name=head, args={**default, **(args or {})}), width=32, outputs=3)
    return TaskModel(encoder, head, classification(3), pruning=built, **settings)


def make_batch(clips=3, frames=4):
    fresh = torch.Generator().manual_seed(1)
    return ClipBatch(
        pixels=torch.randint(256, (clips, 3, frames, 16, 16), generator=fresh, dtype=torch.uint8),
        clip_index_B=torch.arange(clips),
        label_B=torch.arange(clips) % 3,
        targets={"label": torch.arange(clips) % 3},
        weight_B=torch.ones(clips),
    )


def test_layers_are_the_tokens_after_each_block_and_do_not_change_the_others():
    model, clip_BCTHW = make().eval(), make_batch().clip_BCTHW
    encoder, outputs = model.encoder, []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output[:, 1:]))
    x_BND = encoder.embed(normalize(patchify(clip_BCTHW, SHAPE.patch), model.mean, model.std), None)
    plain_BND = encoder.encode(x_BND, None)
    expected = list(outputs)

    tokens_BND, layers = encoder.encode_layers(x_BND, None, (3, 0))

    assert torch.equal(tokens_BND, plain_BND)
    assert torch.equal(layers[0], expected[3]) and torch.equal(layers[1], expected[0])
    assert torch.equal(encoder.norm(layers[0]), plain_BND)


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [((0.25, 0.5, 1.0), (0, 1, 3)), ((0, 2), (0, 2)), ((-1, -4), (3, 0)), ((0.01,), (0,))],
)
def test_blocks_are_named_by_number_or_fraction(layers, numbers):
    assert block_numbers(layers, 4) == numbers


@pytest.mark.parametrize("layer", [4, -5])
def test_an_unknown_block_is_rejected(layer):
    with pytest.raises(
        ValueError, match=f"head.args.layers: expected blocks from 0 to 3, .*, got {layer}; fix"
    ):
        make(head="multilayer", args={"layers": [layer]})


@pytest.mark.parametrize("settings", [{"pruning": PACKED}, {"merge_per_block": 1}])
def test_layers_with_other_tokens_in_each_block_or_clip_are_rejected(settings):
    with pytest.raises(ValueError, match=r"head.args.layers: expected an encoder that keeps .*; fix: merge"):
        make(head="multilayer", **settings)


@pytest.mark.parametrize("pruning", [None, FIXED, LEARNED])
def test_the_multilayer_head_learns_from_every_layer(pruning):
    model, batch = make(head="multilayer", pruning=pruning), make_batch()

    model(batch, ClipRandom(0, batch.clip_index_B))["loss"].mean().backward()

    features = model.features(batch.clip_BCTHW)
    assert [each.shape for each in features.layers] == [features.tokens_BND.shape] * 4
    assert all(block.mlp.fc2.weight.grad.abs().sum() > 0 for block in model.encoder.blocks)


@pytest.mark.parametrize("pruning", [None, FIXED, PACKED, LEARNED])
@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_features_of_chunks_are_those_of_the_single_clips(pruning, head):
    model = make(head=head, pruning=pruning, freeze=True, chunks=3)
    single = make(head=head, pruning=pruning, freeze=True)
    clip_BCTHW = make_batch(frames=12).clip_BCTHW

    features = model.features(clip_BCTHW)

    parts = [single.features(part_BCTHW) for part_BCTHW in clip_BCTHW.split(4, dim=2)]
    assert torch.equal(features.tokens_BND, torch.cat([part.tokens_BND for part in parts], dim=1))
    assert torch.equal(features.kept_B, sum(part.kept_B for part in parts))
    assert features.slices == sum(part.slices for part in parts)
    assert model.grid_tokens == 3 * single.grid_tokens


def test_layers_of_chunks_are_concatenated_as_the_tokens():
    model, single = (make(head="multilayer", chunks=chunks).eval() for chunks in (2, 1))
    clip_BCTHW = make_batch(frames=8).clip_BCTHW

    layers = model.features(clip_BCTHW).layers

    first, second = (single.features(part).layers for part in clip_BCTHW.split(4, dim=2))
    assert all(torch.equal(layers[i], torch.cat([first[i], second[i]], dim=1)) for i in range(4))


@pytest.mark.parametrize("freeze", [True, False])
def test_chunks_train_with_drop_path_and_keep_the_encoder_frozen_on_request(freeze):
    model, batch = make(chunks=2, freeze=freeze, drop_path=0.5), make_batch(frames=8)

    values = model(batch, ClipRandom(0, batch.clip_index_B))
    values["loss"].mean().backward()

    assert model.head.linear.weight.grad.abs().sum() > 0
    assert all((each.grad is None) == freeze for each in model.encoder.parameters())


def test_the_mean_over_one_chunk_twice_is_the_mean_over_it():
    model, single = make(chunks=2).eval(), make().eval()
    clip_BCTHW = make_batch(frames=4).clip_BCTHW

    twice_BY, kept_B = model.output(torch.cat([clip_BCTHW, clip_BCTHW], dim=2))

    assert torch.allclose(twice_BY, single.output(clip_BCTHW)[0], atol=1e-5)
    assert kept_B.tolist() == [16.0] * 3


@pytest.mark.parametrize("frames", [4, 6, 9, 12])
def test_a_clip_that_is_not_all_chunks_is_rejected(frames):
    with pytest.raises(ValueError, match="clip: expected 4 frames of 16x16 pixels, got"):
        make(chunks=2).features(make_batch(frames=frames).clip_BCTHW)


def test_a_saved_model_keeps_its_chunks_and_layers(tmp_path):
    model = make(head="multilayer", chunks=2).eval()
    clip_BCTHW = make_batch(frames=8).clip_BCTHW
    description = EncoderDescription(shape=SHAPE, grid=GRID, reference=GRID, frames=4, stride=2, size=16)

    save_model(
        tmp_path, FinetunedModel(model=model, description=description), head=Component(name="multilayer")
    )
    loaded = load_model(tmp_path).model

    assert loaded.chunks == 2
    assert torch.equal(loaded.output(clip_BCTHW)[0], model.output(clip_BCTHW)[0])


def test_no_chunk_is_rejected():
    with pytest.raises(ValueError, match=r"clip.chunks must be at least 1, got 0"):
        FinetuneClip(chunks=0)
