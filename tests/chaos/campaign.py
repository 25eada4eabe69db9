"""A seeded sequence of faults against one run; the reaction to each is checked."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.faults import Fault, Reaction
from tests.chaos.scene import Scene, WrongReaction
from tests.chaos.seen import ProcessInfo

log = logging.getLogger("chaos")

STEPS_BETWEEN = (5, 40)  # from the last recovery to the next fault; a checkpoint every 20 steps
LAST_STEPS = 100  # without faults, since the job may end before one
START_S = 300.0


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """A fault with the expected reaction.

    Attributes:
        outcome_s: from the fault to the job's end, to its new processes, or to its next steps.
        further_s: from the fault until the run was further than before.
        repeated: number of repeated steps.
    """

    fault: Fault
    step: int
    outcome_s: float
    further_s: float
    repeated: int


class FaultQueue:
    """Endless faults in random order; each kind once before any is repeated."""

    def __init__(self, faults: Sequence[Fault], chance: random.Random):
        self._faults, self._chance = list(faults), chance
        self._left: list[Fault] = []

    def draw(self, scene: Scene) -> Fault:
        """Return the next fault that is possible in the scene; the others stay in the queue."""
        if not any(fault.is_possible(scene) for fault in self._left):
            self._left += self._chance.sample(self._faults, len(self._faults))
        fault = next((fault for fault in self._left if fault.is_possible(scene)), None)
        if fault is None:
            names = ", ".join(repr(fault.name) for fault in self._faults)
            raise WrongReaction(f"expected a fault that is possible here, got only {names or 'none'}")
        self._left.remove(fault)
        return fault


def disturb(
    scene: Scene, deck: FaultQueue, chance: random.Random, *, last: int, until_s: float
) -> list[FaultResult]:
    """Run the job to its last step, with one fault after another until a time.

    Raises:
        WrongReaction: with the last output of the launcher.
    """
    kept: list[FaultResult] = []
    scene.start()
    begin = 0
    while True:
        moment = begin + chance.randint(*STEPS_BETWEEN)
        if moment > last - LAST_STEPS or time.monotonic() > until_s:
            scene.wait_for("the run's end", scene.has_ended, bound_s=START_S)
            if scene.exit_code() != 0:
                raise WrongReaction(f"the rest of the run without faults failed\n{scene.describe()}")
            return kept
        _wait_for_step(scene, moment)
        kept.append(inject(scene, deck.draw(scene), chance, last=last))
        begin = scene.metrics_step()
        log.info("%s", line_of(kept[-1]))


def line_of(kept: FaultResult) -> str:
    """Format a result for the log."""
    return (
        f"step {kept.step:4d}  {kept.fault.name}: {kept.fault.reaction.value}, after {kept.outcome_s:.1f} s; "
        f"further than before after {kept.further_s:.1f} s, {kept.repeated} steps repeated"
    )


def _wait_for_step(scene: Scene, step: int) -> None:
    """Wait until the run has done a step."""
    is_there = lambda: scene.metrics_step() >= step  # noqa: E731
    scene.wait_for(f"step {step}", is_there, bound_s=START_S, while_it_runs=True)


def inject(scene: Scene, fault: Fault, chance: random.Random, *, last: int) -> FaultResult:
    """Inject a fault and check the reaction."""
    before = scene.ranks()
    offset = len(scene.rank_log())
    step = scene.metrics_step()
    log.info("step %4d  %s ...", step, fault.name)
    begin_s = time.monotonic()
    fault.inflict(scene, chance)
    newest = scene.newest_intact()
    try:
        FOLLOW[fault.reaction](scene, fault, before)
        outcome_s = time.monotonic() - begin_s
        furthest = scene.metrics_step()
        fault.repair(scene)
        if fault.reaction is Reaction.ENDS:
            scene.split_disks()
            newest = scene.newest_intact()
            scene.start()
        # A disconnected process continues until it notices that, and may reach the last step.
        _wait_for_step(scene, min(furthest + 1, last))
        resumed = _check_resumed(scene, fault, offset=offset, newest=newest)
    except WrongReaction as broken:
        raise WrongReaction(f"{fault.name}, at step {step}: {broken}") from broken
    further_s = time.monotonic() - begin_s
    scene.worlds |= {len(before), len(scene.ranks())}
    return FaultResult(
        fault=fault,
        step=step,
        outcome_s=outcome_s,
        further_s=further_s,
        repeated=0 if resumed is None else max(0, furthest - resumed),
    )


def _check_resumed(scene: Scene, fault: Fault, *, offset: int, newest: int) -> int | None:
    """Check that the run continued from the newest intact checkpoint."""
    if fault.reaction is Reaction.CONTINUES:
        return None
    resumed = scene.resumed_at(offset) or 0
    if resumed < newest:
        raise WrongReaction(f"continued at step {resumed}, expected {newest}\n{scene.describe()}")
    return resumed


def _ends(scene: Scene, fault: Fault, before: list[ProcessInfo]) -> None:
    scene.wait_for("the end of the job", scene.has_ended)
    if scene.exit_code() != fault.exit_code:
        raise WrongReaction(
            f"expected exit code {fault.exit_code}, got {scene.exit_code()}\n{scene.describe()}"
        )


def _restarts(scene: Scene, fault: Fault, before: list[ProcessInfo]) -> None:
    old = {seen.name for seen in before}

    def has_new_ranks() -> bool:
        new = {seen.name for seen in scene.ranks()}
        return bool(new) and not new & old

    scene.wait_for("new processes in the place of the old ones", has_new_ranks, while_it_runs=True)


def _continues(scene: Scene, fault: Fault, before: list[ProcessInfo]) -> None:
    _wait_for_step(scene, scene.metrics_step() + 2)
    if {seen.name for seen in scene.ranks()} != {seen.name for seen in before}:
        raise WrongReaction(f"expected the same processes as before, got others\n{scene.describe()}")


FOLLOW: dict[Reaction, Callable[[Scene, Fault, list[ProcessInfo]], None]] = {
    Reaction.ENDS: _ends,
    Reaction.RESTARTS: _restarts,
    Reaction.CONTINUES: _continues,
}
