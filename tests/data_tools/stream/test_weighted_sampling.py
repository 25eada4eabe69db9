"""Samples in proportion to a column, and several data sets read as one."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.data_tools.command import DataError
from kinemae.data_tools.conditions import select_rows
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream import weighted_sampling
from kinemae.data_tools.stream.mixture import Concatenation, Mixture, locate_sample
from kinemae.data_tools.stream.order import plan_batch, sample_at
from kinemae.data_tools.stream.weighted_sampling import SystematicSampling
from tests.label_index import label_index


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardIndex]:
    chance = np.random.default_rng(0)
    weights = {
        "a": chance.uniform(0, 4, 40) * (chance.uniform(size=40) > 0.2),
        "b": np.ones(7),
        "c": chance.exponential(1, 23),
    }
    return {
        name: label_index(
            tmp_path_factory.mktemp(name),
            labels=[0] * len(weight),
            extra={
                "weight": weight.tolist(),
                "number": list(range(len(weight))),
                "one": [1] * len(weight),
            },
        )
        for name, weight in weights.items()
    }


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 10**6),
    block=st.sampled_from([1, 5, 1024]),
)
def test_a_sample_comes_as_often_as_its_weight_says_rounded_down_or_up(
    sets: dict[str, ShardIndex], names: list[str], seed: int, epoch: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted_sampling, "_BLOCK", block)
        indexes = [sets[name] for name in names]
        sampling = SystematicSampling(indexes, "weight")
        samples = sum(map(len, indexes))
        found = [sampling.locate(seed, epoch, slot) for slot in range(samples)]
        counts = Counter(found)
        weight_R = np.concatenate([index.column("weight") for index in indexes])
        places = [(number, place) for number, index in enumerate(indexes) for place in range(len(index))]
        for place, expected in zip(places, weight_R * samples / weight_R.sum(), strict=True):
            assert np.floor(expected - 1e-6) <= counts[place] <= np.ceil(expected + 1e-6)
        assert found == sorted(found)  # neighbours in slots are neighbours in the data set


def test_over_many_epochs_the_counts_approach_the_weights(sets: dict[str, ShardIndex]) -> None:
    sampling = SystematicSampling([sets["c"]], "weight")
    epochs, samples = 200, len(sets["c"])
    counts = Counter(sampling.locate(3, epoch, slot)[1] for epoch in range(epochs) for slot in range(samples))
    weight_R = sets["c"].column("weight")
    expected_R = weight_R * samples / weight_R.sum()
    error_R = np.array([counts[place] for place in range(samples)]) / epochs - expected_R
    assert np.abs(error_R).max() < 3 / epochs * np.log2(epochs)


def test_equal_weights_give_the_order_without_weights(sets: dict[str, ShardIndex]) -> None:
    index = sets["b"]
    weighted = Concatenation({"b": index}, weight="weight")
    for position in range(30):
        assert locate_sample(weighted, seed=1, position=position) == locate_sample(
            index, seed=1, position=position
        )


@settings(max_examples=40, deadline=None)
@given(
    world=st.integers(1, 512),
    per_process=st.integers(1, 3),
    names=st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True),
    where=st.sampled_from([None, "number > 2", "weight > 0.5 and number != 5"]),
    weight=st.sampled_from([None, "weight"]),
    first_step=st.integers(0, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_an_epoch_shows_all_matching_samples_by_weight_on_any_number_of_processes(  # noqa: PLR0913
    sets: dict[str, ShardIndex],
    world: int,
    per_process: int,
    names: list[str],
    where: str | None,
    weight: str | None,
    first_step: int,
    seed: int,
) -> None:
    source = Concatenation({name: select_rows(sets[name], where) for name in names}, weight=weight)
    plan = plan_batch(world * per_process, 1, world, 1)
    steps = -(-2 * len(source) // plan.global_clips) + 1
    shown = [
        clip
        for step in range(first_step, first_step + steps)
        for rank in range(world)
        for at in range(plan.accumulation)
        for clip in plan.clip_range(step, at, rank)
    ]
    begin = -(-first_step * plan.global_clips // len(source)) * len(source)  # the first whole epoch
    epoch = sorted(clip for clip in shown if begin <= clip < begin + len(source))
    keys = Counter(locate_sample(source, seed=seed, position=clip).key for clip in epoch)
    prefix = {name: f"{name}/" if len(names) > 1 else "" for name in names}
    all_keys = [prefix[name] + key for name in names for key in source.sets[name].column("key")]
    weight_R = np.concatenate([source.sets[name].column(weight or "one") for name in names])
    for key, expected in zip(all_keys, weight_R * len(source) / weight_R.sum(), strict=True):
        assert np.floor(expected - 1e-6) <= keys[key] <= np.ceil(expected + 1e-6)
    assert keys.total() == len(source) and set(keys) <= set(all_keys)


@pytest.mark.filterwarnings("error")
def test_the_smallest_weights_are_sampled_in_proportion(tmp_path: Path) -> None:
    index = label_index(tmp_path, labels=[0] * 4, extra={"w": [3e-320, 1e-320, 0.0, 0.0]})
    sampling = SystematicSampling([index], "w")
    assert Counter(sampling.locate(0, 0, slot)[1] for slot in range(4)) == {0: 3, 1: 1}


def test_weights_apply_inside_each_set_of_a_mixture(sets: dict[str, ShardIndex]) -> None:
    mixture = Mixture({"a": sets["a"], "b": sets["b"]}, {"a": 1, "b": 1}, weight="weight")
    keys = [locate_sample(mixture, seed=2, position=place).key for place in range(2000)]
    counts = Counter(keys)
    zero = {f"a/key-{place}" for place in np.flatnonzero(sets["a"].column("weight") == 0)}
    assert zero and not zero & set(counts)
    assert sum(count for key, count in counts.items() if key[0] == "b") == 1000


def test_a_pickled_weighting_contains_no_column(tmp_path: Path) -> None:
    index = label_index(tmp_path, labels=[0] * 5000, extra={"weight": [1.0] * 2500 + [3.0] * 2500})
    source = Concatenation({"x": index}, weight="weight")
    pickled = pickle.dumps(source)
    assert len(pickled) < 4000
    again = pickle.loads(pickled)
    assert [again.locate(1, 2, slot) for slot in range(9)] == [source.locate(1, 2, slot) for slot in range(9)]
    assert sample_at(1, 0, 0, 5000) == sample_at(1, 0, 0, 5000)


@pytest.mark.parametrize(
    "values, kind, message",
    [
        ([1.0, None], DataError, r"data.weight=w: .*, got nan for the sample key-1 .*data.where='w >= 0'"),
        ([-1.0, 1.0], DataError, "got -1.0 for the sample key-0"),
        ([1.0, float("nan")], DataError, "got nan for the sample key-1"),
        ([float("inf"), 1.0], DataError, "got inf for the sample key-0"),
        ([0, 0], DataError, "data.weight=w: expected a weight above 0 in .*, got none"),
        (["a", "b"], ValueError, "data.weight: expected a column of numbers of .*, got the text 'w'"),
    ],
)  # fmt: skip
def test_a_column_without_weights_is_an_error(
    tmp_path: Path, values: list[object], kind: type, message: str
) -> None:
    index = label_index(tmp_path, labels=[0, 0], extra={"w": values})
    with pytest.raises(kind, match=message):
        SystematicSampling([index], "w")
    with pytest.raises(ValueError, match=r"expected columns of .*, got 'weigth'"):
        SystematicSampling([index], "weigth")
