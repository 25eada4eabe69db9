"""Successive halving on histories of trials that are written as a run would."""

import json

import pytest

from kinemae.data_tools.command import Stopped
from kinemae.finetune.sweep.halving import SweepConfig, Trial, halve, ranking
from kinemae.finetune.validation.selection import Selection

TOP1 = Selection(metric="top1", maximize=True)


def make_trials(folder, count):
    return [Trial(number=i, values={"optim.lr": str(i)}, folder=folder / f"{i:03d}") for i in range(count)]


class Runs:
    """Trains trials: the metric of trial i after validation v is `curves[i][v]`."""

    def __init__(self, curves, sweep):
        self.curves, self.sweep = curves, sweep
        self.work = []

    def __call__(self, trials, rung):
        self.work.append((rung, [trial.number for trial in trials]))
        for trial in trials:
            curve = self.curves[trial.number]
            if curve is None:
                trial.fail("the loss diverged")
                continue
            trial.folder.mkdir(parents=True, exist_ok=True)
            count = min(self.sweep.validations(rung), len(curve))
            lines = [json.dumps({"step": 10 * i + 9, "top1": value}) for i, value in enumerate(curve[:count])]
            (trial.folder / "validation.jsonl").write_text("\n".join(lines) + "\n")
            if rung == self.sweep.rungs - 1 or len(curve) <= count:
                (trial.folder / "result.json").write_text("{}")


def rising(last, validations=9):
    return [last * (i + 1) / validations for i in range(validations)]


def test_the_best_third_goes_on_at_each_rung(tmp_path):
    sweep = SweepConfig(rungs=3, eta=3)
    runs = Runs([rising(i / 10) for i in range(9)], sweep)

    best = halve(make_trials(tmp_path, 9), sweep, TOP1, runs)

    assert best.number == 8
    assert runs.work == [(0, list(range(9))), (1, [8, 7, 6]), (2, [8])]


def test_only_validations_up_to_the_rung_decide(tmp_path):
    sweep = SweepConfig(rungs=2, eta=2)
    late = [0.1, 0.9]
    runs = Runs([[0.2, 0.3], late], sweep)
    assert halve(make_trials(tmp_path, 2), sweep, TOP1, runs).number == 0

    # The late trial has run to its end: its later validations do not count at the first rung.
    trials = make_trials(tmp_path, 2)
    Runs([[0.2, 0.3], late], sweep)([trials[1]], 1)
    assert [trial.number for trial in ranking(trials, 0, sweep, TOP1)] == [0, 1]


def test_a_repeated_sweep_trains_nothing_again(tmp_path):
    sweep = SweepConfig(rungs=2, eta=2)
    curves = [rising(i / 10, 2) for i in range(4)]
    first = halve(make_trials(tmp_path, 4), sweep, TOP1, Runs(curves, sweep))
    again = Runs(curves, sweep)

    assert halve(make_trials(tmp_path, 4), sweep, TOP1, again).number == first.number
    assert [numbers for _, numbers in again.work] == [[], []]


def test_a_sweep_that_was_killed_continues_where_it_was(tmp_path):
    sweep = SweepConfig(rungs=2, eta=2)
    curves = [rising(i / 10, 2) for i in range(4)]
    Runs(curves, sweep)(make_trials(tmp_path, 4)[:3], 0)
    runs = Runs(curves, sweep)

    assert halve(make_trials(tmp_path, 4), sweep, TOP1, runs).number == 3
    assert runs.work == [(0, [3]), (1, [3, 2])]


def test_diverged_trials_are_the_worst_and_not_repeated(tmp_path):
    sweep = SweepConfig(rungs=2, eta=2)
    curves = [None, rising(0.5, 2), None]
    assert halve(make_trials(tmp_path, 3), sweep, TOP1, Runs(curves, sweep)).number == 1
    trials, again = make_trials(tmp_path, 3), Runs(curves, sweep)
    assert halve(trials, sweep, TOP1, again).number == 1
    assert again.work[0] == (0, []) and trials[0].failure == "the loss diverged"


def test_a_trial_that_was_stopped_before_its_rung_is_not_judged(tmp_path):
    with pytest.raises(Stopped, match="trial 0 was stopped before the end of its rung"):
        halve(make_trials(tmp_path, 2), SweepConfig(rungs=2), TOP1, lambda trials, rung: None)


def test_without_a_score_there_is_no_best_trial(tmp_path):
    sweep = SweepConfig(rungs=2, eta=2)
    assert halve(make_trials(tmp_path, 2), sweep, TOP1, Runs([None, None], sweep)) is None


def test_equal_trials_are_ordered_by_number_and_smaller_values_can_be_better(tmp_path):
    sweep = SweepConfig(rungs=1)
    assert halve(make_trials(tmp_path / "a", 3), sweep, TOP1, Runs([[0.5]] * 3, sweep)).number == 0
    least = Selection(metric="top1", maximize=False)
    runs = Runs([[0.5], [0.1], [0.3]], sweep)
    assert halve(make_trials(tmp_path / "b", 3), sweep, least, runs).number == 1


def test_a_trial_that_ended_early_has_reached_every_rung(tmp_path):
    sweep = SweepConfig(rungs=3, eta=2)
    runs = Runs([[0.6, 0.5], [0.1, 0.2, 0.3, 0.4]], sweep)
    assert halve(make_trials(tmp_path, 2), sweep, TOP1, runs).number == 0
    assert runs.work == [(0, [0, 1]), (1, [0]), (2, [])]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"trials": 0}, r"sweep\.trials must be null or at least 1"),
        ({"rungs": 0}, r"sweep\.rungs must be at least 1"),
        ({"eta": 1}, r"sweep\.eta must be at least 2"),
        ({"processes": 0}, r"sweep\.processes must be at least 1"),
        ({"fraction": 1.0}, r"sweep\.fraction must lie between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        SweepConfig(**settings)
