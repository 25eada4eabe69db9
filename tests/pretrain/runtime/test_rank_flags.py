"""All processes read the same flags at the same step, with two requests per process about once a second."""

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.pretrain.runtime import rank_flags
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.rank_flags import Flags, RankFlags
from tests.checkpointing import PlainEngine, checkpoints

WORLD = 64
NOTHING = Flags()


class CountingStore:
    """A store that counts its requests."""

    def __init__(self) -> None:
        self.store = dist.HashStore()
        self.requests = 0

    def add(self, key: str, amount: int) -> int:
        self.requests += 1
        return self.store.add(key, amount)

    def delete_key(self, key: str) -> bool:
        self.requests += 1
        return self.store.delete_key(key)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rank_flags, "monotonic", clock)
    return clock


def ignore(phase: str) -> None:
    """Take a phase."""


def new_flags(store: rank_flags.Store, *, world: int, interval_s: float = 0.0) -> RankFlags:
    return RankFlags(store, world=world, on_phase=ignore, interval_s=interval_s)


def end_step(ranks: list[RankFlags], *, stop: bool = False, is_writing: bool = False) -> Flags:
    """End a step of all ranks, of which the last one posts the flags; return what all of them read."""
    found = {rank.read() for rank in ranks}
    for number, rank in enumerate(ranks):
        is_last = number == len(ranks) - 1
        rank.post(stop=stop and is_last, is_writing=is_writing and is_last)
    (flags,) = found
    return flags


def test_a_single_process_reads_its_flags_at_the_next_step() -> None:
    flags = new_flags(dist.HashStore(), world=1, interval_s=100.0)
    found = []
    for stop, is_writing in ((False, True), (False, False), (True, True), (False, False)):
        found.append(flags.read())
        flags.post(stop=stop, is_writing=is_writing)
    assert found == [NOTHING, Flags(False, True), Flags(False, False), Flags(True, True)]


@pytest.mark.parametrize("requests", [(True, False), (False, True), (True, True)])
def test_a_request_of_any_process_stops_all(requests: tuple[bool, bool]) -> None:
    store = dist.HashStore()
    ranks = [new_flags(store, world=2) for _ in requests]
    for rank, stop in zip(ranks, requests, strict=True):
        assert rank.read() == NOTHING
        rank.post(stop=stop, is_writing=False)
    assert {rank.read() for rank in ranks} == {Flags(stop=True, is_writing=False)}


@pytest.mark.parametrize(
    ("step_s", "expected_gap"), [(0.001, 1000), (0.04, 25), (0.4, 2), (0.7, 1), (5.0, 1)]
)
def test_rounds_are_a_second_or_a_step_apart(clock: Clock, step_s: float, expected_gap: int) -> None:
    store = dist.HashStore()
    ranks = [new_flags(store, world=2, interval_s=1.0) for _ in range(2)]
    rounds = []
    for step in range(6000):
        if end_step(ranks) != NOTHING:  # between two rounds a process counts as writing
            rounds.append(step)
        clock.now_s += step_s
    gaps = [after - before for before, after in pairwise(rounds)]
    assert set(gaps[15:]) <= {expected_gap - 1, expected_gap} - {0}
    assert all(after <= 2 * before for before, after in pairwise(gaps))


def test_a_save_that_begins_between_two_rounds_does_not_count_as_written(
    clock: Clock, tmp_path: Path
) -> None:
    store, saver, engine = dist.HashStore(), checkpoints(tmp_path), PlainEngine()
    ranks = [new_flags(store, world=2, interval_s=1.0) for _ in range(2)]
    saver.attempt = "one"
    pipe = saver.folder / "step-00000055.one.partial" / "shard-00000-of-00001.safetensors"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)  # who writes to it waits for a reader
    found = []
    for step in range(120):
        if step == 90:
            pipe.read_bytes()
            while not saver.is_written():
                time.sleep(0.001)
        if step == 55:  # ten steps apart, rounds are at other steps
            saver.save(engine, RunState(step=step))
        flags = end_step(ranks, is_writing=not saver.is_written())
        found += [step] if saver.is_saving and not flags.is_writing else []
        clock.now_s += 0.1
    assert found and found[0] > 90


