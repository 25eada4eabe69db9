"""Sample order: every sample once per epoch, in any topology."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.stream.order import (
    MIXTURE_BLOCK,
    mixture_position,
    mixture_quotas,
    plan_batch,
    sample_at,
)
from tests.seeds import examples


@examples(60)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), samples=st.integers(1, 700))
def test_an_epoch_shows_every_sample_once(seed, epoch, samples):
    assert sorted(sample_at(seed, epoch, i, samples) for i in range(samples)) == list(range(samples))


@examples(30)
@given(samples=st.integers(2**33, 2**60), places=st.sets(st.integers(0, 2**33 - 1), min_size=20, max_size=20))
def test_positions_of_a_huge_data_set_give_different_samples(samples, places):
    shown = {sample_at(0, 0, i, samples) for i in places}
    assert len(shown) == len(places) and all(0 <= sample < samples for sample in shown)


def test_epochs_and_seeds_give_other_orders():
    orders = [
        tuple(sample_at(seed, epoch, i, 50) for i in range(50)) for seed in range(3) for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_each_sample_has_each_position_equally_often():
    counts = [[0] * 10 for _ in range(10)]
    for epoch in range(4000):
        for i in range(10):
            counts[i][sample_at(7, epoch, i, 10)] += 1
    statistic = sum((count - 400) ** 2 / 400 for row in counts for count in row)
    assert statistic < 150  # chi-square with 81 degrees of freedom: one in 100,000 is above


def test_a_position_outside_the_epoch_is_an_error():
    with pytest.raises(ValueError, match="5 samples has the positions 0 to 4, got 5"):
        sample_at(0, 0, 5, 5)


@dataclass(frozen=True)
class Run:
    """A run that is interrupted and resumed with other numbers of processes.

    Attributes:
        topologies: for each part of the run: steps, processes, clips per micro-batch.
    """

    global_clips: int
    views: int
    topologies: tuple[tuple[int, int, int], ...]


@st.composite
def runs(draw: st.DrawFn, most_videos: int = 64, most_steps: int = 4) -> Run:
    # Few random numbers, so that thousands of runs take seconds.
    views = draw(st.sampled_from((1, 1, 2, 3)))
    videos = draw(st.integers(1, most_videos))
    worlds = [world for world in range(1, videos + 1) if videos % world == 0]
    stretch = st.tuples(st.integers(1, most_steps), st.sampled_from(worlds), st.integers(1, 40))
    stretches = draw(st.lists(stretch, min_size=1, max_size=4))
    topologies = tuple((steps, world, max(slots, views)) for steps, world, slots in stretches)
    return Run(global_clips=videos * views, views=views, topologies=topologies)


def ranges_as_read(run: Run) -> list[range]:
    """The clips of every micro-batch, by step, process and accumulation index."""
    begin, ranges = 0, []
    for length, world, slots in run.topologies:
        plan = plan_batch(run.global_clips, slots, world, run.views)
        steps, parts, ranks = range(begin, begin + length), range(plan.accumulation), range(world)
        ranges += [plan.clip_range(step, part, rank) for step in steps for rank in ranks for part in parts]
        begin += length
    return ranges


def clips_as_read(run: Run) -> list[int]:
    return [clip for clips in ranges_as_read(run) for clip in clips]


@pytest.mark.slow
@examples(600)
@given(run=runs(most_videos=512))
def test_topologies_and_restarts_do_not_change_the_sequence_of_clips(run: Run) -> None:
    ranges = ranges_as_read(run)
    steps = sum(length for length, _, _ in run.topologies)
    assert [clips.start for clips in ranges] == [0, *(clips.stop for clips in ranges[:-1])]
    assert ranges[-1].stop == steps * run.global_clips
    assert all(len(clips) and len(clips) % run.views == 0 for clips in ranges)


@examples(300)
@given(
    world=st.integers(1, 512), share=st.integers(1, 12), slots=st.integers(1, 12), step=st.integers(0, 10**9)
)
def test_any_number_of_processes_reads_the_same_clips_of_a_step(
    world: int, share: int, slots: int, step: int
) -> None:
    plan = plan_batch(world * share, slots, world, 1)
    assert plan.micro_clips <= slots and plan.micro_clips * plan.accumulation == share
    ranges = [plan.clip_range(step, part, rank) for rank in range(world) for part in range(plan.accumulation)]
    begin = step * world * share
    assert [clips.start for clips in ranges] == list(range(begin, begin + world * share, plan.micro_clips))
    assert {len(clips) for clips in ranges} == {plan.micro_clips}


@pytest.mark.slow
@examples(500)
@given(run=runs(most_videos=24), samples=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_each_epoch_shows_each_sample_once_with_all_its_views_in_any_topology(
    run: Run, samples: int, seed: int
) -> None:
    shown: dict[int, list[tuple[int, int]]] = {}
    for clip in clips_as_read(run):
        (epoch, i), view = divmod(clip // run.views, samples), clip % run.views
        shown.setdefault(epoch, []).append((sample_at(seed, epoch, i, samples), view))
    last = max(shown)
    for epoch, pairs in shown.items():  # the last one may be cut short anywhere
        assert len(set(pairs)) == len(pairs)
        assert epoch == last or len(pairs) == samples * run.views


weights_of_sets = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@examples(500)
@given(weights=st.lists(st.floats(0.01, 5.0), min_size=1, max_size=8), block=st.integers(500, 2000))
def test_quotas_fill_a_block_and_differ_from_the_weights_by_less_than_one(
    weights: list[float], block: int
) -> None:
    quotas = mixture_quotas(weights, 10 * block)
    assert sum(quotas) == 10 * block
    for weight, quota in zip(weights, quotas, strict=True):
        assert abs(quota - weight / sum(weights) * 10 * block) < 1.0 + 1e-6


def test_quotas_of_round_fractions_are_exact_and_a_remainder_goes_to_the_first() -> None:
    assert mixture_quotas([0.7, 0.2, 0.1]) == (700, 200, 100)
    assert mixture_quotas([7, 2, 1]) == (700, 200, 100)
    assert mixture_quotas([1, 1, 1]) == (334, 333, 333)
    assert mixture_quotas([3.0]) == (MIXTURE_BLOCK,)


def test_a_weight_without_a_position_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"must be at least 1/1000 of all weights together, got 0\.001 of 5\.001"
    ):
        mixture_quotas([5, 0.001])


@examples(500)
@given(
    quotas=weights_of_sets,
    sizes=st.lists(st.integers(1, 30), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
@pytest.mark.slow
def test_a_mixture_keeps_its_quotas_in_each_block_and_each_set_its_own_epochs(
    quotas: list[int], sizes: list[int], seed: int
) -> None:
    block, blocks = sum(quotas), 3
    sets = tuple(sizes[: len(quotas)])
    places = [mixture_position(seed, place, tuple(quotas), sets) for place in range(block * blocks)]
    for begin in range(0, len(places), block):
        counts = Counter(number for number, _, _ in places[begin : begin + block])
        assert [counts[number] for number in range(len(quotas))] == quotas
    for number, (quota, size) in enumerate(zip(quotas, sets, strict=True)):
        own = sorted((epoch, i) for which, epoch, i in places if which == number)
        assert own == [divmod(n, size) for n in range(quota * blocks)]


@examples(300)
@given(run=runs(most_videos=24), quotas=weights_of_sets, seed=st.integers(0, 99))
@pytest.mark.slow
def test_a_mixture_is_the_same_in_any_topology(run: Run, quotas: list[int], seed: int) -> None:
    sizes = tuple(range(3, 3 + len(quotas)))
    read = [clip // run.views for clip in clips_as_read(run)]
    whole = [mixture_position(seed, place, tuple(quotas), sizes) for place in range(max(read) + 1)]
    assert [mixture_position(seed, place, tuple(quotas), sizes) for place in read] == [
        whole[place] for place in read
    ]
    assert len(set(whole)) == len(whole)


def test_the_sets_of_a_mixture_come_in_another_order_in_each_block_and_under_each_seed() -> None:
    orders = {
        tuple(
            mixture_position(seed, place, (5, 3, 2), (9, 9, 9))[0]
            for place in range(block * 10, block * 10 + 10)
        )
        for seed in range(3)
        for block in range(3)
    }
    assert len(orders) == 9


def test_the_smallest_accumulation_is_chosen():
    assert plan_batch(64, 12, 2, 2).accumulation == 4  # 32 in micro-batches of 8; 16 are too many


@pytest.mark.parametrize("numbers", [(10, 8, 4, 1), (8, 1, 2, 2), (6, 6, 2, 2), (2, 8, 4, 1)])
def test_a_batch_that_does_not_divide_is_an_error_with_all_numbers(numbers):
    global_clips, clips_per_device, world, views = numbers
    message = (
        f"global_clips={global_clips} .* {world} processes .*"
        f"clips_per_device={clips_per_device} .*views_per_video={views}"
    )
    with pytest.raises(ValueError, match=message):
        plan_batch(global_clips, clips_per_device, world, views)
