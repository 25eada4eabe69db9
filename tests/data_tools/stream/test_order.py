"""The order of the run: every sample once an epoch, whoever reads it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.stream.order import clip_place, plan_batch, sample_at


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), samples=st.integers(1, 700))
def test_an_epoch_shows_every_sample_once(seed, epoch, samples):
    assert sorted(sample_at(seed, epoch, i, samples) for i in range(samples)) == list(range(samples))


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(2**33, 2**60), places=st.sets(st.integers(0, 2**33 - 1), min_size=20, max_size=20))
def test_places_of_a_huge_data_set_keep_apart(samples, places):
    shown = {sample_at(0, 0, i, samples) for i in places}
    assert len(shown) == len(places) and all(0 <= sample < samples for sample in shown)


def test_epochs_and_seeds_give_other_orders():
    orders = [
        tuple(sample_at(seed, epoch, i, 50) for i in range(50)) for seed in range(3) for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_each_sample_comes_equally_often_to_each_place():
    counts = [[0] * 10 for _ in range(10)]
    for epoch in range(4000):
        for i in range(10):
            counts[i][sample_at(7, epoch, i, 10)] += 1
    statistic = sum((count - 400) ** 2 / 400 for row in counts for count in row)
    assert statistic < 150  # chi-square with 81 degrees of freedom: less than one in 100,000 lies above


def test_a_place_outside_the_epoch_is_refused():
    with pytest.raises(ValueError, match="5 samples has the places 0 to 4, asked for 5"):
        sample_at(0, 0, 5, 5)


def test_views_of_a_video_stand_side_by_side():
    assert [clip_place(clip, 3, 2) for clip in range(5, 9)] == [(0, 2, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)]


@given(
    world=st.sampled_from([1, 2, 3, 4, 8]),
    views=st.integers(1, 4),
    videos=st.integers(1, 12),
    room=st.integers(1, 40),
    step=st.integers(0, 10**6),
)
def test_every_topology_takes_the_same_clips_of_a_step(world, views, videos, room, step):
    global_clips = world * views * videos
    plan = plan_batch(global_clips, max(room, views), world, views)
    assert plan.micro_clips * plan.accumulation * world == global_clips
    assert plan.micro_clips <= max(room, views) and plan.micro_clips % views == 0
    ranges = [plan.clip_range(step, part, rank) for part in range(plan.accumulation) for rank in range(world)]
    taken = [clip for clips in ranges for clip in clips]
    assert taken == list(range(step * global_clips, (step + 1) * global_clips))


def test_the_smallest_accumulation_is_chosen():
    assert plan_batch(64, 12, 2, 2).accumulation == 4  # 32 in micro-batches of 8; 16 are too many


@pytest.mark.parametrize("numbers", [(10, 8, 4, 1), (8, 1, 2, 2), (6, 6, 2, 2), (2, 8, 4, 1)])
def test_a_batch_that_does_not_divide_names_all_numbers(numbers):
    global_clips, clips_per_device, world, views = numbers
    message = (
        f"global_clips={global_clips} .* {world} processes .*"
        f"clips_per_device={clips_per_device} .*views_per_video={views}"
    )
    with pytest.raises(ValueError, match=message):
        plan_batch(global_clips, clips_per_device, world, views)