def test_steps_that_become_slower_bring_the_next_rounds_closer(clock: Clock) -> None:
    store = dist.HashStore()
    ranks = [new_flags(store, world=2, interval_s=1.0) for _ in range(2)]
    rounds = []
    for step in range(400):
        if end_step(ranks) != NOTHING:
            rounds.append(step)
        clock.now_s += 0.04 if step < 200 else 4.0
    slow = [step for step in rounds if step >= 200]
    assert slow[0] < 226 and slow[1] < 251  # these steps were known before
    assert slow[2:] == list(range(slow[2], 400))


@pytest.mark.parametrize("world", [2, 64])
def test_a_round_costs_two_requests_per_process_and_the_store_does_not_grow(world: int) -> None:
    store = CountingStore()
    ranks = [new_flags(store, world=world) for _ in range(world)]
    for _ in range(3):
        end_step(ranks, stop=True, is_writing=True)
    keys, before = store.store.num_keys(), store.requests
    for _ in range(50):
        end_step(ranks)
    assert store.store.num_keys() <= keys <= 2 * len(rank_flags._KEYS)
    assert store.requests - before == 50 * (2 * world + 3 + len(rank_flags._KEYS))


def test_a_round_without_posts_takes_place_at_the_next_step() -> None:
    store = dist.HashStore()
    ranks = [new_flags(store, world=2) for _ in range(2)]
    assert end_step(ranks) == NOTHING
    assert {rank.read() for rank in ranks} == {Flags(False, False)}  # then a rollback: nothing is posted
    assert end_step(ranks, stop=True) == NOTHING
    assert end_step(ranks) == Flags(True, False)


def test_a_process_that_does_not_post_is_counted_in_the_phase_of_the_others() -> None:
    phases: list[str] = []

    class EnoughError(Exception):
        """Ends the wait, as the watchdog would."""

    def on_phase(phase: str) -> None:
        phases.append(phase)
        if len(phases) == 6:
            raise EnoughError

    store = dist.HashStore()
    survivors = [RankFlags(store, world=3, on_phase=on_phase), new_flags(store, world=3)]
    for survivor in survivors:
        survivor.read()
        survivor.post(stop=False, is_writing=False)
    with pytest.raises(EnoughError):
        survivors[0].read()
    assert phases[-1] == "waiting for stop flags: 2 of 3 processes have sent theirs"


def run_ranks(step: Callable[[RankFlags, int, int], bool], *, interval_s: float) -> None:
    """Run steps of all ranks in threads until `step` returns false for them."""
    store = dist.HashStore()

    def run(rank: int) -> None:
        flags = new_flags(store, world=WORLD, interval_s=interval_s)
        number = 0
        while step(flags, rank, number):
            number += 1

    with ThreadPoolExecutor(WORLD) as pool:
        list(pool.map(run, range(WORLD)))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    signalled=st.integers(0, WORLD - 1),
    signal_step=st.integers(0, 30),
    interval_s=st.sampled_from([0.0, 0.01, 0.05]),
    is_synchronous=st.booleans(),
)
def test_all_ranks_stop_at_the_same_step(
    seed: int, signalled: int, signal_step: int, interval_s: float, is_synchronous: bool
) -> None:
    gradients = threading.Barrier(WORLD)
    results: list[list[tuple[int, Flags]]] = [[] for _ in range(WORLD)]

    def step(flags: RankFlags, rank: int, number: int) -> bool:
        if rank % 16 == seed % 16:
            time.sleep(random.Random(f"{seed} {rank} {number}").random() * 0.002)
        if is_synchronous:
            gradients.wait()
        found = flags.read()
        if found != NOTHING:
            results[rank].append((number, found))
        has_signal = rank == signalled and number >= signal_step
        flags.post(stop=has_signal, is_writing=False)
        return not found.stop

    run_ranks(step, interval_s=interval_s)

    first, *others = results
    assert all(other == first for other in others)
    *running, last = first
    assert last[1] == Flags(stop=True, is_writing=False) and {found for _, found in running} <= {
        Flags(False, False)
    }
    rounds = [number for number, _ in first]
    assert last[0] > signal_step and sum(number > signal_step for number in rounds) <= 2
