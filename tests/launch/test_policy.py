"""The restart policy: what follows an attempt, and when a scheduler starts a run again."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.launch.supervisor.policy import (
    FAILED,
    FINISHED,
    STOPPED,
    TOO_FEW_NODES,
    AttemptEnd,
    History,
    NodeEnd,
    decide,
    end_of,
    lost_node,
    requeue,
)

SAVED = History(step=20)


def failure(rank: int, code: int, time_s: float, *, is_victim: bool = False) -> dict[str, Any]:
    return {"rank": rank, "code": code, "time_s": time_s, "is_victim": is_victim, "host": f"n{rank}"}


@pytest.mark.parametrize(
    ("end", "code", "cause"),
    [
        (AttemptEnd(code=0, step=20), 0, FINISHED),
        (AttemptEnd(code=75, step=21), 75, STOPPED),
        (AttemptEnd(code=143, step=20, is_stop=True), 143, STOPPED),
        (AttemptEnd(code=1, step=20, is_stop=True), 1, STOPPED),
        *((AttemptEnd(code=code, step=20), code, FAILED) for code in (2, 3, 4, 6)),
        *((AttemptEnd(code=code, step=20), None, "") for code in (1, 5, 134, 137, 138, 139, 143)),
    ],
)
def test_crashes_restart_and_other_ends_are_final(end: AttemptEnd, code: int | None, cause: str) -> None:
    decision = decide(SAVED, end, max_restarts=3)
    assert (decision.code, decision.cause) == (code, cause)


@given(steps=st.lists(st.integers(0, 3), max_size=30), most=st.integers(0, 4))
def test_a_run_gives_up_after_max_restarts_without_a_new_checkpoint(steps: list[int], most: int) -> None:
    history, step, in_a_row = History(), None, 0
    for grown in steps:
        step = None if step is None and not grown else (step or 0) + grown
        in_a_row = 1 if grown else in_a_row + 1
        decision = decide(history, AttemptEnd(code=137, step=step), most)
        assert (decision.code is None) == (in_a_row <= most)
        history = decision.history


@pytest.mark.parametrize(
    ("hosts", "steps", "nodes", "excluded"),
    [
        ("aa", [0, 0], 3, ["a"]),
        ("aa", [0, 0], 2, []),  # no spare node
        ("aa", [1, 2], 3, []),  # with progress
        ("aba", [0, 0, 0], 3, []),
        ("baa", [0, 0, 0], 3, ["a"]),
        ("aabb", [0, 0, 0, 0], 4, ["a", "b"]),
    ],
)
def test_a_host_that_fails_first_twice_in_a_row_is_excluded(
    hosts: str, steps: list[int], nodes: int, excluded: list[str]
) -> None:
    history = History(step=0)
    for host, step in zip(hosts, steps, strict=True):
        left = nodes - len(history.excluded)
        decision = decide(history, AttemptEnd(code=1, step=step, host=host, nodes=left, min_nodes=2), 9)
        history = decision.history
    assert history.excluded == excluded or (not excluded and not history.excluded)
    assert ("without" in decision.text) == bool(excluded)


@pytest.mark.parametrize(
    ("history", "cause", "step", "goes_on"),
    [
        (History(queued_step=5), STOPPED, 9, True),
        (History(queued_step=5, requeues=2), STOPPED, 5, True),
        (History(queued_step=5, requeues=3), STOPPED, 5, False),  # the cap
        (History(queued_step=5, requeues=3), STOPPED, 9, True),
        (History(queued_step=5), TOO_FEW_NODES, 5, True),
        (History(queued_step=5), FAILED, 9, False),
        (History(queued_step=5, host="a", host_failures=2), FAILED, 9, True),
        (History(queued_step=5, host="a", host_failures=2), FAILED, 5, False),
        (History(), FINISHED, 9, False),
    ],
)
def test_a_job_is_requeued_with_progress_or_up_to_a_cap(
    history: History, cause: str, step: int, goes_on: bool
) -> None:
    later = requeue(history, cause, step=step, most=3)
    assert (later is not None) == goes_on
    if later is not None:
        assert later.queued_step == step
        assert (later.excluded == ["a"]) == (cause == FAILED)


def test_the_earliest_failure_that_is_no_victim_is_the_first() -> None:
    failures = [
        failure(0, 134, 1.0, is_victim=True),
        failure(1, 6, 3.0),
        failure(2, 1, 2.0),
        failure(3, 1, 0.5, is_victim=True),
    ]
    assert end_of([NodeEnd(failures)])[1] == failures[2]
    assert end_of([NodeEnd(failures[:1]), NodeEnd(failures[3:])])[1] == failures[3]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([NodeEnd(), NodeEnd()], 0),
        ([NodeEnd(stop_code=75), NodeEnd()], 75),
        ([NodeEnd(stop_code=75), NodeEnd(stop_code=143)], 143),  # one could not save
        ([NodeEnd(stop_code=75), NodeEnd(failures=[failure(1, 1, 0.0, is_victim=True)])], 75),
        ([NodeEnd(stop_code=75), NodeEnd(failures=[failure(1, 3, 0.0)])], 3),
        ([NodeEnd(failures=[failure(0, 134, 0.0, is_victim=True)]), NodeEnd()], 134),
        ([NodeEnd(stop_code=75), lost_node("n1", 0.0, 30.0)], 1),  # its agent was killed
    ],
)
def test_the_code_of_an_attempt(ends: list[NodeEnd], code: int) -> None:
    assert end_of(ends)[0] == code
    assert end_of(ends[::-1])[0] == code


def test_histories_do_not_change() -> None:
    history = replace(SAVED, excluded=["a"])
    decide(history, AttemptEnd(code=1, step=20, host="b", nodes=3), 3)
    assert history == replace(SAVED, excluded=["a"])
