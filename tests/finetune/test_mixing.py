"""Mixup and cutmix, compared with torchvision; mixed clips do not depend on the batch size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional
from torchvision.transforms.v2 import CutMix, MixUp
from torchvision.tv_tensors import Video

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import load_config
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.mixing import MixConfig, Mixer, _beta
from kinemae.finetune.task_model import TaskModel
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from tests.task_models import classification

BOTH = MixConfig(mixup=0.8, cutmix=1.0)
MIXUP, CUTMIX = MixConfig(mixup=0.8), MixConfig(cutmix=1.0)


def make_batch(clips=8, first=0, size=16, frames=2):
    """Make the clips first .. first + clips of a run; each depends only on its index."""
    pixels = [
        torch.randint(
            256,
            (frames, size, size, 3),
            generator=torch.Generator().manual_seed(first + clip),
            dtype=torch.uint8,
        )
        for clip in range(clips)
    ]
    index_B = torch.arange(first, first + clips)
    return ClipBatch(
        pixels=torch.stack(pixels).permute(0, 4, 1, 2, 3),
        clip_index_B=index_B,
        label_B=index_B * 7 % 5,
        targets={"label": index_B * 7 % 5},
        weight_B=torch.ones(clips),
    )


def mix(batch, config, *, views=1, seed=0):
    return Mixer(config, views=views).mix(batch, ClipRandom(seed, batch.clip_index_B))


def test_mixup_equals_torchvisions():
    batch = make_batch(2, size=24)
    mixed = mix(batch, MIXUP)

    for row, lam in enumerate(mixed.lam_B.tolist()):
        reference = MixUp(alpha=0.8, num_classes=5)
        reference._dist = Fixed(lam)
        clip_BCTHW, label_BY = reference(Video(batch.clip_BCTHW.float()), batch.label_B)
        # Rounded to whole bytes, or half a byte off for the last bit of the reference's sum.
        assert (mixed.clip_BCTHW[row].float() - clip_BCTHW[row]).abs().max() <= 0.501
        assert torch.allclose(targets(mixed, batch, 5)[row], label_BY[row], atol=1e-6)


def test_cutmix_equals_torchvisions(monkeypatch):
    for first in range(0, 40, 2):
        batch = make_batch(2, first=first, size=24)
        draws = ClipRandom(0, batch.clip_index_B).uniform("mix", (5,))
        mixed = mix(batch, CUTMIX)
        for row in range(2):
            reference = CutMix(alpha=1.0, num_classes=5)
            lam = _beta(draws[row, 2:3], 1.0)
            centre = iter([int(draws[row, 4] * 24), int(draws[row, 3] * 24)])  # torchvision draws x first
            monkeypatch.setattr(reference, "_dist", Fixed(lam))
            with monkeypatch.context() as patched:
                patched.setattr(
                    torch, "randint", lambda *_, centre=centre, **__: torch.tensor([next(centre)])
                )
                clip_BCTHW, label_BY = reference(Video(batch.clip_BCTHW), batch.label_B)
            assert torch.equal(mixed.clip_BCTHW[row], clip_BCTHW[row])
            assert torch.allclose(targets(mixed, batch, 5)[row], label_BY[row], atol=1e-6)


class Fixed:
    """A distribution with a constant sample."""

    def __init__(self, value):
        self.value = value

    def sample(self, _):
        return self.value


def targets(mixed, batch, classes):
    own, other = (
        functional.one_hot(label_B, classes) for label_B in (batch.label_B, batch.label_B[mixed.partner_B])
    )
    return own * mixed.lam_B[:, None] + other * (1 - mixed.lam_B[:, None])


@given(
    views=st.integers(1, 3),
    blocks=st.integers(1, 4),
    per_micro=st.integers(1, 4),
    first=st.integers(0, 2**40),
    config=st.sampled_from([MIXUP, CUTMIX, BOTH, MixConfig(mixup=0.4, cutmix=2.0, probability=0.5)]),
)
def test_mixed_clips_do_not_depend_on_the_micro_batch_size(views, blocks, per_micro, first, config):
    block = config.group_size(views)
    whole = make_batch(blocks * per_micro * block, size=8, first=0)
    shift = first * block
    moved = ClipBatch(**{**vars(whole), "clip_index_B": whole.clip_index_B + shift})

    expected = mix(moved, config, views=views)

    for start in range(0, len(moved.label_B), per_micro * block):
        rows = slice(start, start + per_micro * block)
        part = ClipBatch(
            pixels=moved.clip_BCTHW[rows],
            clip_index_B=moved.clip_index_B[rows],
            label_B=moved.label_B[rows],
            targets={"label": moved.label_B[rows]},
            weight_B=moved.weight_B[rows],
        )
        got = mix(part, config, views=views)
        assert torch.equal(got.clip_BCTHW, expected.clip_BCTHW[rows])
        assert torch.equal(got.lam_B, expected.lam_B[rows])
        assert torch.equal(got.partner_B + start, expected.partner_B[rows])


def test_partners_are_the_same_view_of_neighbouring_videos():
    batch = make_batch(8)
    mixed = mix(batch, MIXUP, views=2)
    partner_B = torch.tensor([2, 3, 0, 1, 6, 7, 4, 5])
    assert torch.equal(mixed.partner_B, partner_B)
    lam_B = mixed.lam_B.view(-1, 1, 1, 1, 1)
    clip_BCTHW = lam_B * batch.clip_BCTHW + (1 - lam_B) * batch.clip_BCTHW[partner_B]
    assert (clip_BCTHW - mixed.clip_BCTHW).abs().max() <= 0.501


def test_the_box_of_cutmix_is_the_same_in_all_frames():
    batch = make_batch(40, frames=4)
    mixed = mix(batch, CUTMIX)
    is_own_BTHW = (mixed.clip_BCTHW == batch.clip_BCTHW).all(1)
    partner_BCTHW = batch.clip_BCTHW.view(20, 2, 3, 4, 16, 16).flip(1).flatten(0, 1)
    is_partner_BTHW = (mixed.clip_BCTHW == partner_BCTHW).all(1)
    assert (is_own_BTHW | is_partner_BTHW).all()
    assert (is_own_BTHW == is_own_BTHW[:, :1]).float().mean() > 0.999  # pixels that are equal by chance
    assert torch.allclose(is_own_BTHW.float().mean((1, 2, 3)), mixed.lam_B, atol=1e-3)


def test_a_clip_with_an_unreadable_partner_is_not_mixed():
    batch = make_batch(8)
    batch.weight_B[[1, 6]] = 0.0
    batch.clip_BCTHW[[1, 6]] = 0

    mixed, free = mix(batch, BOTH), mix(make_batch(8), BOTH)

    for row in (0, 7):
        assert torch.equal(mixed.clip_BCTHW[row], batch.clip_BCTHW[row])
        assert mixed.lam_B[row] == 1
    for row in (2, 3, 4, 5):
        assert torch.equal(mixed.clip_BCTHW[row], free.clip_BCTHW[row])


def test_the_fractions_of_mixed_and_cut_clips_are_as_configured():
    batch = make_batch(4000, size=4, frames=1)
    config = MixConfig(mixup=0.8, cutmix=0.8, probability=0.7, switch_probability=0.25)
    mixed = mix(batch, config)
    draws = ClipRandom(0, batch.clip_index_B).uniform("mix", (5,))

    is_mixed_B = draws[:, 0] < 0.7
    is_cut_B = is_mixed_B & (draws[:, 1] < 0.25)
    in_sixteenths = (mixed.lam_B * 16 % 1 == 0) | (mixed.lam_B * 16 % 1 > 0.999)

    assert abs(is_mixed_B.float().mean() - 0.7) < 0.03
    assert abs(is_cut_B.float().mean() - 0.7 * 0.25) < 0.03
    assert (mixed.lam_B[~is_mixed_B] == 1).all()
    assert in_sixteenths[is_cut_B].all()  # a box of whole pixels
    assert in_sixteenths[is_mixed_B & ~is_cut_B].float().mean() < 0.02


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 5.0])
def test_lambda_follows_the_beta_distribution(alpha):
    lambdas = mix(make_batch(2000, size=2, frames=1), MixConfig(mixup=alpha), seed=3).lam_B
    assert stats.kstest(lambdas.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_seeds_and_clips_give_different_mixes():
    lambdas = [mix(make_batch(4, first=first), MIXUP, seed=seed).lam_B for first in (0, 4) for seed in (0, 1)]
    assert len(torch.cat(lambdas).unique()) == 16


SHAPE = EncoderShape(width=24, depth=2, heads=2, mlp_width=48, patch=(2, 8, 8))


def make_classifier(smoothing=0.1, mixer=None):
    torch.manual_seed(0)
    head = build_head(Component(name="linear", args={"init_std": 0.5}), width=24, outputs=5)
    encoder = Encoder(SHAPE, TokenGrid.of(2, 16, SHAPE.patch))
    return TaskModel(encoder, head, classification(5, label_smoothing=smoothing), mixer=mixer)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_both_labels_smoothed_as_in_timm(smoothing):
    batch = make_batch(8)
    classifier = make_classifier(smoothing, Mixer(BOTH, views=1))
    mixed = mix(batch, BOTH)

    values = classifier(batch, ClipRandom(0, batch.clip_index_B))

    logits_BY = classifier.output(mixed.clip_BCTHW)[0]
    off, on = smoothing / 5, 1 - smoothing + smoothing / 5  # timm's mixup_target
    own, other = (
        functional.one_hot(label_B, 5) * (on - off) + off
        for label_B in (batch.label_B, batch.label_B[mixed.partner_B])
    )
    target_BY = own * mixed.lam_B[:, None] + other * (1 - mixed.lam_B[:, None])
    assert torch.allclose(values["loss"], -(target_BY * logits_BY.log_softmax(1)).sum(1), atol=1e-5)
    strongest_B = torch.where(mixed.lam_B >= 0.5, batch.label_B, batch.label_B[mixed.partner_B])
    assert torch.equal(values["accuracy"], (logits_BY.argmax(1) == strongest_B).float())


def test_the_gradient_of_a_mixed_batch_is_that_of_its_micro_batches():
    batch, config = make_batch(8), BOTH
    gradients = []
    for size in (8, 4, 2):
        classifier = make_classifier(mixer=Mixer(config, views=1))
        for start in range(0, 8, size):
            part = make_batch(size, first=start)
            loss_B = classifier(part, ClipRandom(0, part.clip_index_B))["loss"]
            (loss_B.sum() / len(batch.label_B)).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in classifier.parameters()]))
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    assert torch.allclose(gradients[0], gradients[2], atol=1e-6)


def test_nothing_is_mixed_in_evaluation():
    batch = make_batch(8)
    draws = ClipRandom(0, batch.clip_index_B)
    mixing, plain = make_classifier(mixer=Mixer(BOTH, views=1)), make_classifier()
    in_training = mixing.train()(batch, draws)["loss"]
    assert torch.equal(mixing.eval()(batch, draws)["loss"], plain.eval()(batch, draws)["loss"])
    assert not torch.allclose(in_training, plain(batch, draws)["loss"])


def test_a_group_has_two_videos_only_if_clips_are_mixed():
    assert [config.group_size(3) for config in (MixConfig(), MIXUP, CUTMIX, BOTH)] == [3, 6, 6, 6]
    assert MixConfig(mixup=1.0, probability=0.0).group_size(3) == 3


@pytest.mark.parametrize(
    "override, message",
    [
        ("mixup=-1", "mix.mixup must be 0 .off. or more, got -1"),
        ("cutmix=-0.5", "mix.cutmix must be 0 .off. or more, got -0.5"),
        ("probability=1.1", "mix.probability must lie between 0 and 1, got 1.1"),
        ("switch_probability=-1", "mix.switch_probability must lie between 0 and 1, got -1"),
    ],
)
def test_an_invalid_value_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(MixConfig, None, [override])
