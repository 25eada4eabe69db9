"""Class-balanced order: proportions of the classes, and equal use of the samples of a class."""

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips, training_loader
from kinemae.data_tools.stream.mixture import BalancedClasses, locate_sample
from kinemae.data_tools.stream.order import class_quotas, plan_batch

CLIP = ClipConfig(frames=2, stride=2, size=16)


@pytest.fixture
def index(synth_shards):
    return open_index(synth_shards / "unlabelled")


def skewed(index, *sizes):
    """Labels of the first samples: so many of each class, none for the others."""
    labels = np.full(len(index), -1)
    labels[: sum(sizes)] = np.repeat(np.arange(len(sizes)), sizes)
    return labels


def shown(source, positions, seed=3):
    return [locate_sample(source, seed=seed, position=place).position for place in positions]


@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=12), balance=st.floats(0.01, 1))
def test_quotas_follow_the_power_of_the_class_size(sizes, balance):
    quotas = class_quotas(sizes, balance)
    for size, quota in zip(sizes, quotas, strict=True):
        exact = (size / min(sizes)) ** (1 - balance)
        assert quota / quotas[sizes.index(min(sizes))] == pytest.approx(exact, rel=0.051)


@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_equal_classes_alternate(sizes):
    assert class_quotas(sizes, 1.0) == (1,) * len(sizes)


def test_a_balanced_run_shows_every_class_once_in_each_block(index):
    labels = skewed(index, 20, 3, 7)
    source = BalancedClasses(index, labels, balance=1.0)

    classes = [int(labels[position]) for position in shown(source, range(600))]

    assert all(sorted(classes[begin : begin + 3]) == [0, 1, 2] for begin in range(0, 600, 3))
    assert len({tuple(classes[begin : begin + 3]) for begin in range(0, 600, 3)}) == 6, "in random order"


@pytest.mark.parametrize("balance", [0.3, 0.5, 1.0])
def test_each_sample_of_a_class_is_shown_equally_often(index, balance):
    labels = skewed(index, 20, 3, 7)
    source = BalancedClasses(index, labels, balance=balance)
    block = sum(source.quotas)

    counts = Counter(shown(source, range(40 * block)))

    assert set(counts) == set(range(30)), "samples without a class are never shown"
    for label, quota in enumerate(source.quotas):
        of_class = [counts[position] for position in np.flatnonzero(labels == label)]
        assert sum(of_class) == 40 * quota and max(of_class) - min(of_class) <= 1
    rates = [Fraction(quota, size) for quota, size in zip(source.quotas, source.sizes, strict=True)]
    assert rates[1] > rates[2] > rates[0], "a sample of a small class comes more often"


def test_epochs_of_a_class_have_different_orders(index):
    source = BalancedClasses(index, skewed(index, 20, 20), balance=1.0)
    positions = [position for position in shown(source, range(120)) if position < 20]
    epochs = [positions[begin : begin + 20] for begin in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_processes_share_the_clips_of_a_balanced_run(index):
    labels = skewed(index, 20, 3)
    source = BalancedClasses(index, labels, balance=1.0)
    clips = TrainingClips(source, clip=CLIP, augment=AugmentConfig(), seed=5, views=2)

    def load(rank, world, first_step=0, workers=0):
        plan = plan_batch(8, 8 // world, world, 2)
        steps = {"first_step": first_step, "last_step": 3, "workers": workers, "pin": False}
        return list(training_loader(clips, plan, rank=rank, **steps))

    alone = load(0, 1)
    parts = [load(rank, 2) for rank in range(2)]
    for batch, *halves in zip(alone, *parts, strict=True):
        assert batch.sample_B.tolist() == [one for half in halves for one in half.sample_B.tolist()]
        assert torch.equal(batch.clip_BCTHW, torch.cat([half.clip_BCTHW for half in halves]))
        assert Counter(labels[batch.sample_B].tolist()) == {0: 4, 1: 4}
    for batch, resumed in zip(alone[1:], load(0, 1, first_step=1, workers=1), strict=True):
        assert batch.keys == resumed.keys and torch.equal(batch.clip_BCTHW, resumed.clip_BCTHW)


def test_a_balanced_order_can_be_pickled(index):
    source = BalancedClasses(index, skewed(index, 20, 3), balance=0.5)
    assert shown(pickle.loads(pickle.dumps(source)), range(30)) == shown(source, range(30))


def test_samples_without_any_class_are_an_error(index):
    with pytest.raises(ValueError, match=r"data.balance: expected samples with a class, got none of 40"):
        BalancedClasses(index, skewed(index), balance=1.0)
