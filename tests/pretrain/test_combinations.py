"""A set of combinations that covers every pair of components; others in each nightly run. All of them:
tests/benchmarks/combinations.py."""

import itertools
import re

import pytest
import torch

from kinemae.pretrain.builders import check_compatibility
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.noise.gaussian import GaussianNoise
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.noise.token import TokenNoise
from kinemae.pretrain.pruning.motion import MotionPruning
from kinemae.pretrain.pruning.none import NoPruning
from kinemae.pretrain.pruning.run_length import RunLengthPruning
from kinemae.pretrain.targets.noise import NoiseTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from tests.component_combinations import axes, pairs_of, pairwise_covering, prepare, train, train_or_reject
from tests.seeds import SEED

WALK = pairwise_covering(axes(), SEED)
PLAIN = {
    "masking": "tube",
    "pruning": "none",
    "attention": "joint",
    "positions": "sine",
    "target": "pixels",
    "noise": "none",
    "decoder": "cross",
}


@pytest.mark.parametrize("combination", WALK, ids=lambda combination: "-".join(combination.values()))
def test_it_trains_or_is_refused_with_a_reason_that_names_keys(combination):
    try:
        refusal = train_or_reject(combination)
    except Exception as error:
        raise AssertionError(f"{combination}: repeat with TEST_SEED={SEED}") from error
    assert refusal is None or re.search(r"\b(model|masking|pruning|noise|target|clip)\.\w+", refusal)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_covering_set_contains_every_pair_of_components(seed):
    choices = axes()
    walk = pairwise_covering(choices, seed)
    held = set().union(*(pairs_of(combination) for combination in walk))
    for one, other in itertools.combinations(choices, 2):
        for a, b in itertools.product(choices[one], choices[other]):
            assert frozenset(((one, a), (other, b))) in held
    assert walk == pairwise_covering(choices, seed) != pairwise_covering(choices, seed + 1)
    assert len(walk) < 3 * max(len(a) * len(b) for a, b in itertools.combinations(choices.values(), 2))


def test_the_plain_combination_trains():
    assert train_or_reject(PLAIN) is None


@pytest.mark.parametrize(
    ("parts", "model", "message"),
    [
        ({"pruning": RunLengthPruning()}, {}, r"pruning.args.keep must be a fraction .* only fine-tuning"),
        ({"pruning": MotionPruning(threshold=3.0)}, {}, "pruning.args.keep must be a fraction"),
        ({"target": NoiseTarget()}, {}, r"target.name: .* set noise.name=gaussian"),
        ({"target": NoiseTarget(), "noise": TokenNoise()}, {}, r"target.name: .* set noise.name=gaussian"),
        ({}, {"noise_conditioning": True}, r"model.noise_conditioning must be false .* set noise.name"),
        (
            {"target": NoiseTarget(), "noise": GaussianNoise()},
            {"noise_conditioning": True},
            r"model.noise_conditioning must be false .* choose another target.name",
        ),
    ],
)
def test_incompatible_components_are_refused(parts, model, message):
    usual = {"masking": TubeMasking(), "pruning": NoPruning(), "noise": NoNoise(), "target": PixelTarget()}
    check_compatibility(ModelConfig(), **usual)
    with pytest.raises(ValueError, match=message):
        check_compatibility(ModelConfig(**model), **usual | parts)


def test_the_reason_of_a_refused_combination_is_recorded():
    assert "target.name" in train_or_reject(PLAIN | {"target": "noise"})


def test_a_loss_that_is_not_finite_is_detected(monkeypatch):
    monkeypatch.setattr(PixelTarget, "errors", lambda self, one, other: one * float("nan"))
    with pytest.raises(AssertionError, match="loss"):
        train(prepare(PLAIN))


def test_a_parameter_without_a_gradient_is_detected():
    prepared = prepare(PLAIN)
    prepared.model.decoder.idle = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(AssertionError, match=r"decoder.idle has no gradient"):
        train(prepared)
