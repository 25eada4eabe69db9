"""Mixtures of data sets: proportions and separate epochs."""

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips, training_loader
from kinemae.data_tools.stream.mixture import Mixture, locate_sample, open_source
from kinemae.data_tools.stream.order import MIXTURE_BLOCK, plan_batch

CLIP = ClipConfig(frames=2, stride=2, size=16)


@pytest.fixture
def weights(synth_shards: Path) -> dict[str, float]:
    return {str(synth_shards / "train"): 3, str(synth_shards / "unlabelled"): 1}


def clips_of(mixture: Mixture) -> TrainingClips:
    return TrainingClips(mixture, clip=CLIP, augment=AugmentConfig(), seed=5, views=2)


def test_each_set_is_shown_in_its_proportion_and_every_sample_once_in_each_epoch_of_its_set(
    weights: dict[str, float],
) -> None:
    mixture = open_source(weights)
    found = [locate_sample(mixture, seed=3, position=place) for place in range(MIXTURE_BLOCK)]
    for name, index in mixture.sets.items():
        keys = [one.key for one in found if one.index is index]
        assert len(keys) == MIXTURE_BLOCK * weights[name] / 4
        counts = Counter(keys)
        epochs = len(keys) // len(index)
        assert len(counts) == len(index) and set(counts.values()) <= {epochs, epochs + 1}
        assert set(counts) == {f"{name}/{index.sample(place).key}" for place in range(len(index))}


def test_the_data_sets_of_a_mixture_have_different_orders(synth_shards: Path) -> None:
    # The same videos under two names: with equal orders the two copies would be adjacent.
    index = open_index(synth_shards / "train")
    mixture = Mixture({"a": index, "b": index}, {"a": 1, "b": 1})
    found = [locate_sample(mixture, seed=3, position=place) for place in range(MIXTURE_BLOCK)]
    first = {name: {one.key[2:] for one in found if one.key[0] == name} for name in ("a", "b")}
    assert first["a"] == first["b"]  # all of them, many times over
    shown = {name: [one.key[2:] for one in found if one.key[0] == name] for name in ("a", "b")}
    assert shown["a"] != shown["b"]


def test_the_order_of_the_folders_has_no_effect(weights: dict[str, float]) -> None:
    one, other = open_source(weights), open_source(dict(reversed(weights.items())))
    keys = [
        [locate_sample(mixture, seed=3, position=place).key for place in range(200)]
        for mixture in (one, other)
    ]
    assert keys[0] == keys[1] and one.fingerprint == other.fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_is_read_like_a_single_set(weights: dict[str, float], workers: int) -> None:
    clips = clips_of(open_source(weights))
    whole = clips.batch(range(32))
    loaded = list(
        training_loader(
            clips, plan_batch(16, 4, 1, 2), rank=0, first_step=0, last_step=2, workers=workers, pin=False
        )
    )
    assert tuple(key for batch in loaded for key in batch.keys) == whole.keys
    assert torch.equal(torch.cat([batch.clip_BCTHW for batch in loaded]), whole.clip_BCTHW)
    assert whole.keys[0] == whole.keys[1] and not whole.skipped
    folders = {key.rpartition("/")[0] for key in whole.keys}
    assert folders == set(weights)


def test_a_clip_of_a_mixture_is_the_clip_of_its_own_set(weights: dict[str, float]) -> None:
    mixture = open_source(weights)
    batch = clips_of(mixture).batch(range(8))
    for row, key in enumerate(batch.keys):
        folder, _, own = key.rpartition("/")
        index = mixture.sets[folder]
        labels = {index.sample(place).key: index.sample(place).label for place in range(len(index))}
        assert batch.label_B[row] == labels[own]


def test_a_pickled_mixture_contains_no_index(weights: dict[str, float]) -> None:
    clips = clips_of(open_source(weights))
    pickled = pickle.dumps(clips)
    assert len(pickled) < 5000
    assert pickle.loads(pickled).batch(range(4)).keys == clips.batch(range(4)).keys


def test_epochs_are_counted_for_each_set(weights: dict[str, float], synth_shards: Path) -> None:
    mixture = open_source(weights)
    epochs = mixture.epochs(1000)
    assert epochs[str(synth_shards / "train")] == 750 / len(open_index(synth_shards / "train"))
    assert len(mixture) == sum(len(index) for index in mixture.sets.values())


def test_a_weight_too_small_for_the_mixture_is_refused(weights: dict[str, float]) -> None:
    tiny = {name: weight if weight > 1 else 1e-4 for name, weight in weights.items()}
    message = (
        r"data.mixture: each weight must be at least 1/1000 of all weights together, got 0.0001 of 3.0001"
    )
    with pytest.raises(ValueError, match=message):
        open_source(tiny)


def test_a_folder_that_is_named_twice_is_an_error(synth_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(synth_shards)
    folder = str(synth_shards / "train")
    for other in (folder, f"{folder}/", str(tmp_path / "link" / "train")):
        with pytest.raises(
            ValueError, match=r"data.concatenate: expected each folder once, got .* the same; fix"
        ):
            open_source([folder, other])
    with pytest.raises(ValueError, match=r"data.mixture: expected each folder once"):
        open_source({folder: 1, f"{folder}/": 2})


def test_a_folder_without_a_data_set_is_an_error(weights: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path / "nothing")):
        open_source({**weights, str(tmp_path / "nothing"): 1})
