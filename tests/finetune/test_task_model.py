"""The model of a classification, compared with plain formulas."""

import pytest
import torch
from torch.nn import functional

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.finetune.heads.base import Features, build_head
from kinemae.finetune.task_model import TaskModel
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from tests.task_models import classification

SHAPE = EncoderShape(width=24, depth=3, heads=2, mlp_width=48, patch=(2, 8, 8))
GRID = TokenGrid.of(4, 16, SHAPE.patch)


def make(*, drop_path=0.0, head="attentive", label_smoothing=0.0, **settings):
    torch.manual_seed(0)
    encoder = Encoder(SHAPE, GRID, drop_path=drop_path)
    args = {"head_width": 8} if head == "attentive" else {"init_std": 0.5}
    head = build_head(Component(name=head, args=args), width=24, outputs=5)
    return TaskModel(encoder, head, classification(5, label_smoothing=label_smoothing), **settings)


def make_batch(clips=6):
    fresh = torch.Generator().manual_seed(1)
    return ClipBatch(
        pixels=torch.randint(256, (clips, 3, 4, 16, 16), generator=fresh, dtype=torch.uint8),
        clip_index_B=torch.arange(clips),
        label_B=torch.arange(clips) % 5,
        targets={"label": torch.arange(clips) % 5},
        weight_B=torch.ones(clips),
    )


def draws_for(batch):
    return ClipRandom(0, batch.clip_index_B)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_smoothed_cross_entropy_of_each_clip(smoothing):
    classifier, batch = make(label_smoothing=smoothing), make_batch()

    values = classifier(batch, draws_for(batch))

    log_chance_BY = torch.log_softmax(classifier.output(batch.clip_BCTHW)[0], dim=1)
    target_BY = functional.one_hot(batch.label_B, 5) * (1 - smoothing) + smoothing / 5
    assert torch.allclose(values["loss"], -(target_BY * log_chance_BY).sum(1), atol=1e-6)
    assert torch.equal(values["accuracy"], (log_chance_BY.argmax(1) == batch.label_B).float())


def test_pixels_are_normalized_as_the_encoder_was_trained():
    classifier, batch = make(mean=(0.45, 0.4, 0.5), std=(0.2, 0.25, 0.3)), make_batch(2)
    clip_BCTHW = batch.clip_BCTHW.float() / 255
    mean_C, std_C = torch.tensor(classifier.mean), torch.tensor(classifier.std)
    clip_BCTHW = (clip_BCTHW - mean_C[:, None, None, None]) / std_C[:, None, None, None]
    # (B, C, t, 2, h, 8, w, 8) -> (B, N, frame row column channel)
    windows = clip_BCTHW.view(2, 3, 2, 2, 2, 8, 2, 8).permute(0, 2, 4, 6, 3, 5, 7, 1)
    patches_BNP = windows.reshape(2, 8, -1)

    logits_BY = classifier.head(Features(classifier.encoder(patches_BNP, None, None)), None)

    assert torch.allclose(classifier.output(batch.clip_BCTHW)[0], logits_BY, atol=1e-5)


def test_a_frozen_encoder_gets_no_gradient_and_the_head_does():
    classifier, batch = make(freeze=True), make_batch()

    classifier(batch, draws_for(batch))["loss"].mean().backward()

    assert all(parameter.grad is None for parameter in classifier.encoder.parameters())
    assert all(parameter.grad is not None for parameter in classifier.head.parameters())


def test_a_frozen_encoder_drops_no_path_in_training():
    classifier, batch = make(freeze=True, drop_path=0.9).train(), make_batch()

    in_training = classifier(batch, draws_for(batch))["loss"]

    assert torch.equal(in_training, classifier.eval()(batch, draws_for(batch))["loss"])


def test_drop_path_in_training_depends_only_on_the_clip():
    classifier, batch = make(drop_path=0.8, head="linear").train(), make_batch()

    first_B = classifier(batch, draws_for(batch))["loss"]

    assert torch.equal(first_B, classifier(batch, draws_for(batch))["loss"])
    assert not torch.allclose(first_B, classifier.eval()(batch, draws_for(batch))["loss"])


def test_all_weights_of_an_unfrozen_encoder_have_a_gradient():
    classifier, batch = make(), make_batch()

    classifier(batch, draws_for(batch))["loss"].mean().backward()

    assert all(parameter.grad.abs().sum() > 0 for parameter in classifier.encoder.parameters())


def test_training_fits_a_small_batch():
    classifier, batch = make(head="linear"), make_batch(10)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)

    for _ in range(40):
        optimizer.zero_grad()
        classifier(batch, draws_for(batch))["loss"].mean().backward()
        optimizer.step()

    assert classifier(batch, draws_for(batch))["accuracy"].mean() == 1
