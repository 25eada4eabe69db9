"""Orders: each sample once per epoch in any topology, and neighbours together in block order."""

from collections import Counter
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.components import Component, component_names
from kinemae.data_tools.orders.base import Order, OrderFacts, build_order
from kinemae.data_tools.orders.blocks import BlockOrder
from kinemae.data_tools.stream.order import place_of, plan_batch, process_counts, sample_at
from tests.default_components import build_default
from tests.seeds import examples

FOLDER = "kinemae.data_tools.orders"


def facts_of(samples: int, step: int) -> OrderFacts:
    return OrderFacts(samples=samples, bytes_per_sample=1e6, videos_per_step=step)


def epoch_of(order: Order, facts: OrderFacts, epoch: int, seed: int = 0) -> list[int]:
    return [order.position(seed, epoch, i, facts) for i in range(facts.samples)]


@st.composite
def block_runs(draw: st.DrawFn, most: int = 300) -> tuple[BlockOrder, OrderFacts]:
    step = draw(st.integers(1, 48))
    divisors = [None, *(each for each in range(1, step + 1) if step % each == 0)]
    order = BlockOrder(
        block_mb=draw(st.sampled_from((1.0, 2.0, 5.0, 20.0))),
        window=draw(st.sampled_from((2, 3, 8, 64))),
        partitions=draw(st.sampled_from(divisors)),
    )
    return order, facts_of(draw(st.integers(1, most)), step)


@examples(80)
@given(run=block_runs(), epoch=st.integers(0, 10**6), seed=st.integers(0, 2**31))
def test_an_epoch_of_blocks_has_every_sample_once(run, epoch, seed):
    order, facts = run
    order.check(facts)
    assert sorted(epoch_of(order, facts, epoch, seed)) == list(range(facts.samples))


