"""Mixtures of data sets: proportions and separate epochs."""

import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import COLUMNS, Sample, Shard, ShardIndex, index_of_table, open_index
from kinemae.data_tools.index_schema import shard_table
from kinemae.data_tools.orders.base import SampleOrder
from kinemae.data_tools.orders.blocks import BlockOrder
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips, training_loader
from kinemae.data_tools.stream.mixture import Mixture, locate_sample, open_source
from kinemae.data_tools.stream.order import MIXTURE_BLOCK, mixture_position, plan_batch
from kinemae.data_tools.stream.training_clips import sample_order
from tests.seeds import examples

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


@st.composite
def block_mixtures(draw: st.DrawFn) -> tuple[Mixture, tuple[SampleOrder, ...]]:
    """Two or three data sets of some sizes, without videos, and the orders of their blocks."""
    sizes = draw(st.lists(st.integers(3, 400), min_size=2, max_size=3))
    sets = {f"set {number}": set_of(size) for number, size in enumerate(sizes)}
    weights = {name: draw(st.integers(1, 5)) for name in sets}
    order = BlockOrder(block_mb=draw(st.sampled_from((1.0, 5.0, 20.0))), window=draw(st.sampled_from((2, 8))))
    mixture = Mixture(sets, weights)
    found = sample_order(order, mixture, 12)
    assert isinstance(found, tuple)
    return mixture, found


def set_of(size: int) -> ShardIndex:
    """A data set in memory with samples of a megabyte."""
    row = vars(Sample(
        key="", shard=0, offset=0, length=1_000_000, crc32=0, frames=2, duration_s=1.0, width=4, height=4,
        codec="h264", label=0, name="",
    ))  # fmt: skip
    rows = [{**row, "key": str(number), "offset": number * 1_000_000} for number in range(size)]
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    index = index_of_table(location("memory"), table, ["x"], f"of {size}")
    index.shards = shard_table([Shard(name="x.tar", samples=size, bytes=size * 1_000_000, sha256="")])
    return index


@examples(8)
@given(
    run=block_mixtures(),
    seed=st.integers(0, 2**31),
    topologies=st.lists(
        st.tuples(st.sampled_from((1, 2, 3, 4, 6)), st.integers(1, 9)), min_size=1, max_size=4
    ),
)
def test_a_mixture_of_blocks_has_every_sample_once_per_epoch_after_any_restart(
    run: tuple[Mixture, tuple[SampleOrder, ...]], seed: int, topologies: list[tuple[int, int]]
) -> None:
    mixture, order = run
    plain = open_positions(mixture, seed)
    steps, read = len(plain) // 12, []
    borders = [number * steps // len(topologies) for number in range(len(topologies) + 1)]
    for begin, end, (world, clips) in zip(borders, borders[1:], topologies, strict=False):
        plan = plan_batch(12, clips, world, 1)
        for step in range(begin, end):
            for rank in range(world):
                for part in range(plan.accumulation):
                    read += [
                        locate_sample(mixture, seed=seed, position=place, order=order).key
                        for place in plan.clip_range(step, part, rank)
                    ]
    seen: dict[tuple[str, int], list[str]] = {}
    quotas = dict(zip(mixture.sets, mixture.quotas, strict=True))
    for key, (name, epoch) in zip(read, plain, strict=False):
        seen.setdefault((name, epoch), []).append(key)
        assert key.startswith(f"{name}/")  # the proportions of random order
    for (name, epoch), keys in seen.items():
        assert len(set(keys)) == len(keys)
        if epoch < 3 * quotas[name] // len(mixture.sets[name]):  # the epoch is over
            assert len(keys) == len(mixture.sets[name])


def open_positions(mixture: Mixture, seed: int) -> list[tuple[str, int]]:
    """The data set and its epoch at each position of three blocks of a mixture, 250 steps."""
    names = list(mixture.sets)
    found = [
        mixture_position(seed, place, mixture.quotas, mixture.sizes) for place in range(3 * MIXTURE_BLOCK)
    ]
    return [(names[number], epoch) for number, epoch, _ in found]


def test_few_blocks_of_a_mixture_are_in_use_at_a_time() -> None:
    mixture = Mixture({"a": set_of(5000), "b": set_of(2000)}, {"a": 3, "b": 1})
    order = sample_order(BlockOrder(block_mb=100.0, window=4), mixture, 12)
    blocks: dict[str, list[int]] = {"a": [], "b": []}
    for place in range(2 * MIXTURE_BLOCK):
        found = locate_sample(mixture, seed=3, position=place, order=order)
        assert found.block is not None and found.position in found.block.positions
        assert found.block.window_bytes == 2 * 4 * 100_000_000
        blocks[found.key[0]].append(found.block.positions.start)
    for used, samples in (blocks["a"], 1500), (blocks["b"], 500):
        assert len(used) == samples
        for block in set(used):
            places = [place for place, each in enumerate(used) if each == block]
            assert places[-1] - places[0] < 2 * 400 + MIXTURE_BLOCK * samples // 2000


def test_partitions_need_a_single_data_set() -> None:
    mixture = Mixture({"a": set_of(5), "b": set_of(9)}, {"a": 3, "b": 1})
    with pytest.raises(
        ValueError, match=r"partitions: expected a divisor of the 1 videos of a step .* got 2"
    ):
        sample_order(BlockOrder(partitions=2), mixture, 12)
