"""Progress lines without a terminal: at round numbers, with the remaining time."""

import pytest

from kinemae.data_tools.command import configure_logging
from kinemae.data_tools.progress import Pace, duration, progress, round_up


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def walk(*, total: int, per_s: float, first: int = 0, report_every: int = 1) -> list[tuple[int, float, str]]:
    """The lines of a job with constant speed: steps done, second, remaining time."""
    clock = Clock()
    pace = Pace(first=first, total=total, clock=clock)
    lines = []
    for done in [*range(first + report_every, total, report_every), total]:
        clock.now_s = (done - first) / per_s
        if pace.is_due(done):
            lines.append((done, clock.now_s, pace.left()))
    return lines


@pytest.mark.parametrize("per_s", [0.02, 0.3, 1.7, 12.0, 440.0])
def test_lines_are_due_at_multiples_of_round_numbers(per_s: float) -> None:
    lines = walk(total=100_000, per_s=per_s)
    places = [done for done, _, _ in lines[:-1]]
    interval = places[0]
    assert places == list(range(interval, 100_000, interval)) and str(interval).strip("0") in ("1", "2", "5")
    assert max(20.0, 1 / per_s) <= interval / per_s <= max(50.0, 1 / per_s)
    assert lines[-1] == (100_000, 100_000 / per_s, "")


def test_lines_are_due_at_reports_if_these_are_less_frequent() -> None:
    assert [done for done, _, _ in walk(total=100, per_s=0.1, report_every=25)] == [25, 50, 75, 100]


def test_a_resumed_run_measures_its_own_time() -> None:
    lines = walk(first=900, total=1000, per_s=1.0)
    assert [line for line in lines if line[0] == 940] == [(940, 40.0, "1 min left")]


def test_a_short_job_logs_only_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    assert list(progress(range(1000), total=1000, what="check")) == list(range(1000))
    (line,) = capsys.readouterr().err.splitlines()
    assert "check: 1000 of 1000, " in line and line.endswith(" videos/s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (90, "2 min"),
        (3540, "59 min"),
        (4800, "1 h 20 min"),
        (200_000, "2 d 8 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "above"), [(0, 1), (1, 1), (1.1, 2), (5, 5), (5.1, 10), (20, 20), (21, 50), (999, 1000)]
)
def test_numbers_are_rounded_up_to_1_2_or_5_times_a_power_of_ten(number: float, above: int) -> None:
    assert round_up(number) == above