@pytest.mark.parametrize("name", component_names(FOLDER))
def test_every_order_is_a_permutation_that_depends_on_seed_and_epoch(name):
    order, facts = build_default(FOLDER, name, Order), facts_of(500, 4)
    epochs = [epoch_of(order, facts, epoch, seed) for epoch in (0, 1) for seed in (0, 1)]
    assert all(sorted(each) == list(range(500)) for each in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert epoch_of(order, facts, 0, 0) == epochs[0]


def test_random_order_is_a_permutation_of_the_whole_data_set():
    order = build_order(Component(name="random"))
    assert epoch_of(order, facts_of(99, 7), 3, seed=5) == [sample_at(5, 3, i, 99) for i in range(99)]


@examples(40)
@given(run=block_runs(), topologies=st.lists(st.tuples(st.integers(1, 512), st.integers(1, 9)), max_size=4))
def test_restarts_with_other_processes_read_each_sample_once_per_epoch(run, topologies):
    order, facts = run
    worlds = [(world if facts.videos_per_step % world == 0 else 1, clips) for world, clips in topologies]
    steps = -(-3 * facts.samples // facts.videos_per_step)  # at least three epochs
    borders = [number * steps // (len(worlds) + 1) for number in range(len(worlds) + 2)]
    read: list[tuple[int, int]] = []
    for begin, end, (world, clips) in zip(borders, borders[1:], [(1, 64), *worlds], strict=False):
        plan = plan_batch(facts.videos_per_step, clips, world, 1)
        parts = range(plan.accumulation)
        for step in range(begin, end):
            for rank in range(world):
                positions = [position for part in parts for position in plan.clip_range(step, part, rank)]
                read += [divmod(position, facts.samples) for position in positions]
    shown = Counter((epoch, order.position(3, epoch, i, facts)) for epoch, i in read if epoch < 3)
    assert shown == Counter({(epoch, i): 1 for epoch in range(3) for i in range(facts.samples)})


@pytest.mark.parametrize("nodes, ranks, clips", [(1, 8, 2), (2, 4, 8), (4, 2, 1), (8, 1, 64), (8, 4, 1)])
def test_a_node_reads_the_same_partitions_in_every_epoch(nodes, ranks, clips):
    order, facts = BlockOrder(block_mb=4, window=16, partitions=8), facts_of(1100, 64)
    plan = plan_batch(64, clips, nodes * ranks, 1)
    part = -(-1100 // 8)
    for node in range(nodes):
        outside, count = 0, 0
        for step in range(2 * 1100 // 64):
            for rank in range(node * ranks, (node + 1) * ranks):
                for accumulated in range(plan.accumulation):
                    for position in plan.clip_range(step, accumulated, rank):
                        epoch, i = divmod(position, 1100)
                        partition = min(order.position(0, epoch, i, facts) // part, 7)
                        outside += not node * 8 // nodes <= partition < (node + 1) * 8 // nodes
                        count += 1
        assert outside <= count * 64 * 2 / 1100  # only in steps that two epochs share


@examples(60)
@given(run=block_runs())
def test_blocks_divide_the_data_set(run):
    order, facts = run
    blocks = {}
    for position in range(facts.samples):
        positions = order.block(position, facts).positions
        assert position in positions
        blocks[positions.start] = positions
    begins = sorted(blocks)
    assert begins == [0, *accumulate(len(blocks[begin]) for begin in begins)][:-1]
    assert sum(map(len, blocks.values())) == facts.samples


def test_few_blocks_are_in_use_at_a_time():
    order, facts = BlockOrder(block_mb=5, window=8, partitions=2), facts_of(2000, 4)
    shown = epoch_of(order, facts, 0)
    blocks = [order.block(position, facts).positions.start for position in shown]
    window = 2 * 4 * 5  # samples: two partitions with four blocks of five samples
    counts = [len(set(blocks[begin : begin + window])) for begin in range(len(blocks) - window)]
    assert max(counts) <= 2 * 2 * 4 and sum(counts) / len(counts) < 14  # at most two windows of a partition


def test_the_samples_of_a_window_are_mixed():
    order, facts = BlockOrder(block_mb=10, window=8, partitions=1), facts_of(1000, 1)
    shown = epoch_of(order, facts, 0)
    steps = [abs(one - other) for one, other in pairwise(shown)]
    assert sum(step == 1 for step in steps) < 50  # 23 of 1000 by chance
    assert sorted(shown[:80]) != shown[:80]


@examples(100)
@given(samples=st.integers(1, 2**40), seed=st.integers(0, 99), data=st.data())
def test_the_place_of_a_sample_is_the_inverse_of_the_order(samples, seed, data):
    place = data.draw(st.integers(0, samples - 1))
    assert place_of(seed, 2, sample_at(seed, 2, place, samples), samples) == place


@pytest.mark.parametrize(
    "args, message",
    [
        ({"block_mb": 0.0}, "data.order.args.block_mb must be above 0, got 0.0"),
        ({"window": 1}, "data.order.args.window must be at least 2, got 1"),
        ({"partitions": 0}, "data.order.args.partitions must be null, or an integer from 1 on, got 0"),
        ({"partitions": 2.5}, "data.order.args.partitions must be null, or an integer from 1 on, got 2.5"),
        ({"blocks_mb": 64}, "data.order.args: blocks has no argument 'blocks_mb'; did you mean 'block_mb'"),
    ],
)
def test_a_wrong_argument_is_named(args, message):
    with pytest.raises(ValueError, match=message):
        build_order(Component(name="blocks", args=args))


def test_an_unknown_order_and_partitions_that_do_not_divide_a_step_are_errors():
    with pytest.raises(ValueError, match=r"data.order.name: no order named 'block'; did you mean 'blocks'\?"):
        build_order(Component(name="block"))
    with pytest.raises(
        ValueError,
        match=r"data.order.args.partitions: expected a divisor of the 12 videos of a step \(batch.*got 8; "
        r"fix: data.order.args.partitions=6, or null",
    ):
        BlockOrder(partitions=8).check(facts_of(100, 12))


def test_the_numbers_of_processes_that_can_share_a_batch_are_listed() -> None:
    assert process_counts(lambda world: plan_batch(24, 8, world, 1), 9) == [1, 2, 3, 4, 6, 8]
    assert process_counts(lambda world: plan_batch(24, 8, world, 4), 9) == [1, 2, 3, 6]
