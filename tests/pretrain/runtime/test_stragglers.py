"""A process that is slow for several periods in a row is named once, with its host."""

import pytest

from kinemae.data_tools.command import log
from kinemae.pretrain.runtime.stragglers import Stragglers

HOSTS = ["here", "there", "yonder"]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(log, "propagate", True)
    return caplog


def test_a_slow_process_is_named_after_the_third_period_in_a_row(warnings: pytest.LogCaptureFixture) -> None:
    stragglers = Stragglers(HOSTS, ratio=1.5)
    for _ in range(14):  # periods of five
        assert stragglers.update([1.0, 1.1, 2.2]) == {"slowest_rank": 2, "slowest_ratio": 2.0}
    assert not warnings.messages
    for _ in range(15):
        stragglers.update([1.0, 1.1, 2.2])
    (message,) = warnings.messages
    assert "rank 2 on yonder is a straggler" in message and "2.0 times the median" in message


def test_only_one_process_warns(warnings: pytest.LogCaptureFixture) -> None:
    stragglers = Stragglers(HOSTS, ratio=1.5, logs=False)
    for _ in range(40):
        assert stragglers.update([1.0, 1.1, 2.2]) == {"slowest_rank": 2, "slowest_ratio": 2.0}
    assert not warnings.messages


def test_an_occasionally_slow_process_is_no_straggler(warnings: pytest.LogCaptureFixture) -> None:
    stragglers = Stragglers(HOSTS, ratio=1.5)
    for local_s in [[6, 6, 54], [6, 6, 54], [6, 6, 7], [6, 6, 54], [6, 54, 6], [54, 6, 6]] * 2:
        stragglers.update([float(seconds) for seconds in local_s])
    for report in range(60):  # each a noisy one, none slow over five seconds
        stragglers.update([0.2, 0.5, 0.2] if report % 2 else [0.5, 0.2, 0.2])
    assert not warnings.messages


def test_two_processes_are_compared_with_the_faster_and_one_is_not_compared() -> None:
    assert Stragglers(HOSTS[:2], ratio=1.5).update([4.0, 1.0]) == {"slowest_rank": 0, "slowest_ratio": 4.0}
    assert Stragglers(HOSTS[:1], ratio=1.5).update([4.0]) == {}
