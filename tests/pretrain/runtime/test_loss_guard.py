"""Loss guard: rollbacks, omitted steps, and their record."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.command import Diverged
from kinemae.data_tools.config import load_config
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.loss_guard import IncidentLog, LossGuard, LossGuardConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan
from tests.pretrain.runtime.bad_numbers import BAD_ON_THE_SECOND, fragile_training
from tests.ranks import started

STEPS, CLIPS = 14, 4
SPIKE = {9 * CLIPS + 1: 1000.0}  # one clip of step 9
GUARDED = ("loss_guard.spike_sigmas=8", "loss_guard.window=4", f"steps={STEPS}", "save_every_steps=4")


def line(step: int, loss: float = 1.0, norm: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "grad_norm": norm, **more}


def steady(count: int) -> list[dict[str, Any]]:
    return [line(step, loss=1.0 + 0.01 * (step % 2), norm=2.0 + 0.01 * (step % 2)) for step in range(count)]


@pytest.fixture
def guarded(small_config: Callable[..., PretrainConfig], tmp_path: Path) -> Callable[..., Path]:
    """Train the fragile model with the loss guard; return the run folder."""

    def run(name: str, factors: dict[int, float], *overrides: str, known: str = "") -> Path:
        config = small_config(f"run_dir={tmp_path / name}", *GUARDED, *overrides)
        training = fragile_training(make_plan(config), factors)
        if known:
            (tmp_path / name / "incidents").mkdir()
            (tmp_path / name / "incidents" / "step-00000009.json").write_text(known)
        training.run()
        return tmp_path / name

    return run


def newest_state(run_dir: Path) -> dict[str, Any]:
    return json.loads(max(run_dir.glob("checkpoints/step-*/state.json")).read_text())


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl")]


def test_a_step_far_above_the_last_applied_ones_is_a_spike() -> None:
    guard = LossGuard(LossGuardConfig(spike_sigmas=6, window=8), [])
    assert guard.check(steady(8)) is None
    assert guard.check([line(8, loss=1.02, norm=2.02)]) is None
    incident = guard.check([line(9, loss=1.0, norm=2.2), line(10, loss=50.0)])
    assert incident is not None and incident.steps == (9,)  # what follows the first may come of it
    assert "grad_norm 2.2 is above" in incident.reason and "loss_guard.spike_sigmas=6" in incident.reason
    incident = guard.check([line(9, loss=1.2, norm=2.0)])
    assert incident is not None and "loss 1.2 is above" in incident.reason


def test_there_is_no_spike_before_the_window_is_full_or_without_the_guard() -> None:
    assert (
        LossGuard(LossGuardConfig(spike_sigmas=6, window=8), []).check([*steady(7), line(7, loss=99.0)])
        is None
    )
    assert LossGuard(LossGuardConfig(window=8), []).check([*steady(8), line(8, loss=99.0)]) is None


def test_skipped_and_omitted_steps_are_not_in_the_window() -> None:
    guard = LossGuard(LossGuardConfig(spike_sigmas=6, window=8), [])
    between = [line(8, loss=math.nan, norm=math.nan), line(9, loss=99.0, norm=math.nan, omitted=True)]
    assert guard.check([*steady(8), *between]) is None
    assert [list(pair) for pair in guard.recent] == [[one["loss"], one["grad_norm"]] for one in steady(8)]


def test_a_step_without_a_readable_clip_is_not_in_the_window() -> None:
    guard = LossGuard(LossGuardConfig(spike_sigmas=6, window=4), [])
    assert guard.check([*steady(2), line(2, loss=math.nan, norm=0.0), *steady(2), *steady(4)]) is None
    incident = guard.check([line(9, loss=50.0)])
    assert incident is not None and incident.steps == (9,)


def test_spikes_do_not_depend_on_the_interval_of_reports() -> None:
    lines = [*steady(10), line(10, loss=3.0), line(11)]
    at_once = LossGuard(LossGuardConfig(spike_sigmas=6, window=8), []).check(lines)
    one_by_one = LossGuard(LossGuardConfig(spike_sigmas=6, window=8), [])
    first_of_all = next(filter(None, (one_by_one.check([one]) for one in lines)))
    assert at_once == first_of_all


def test_after_a_sequence_of_skipped_steps_earlier_steps_are_omitted_too() -> None:
    bad = [line(step, loss=math.nan, norm=math.inf) for step in (5, 6, 7)]
    incident = LossGuard(LossGuardConfig(max_skipped=3), []).check([line(4), *bad])
    assert incident is not None and incident.steps == (5, 6, 7)
    assert list(incident.omitted(0)) == [2, 3, 4, 5, 6, 7]
    assert list(incident.omitted(4)) == [4, 5, 6, 7]
    assert LossGuard(LossGuardConfig(max_skipped=3), []).check([*bad[:2], line(7), *bad[:2]]) is None


def test_steps_without_a_finite_gradient_are_counted_across_a_restart() -> None:
    bad = [line(step, norm=math.nan) for step in range(5, 8)]
    before = LossGuard(LossGuardConfig(max_skipped=3), [])
    assert before.check(bad[:2]) is None
    after = LossGuard(LossGuardConfig(max_skipped=3), [], before.skipped_in_row)
    incident = after.check(bad[2:])
    assert incident is not None and incident.steps == (5, 6, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "zero_stage",
    [0, pytest.param(1, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.nightly), 3],
)
def test_a_rollback_equals_a_run_without_the_update_of_the_spike(
    guarded: Callable[..., Path], zero_stage: int
) -> None:
    stage = f"engine.zero_stage={zero_stage}"
    run_dir = guarded("spike", SPIKE, stage)
    assert losses(guarded("known", SPIKE, stage, known='{"omitted": [9]}')) == losses(run_dir)
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["step"] for line in lines if line.get("omitted")] == [9]
    assert lines[9]["grad_norm"] is None and lines[9]["loss"] > 100
    state = newest_state(run_dir)
    assert (state["step"], state["omitted"], state["rollbacks"]) == (STEPS, [9], 1)
    undisturbed = losses(guarded("undisturbed", {}, stage))
    assert losses(run_dir)[:9] == undisturbed[:9] and losses(run_dir)[10:] != undisturbed[10:]


def test_an_incident_file_has_the_keys_of_the_step(guarded: Callable[..., Path]) -> None:
    run_dir = guarded("spike", SPIKE, "log.samples=true")
    incident = json.loads((run_dir / "incidents" / "step-00000009.json").read_text())
    shown = {line["step"]: line["keys"] for line in read_metrics(run_dir / "samples" / "rank-00000.jsonl")}
    assert incident["keys"] == {"9": shown[9]} and len(shown[9]) == CLIPS
    assert incident["omitted"] == [9] and "loss_guard.spike_sigmas=8" in incident["reason"]


def test_without_the_guard_a_spike_is_applied(guarded: Callable[..., Path]) -> None:
    run_dir = guarded("spike", SPIKE, "loss_guard.spike_sigmas=0")
    assert not (run_dir / "incidents").exists()
    assert newest_state(run_dir)["rollbacks"] == 0


@pytest.mark.slow
def test_a_spike_before_the_first_checkpoint_rolls_back_to_step_0(
    guarded: Callable[..., Path],
) -> None:
    run_dir = guarded("spike", SPIKE, "save_every_steps=100")
    assert newest_state(run_dir)["omitted"] == [9]
    assert losses(run_dir) == losses(guarded("same", SPIKE))


def test_a_run_killed_after_a_rollback_restores_its_omitted_steps(
    guarded: Callable[..., Path], small_config: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    class Killed:
        """Callback that ends the run after the rollback, before its next checkpoint."""

        def is_due(self, first_step: int, last_step: int) -> bool:
            return last_step == 9

        def after_step(self, step: int, writer: Any) -> None:
            raise KeyboardInterrupt

    config = small_config(f"run_dir={tmp_path / 'killed'}", *GUARDED)
    with pytest.raises(KeyboardInterrupt):
        fragile_training(make_plan(config), SPIKE, callbacks=(Killed(),)).run()
    assert newest_state(tmp_path / "killed")["omitted"] == []
    # Were it to judge anew, this loss would be no spike.
    harmless = "loss_guard.spike_sigmas=1e9"
    assert losses(guarded("killed", SPIKE, harmless)) == losses(guarded("spike", SPIKE))
    assert newest_state(tmp_path / "killed")["rollbacks"] == 1


def test_rollbacks_that_cannot_be_read_are_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    unused: Any = None
    incidents = IncidentLog(tmp_path, unused, unused)
    assert incidents.restore(RunState(step=4)) == RunState(step=4)
    (tmp_path / "incidents").mkdir()
    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(PermissionError):
        incidents.restore(RunState(step=4))


def test_after_too_many_rollbacks_the_run_stops(guarded: Callable[..., Path], tmp_path: Path) -> None:
    spikes = {9 * CLIPS: 1000.0, 11 * CLIPS: 1000.0}
    with pytest.raises(Diverged, match=r"step 11: .* rolled back 1 times, loss_guard\.max_rollbacks=1"):
        guarded("spikes", spikes, "loss_guard.max_rollbacks=1")
    incident = json.loads((tmp_path / "spikes" / "incidents" / "step-00000011.json").read_text())
    assert incident["omitted"] == []
    assert newest_state(guarded("enough", spikes))["omitted"] == [9, 11]


def test_a_sequence_of_skipped_steps_rolls_back_before_it_stops(guarded: Callable[..., Path]) -> None:
    bad = {step * CLIPS: math.nan for step in (6, 7, 8)}
    run_dir = guarded("row", bad, "loss_guard.max_skipped=3")
    state = newest_state(run_dir)
    assert (state["omitted"], state["rollbacks"]) == ([4, 5, 6, 7, 8], 1)  # back to the checkpoint of step 4
    assert all(math.isfinite(value) for value in losses(run_dir)[9:])


def test_a_skipped_step_writes_the_keys_of_its_clips(guarded: Callable[..., Path]) -> None:
    run_dir = guarded("one", {6 * CLIPS: math.nan}, "loss_guard.spike_sigmas=0")
    incident = json.loads((run_dir / "incidents" / "step-00000006.json").read_text())
    assert len(incident["keys"]["6"]) == CLIPS and incident["omitted"] == []
    assert newest_state(run_dir)["skipped_steps"] == 1


@pytest.mark.processes
def test_two_processes_roll_back_together_and_name_the_straggler(
    guarded: Callable[..., Path], small_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "two"
    arguments = (str(small_run), *GUARDED, f"run_dir={run_dir}")
    with started(tmp_path, "tests.pretrain.runtime.bad_numbers", *arguments) as ranks:
        assert ranks.exit_codes() == [0, 0], ranks.output(0) + ranks.output(1)
        assert "step 5 was skipped on all processes" in ranks.output(0)
    measured = [line for line in read_metrics(run_dir / "metrics.jsonl") if "slowest_rank" in line]
    assert {line["slowest_rank"] for line in measured} == {1}
    one = guarded("one", BAD_ON_THE_SECOND)
    finite = [step for step in range(STEPS) if step != 5]
    assert losses(run_dir)[5] is None and losses(one)[5] is None
    expected = [losses(one)[step] for step in finite]
    assert [losses(run_dir)[step] for step in finite] == pytest.approx(expected, rel=1e-5)
    state = newest_state(run_dir)
    assert (state["omitted"], state["skipped_steps"], state["world"]) == ([9], 1, 2)
    for step in (5, 9):
        name = f"incidents/step-0000000{step}.json"
        assert (run_dir / name).read_text() == (one / name).read_text()
    last = read_metrics(run_dir / "metrics.jsonl")[-1]
    assert last["slowest_rank"] == 1 and last["slowest_ratio"] > 1.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss_guard.spike_sigmas=-1", r"loss_guard\.spike_sigmas must be 0 \(off\) or more, got -1"),
        ("loss_guard.window=1", r"loss_guard\.window must be at least 2, got 1"),
        ("loss_guard.max_rollbacks=-1", r"loss_guard\.max_rollbacks must be 0 or more, got -1"),
        ("loss_guard.max_skipped=0", r"loss_guard\.max_skipped must be at least 1, got 0"),
    ],
)
def test_invalid_guard_settings_are_refused_by_key(small_run: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(PretrainConfig, small_run, [override])
