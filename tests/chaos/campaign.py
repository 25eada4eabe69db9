"""A seeded sequence of faults against one run, each followed until its promise is kept."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.faults import Fault, Promise
from tests.chaos.scene import PromiseBroken, Scene
from tests.chaos.seen import Seen
from tests.chaos.setting import STEPS

log = logging.getLogger("chaos")

STEPS_BETWEEN = (5, 40)  # from where a run goes on to the next fault; it saves every 20
LAST_STEPS = 100  # a fault among the last steps could find the job gone
START_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A fault whose promise was kept.

    Attributes:
        outcome_s: from the fault to the job's end, to its new processes, or to its next steps.
        further_s: from the fault until the run was further than it had been.
        repeated: steps that were done again.
    """

    fault: Fault
    step: int
    outcome_s: float
    further_s: float
    repeated: int


class Deck:
    """Faults for ever, in a random order, each kind once before any comes again."""

    def __init__(self, faults: Sequence[Fault], chance: random.Random):
        self._faults, self._chance = list(faults), chance
        self._left: list[Fault] = []

    def draw(self, scene: Scene) -> Fault:
        """The next one that is possible in the scene; the others stay for later."""
        if not any(fault.is_possible(scene) for fault in self._left):
            self._left += self._chance.sample(self._faults, len(self._faults))
        fault = next(fault for fault in self._left if fault.is_possible(scene))
        self._left.remove(fault)
        return fault


def disturb(scene: Scene, deck: Deck, chance: random.Random, *, last: int, until_s: float) -> list[Kept]:
    """Run the job to its last step, one fault after another until the clock says so.

    Raises:
        PromiseBroken: with what the launcher said last.
    """
    kept: list[Kept] = []
    scene.start()
    begin = 0
    while True:
        moment = begin + chance.randint(*STEPS_BETWEEN)
        if moment > last - LAST_STEPS or time.monotonic() > until_s:
            scene.wait_for("the run's end", scene.has_ended, bound_s=START_S)
            if scene.exit_code() != 0:
                raise PromiseBroken(f"the undisturbed rest of the run failed\n{scene.picture()}")
            return kept
        _wait_for_step(scene, moment)
        kept.append(keep(scene, deck.draw(scene), chance))
        begin = scene.metrics_step()
        log.info("%s", line_of(kept[-1]))


def line_of(kept: Kept) -> str:
    """One line of the log."""
    return (
        f"step {kept.step:4d}  {kept.fault.name}: {kept.fault.promise.value}, after {kept.outcome_s:.1f} s; "
        f"further than before after {kept.further_s:.1f} s, {kept.repeated} steps repeated"
    )


def _wait_for_step(scene: Scene, step: int) -> None:
    """Whatever it is that starts: a launcher, an agent, the ranks, their loader workers."""
    is_there = lambda: scene.metrics_step() >= step  # noqa: E731
    scene.wait_for(f"step {step}", is_there, bound_s=START_S, while_it_runs=True)


def keep(scene: Scene, fault: Fault, chance: random.Random) -> Kept:
    """Do it, and see what follows."""
    before = scene.ranks()
    said = len(scene.said())
    step = scene.metrics_step()
    log.info("step %4d  %s ...", step, fault.name)
    begin_s = time.monotonic()
    fault.inflict(scene, chance)
    sound = scene.newest_sound()
    try:
        FOLLOW[fault.promise](scene, fault, before)
        outcome_s = time.monotonic() - begin_s
        furthest = scene.metrics_step()
        fault.repair(scene)
        if fault.promise is Promise.ENDS:
            scene.split_disks()
            sound = scene.newest_sound()
            scene.start()
        # A process that is cut off goes on until it hears of it, and may reach the end.
        _wait_for_step(scene, min(furthest + 1, STEPS))
        resumed = _check_resumed(scene, fault, said=said, sound=sound)
    except PromiseBroken as broken:
        raise PromiseBroken(f"{fault.name}, at step {step}: {broken}") from broken
    further_s = time.monotonic() - begin_s
    scene.worlds |= {len(before), len(scene.ranks())}
    return Kept(
        fault=fault,
        step=step,
        outcome_s=outcome_s,
        further_s=further_s,
        repeated=0 if resumed is None else max(0, furthest - resumed),
    )


def _check_resumed(scene: Scene, fault: Fault, *, said: int, sound: int) -> int | None:
    """Nothing that was committed is lost: the run goes on from the newest sound checkpoint."""
    if fault.promise is Promise.GOES_ON:
        return None
    resumed = scene.resumed_at(said) or 0
    if resumed < sound:
        raise PromiseBroken(
            f"went on at step {resumed}, and there was a checkpoint of {sound}\n{scene.picture()}"
        )
    return resumed


def _ends(scene: Scene, fault: Fault, before: list[Seen]) -> None:
    scene.wait_for("the job's end, by itself", scene.has_ended)
    if scene.exit_code() != fault.exit_code:
        raise PromiseBroken(f"left with {scene.exit_code()}, not {fault.exit_code}\n{scene.picture()}")


def _restarts(scene: Scene, fault: Fault, before: list[Seen]) -> None:
    old = {seen.name for seen in before}

    def has_new_ranks() -> bool:
        new = {seen.name for seen in scene.ranks()}
        return bool(new) and not new & old

    scene.wait_for("new processes in the place of the old ones", has_new_ranks, while_it_runs=True)


def _goes_on(scene: Scene, fault: Fault, before: list[Seen]) -> None:
    _wait_for_step(scene, scene.metrics_step() + 2)
    if {seen.name for seen in scene.ranks()} != {seen.name for seen in before}:
        raise PromiseBroken(f"other processes than before\n{scene.picture()}")


FOLLOW: dict[Promise, Callable[[Scene, Fault, list[Seen]], None]] = {
    Promise.ENDS: _ends,
    Promise.RESTARTS: _restarts,
    Promise.GOES_ON: _goes_on,
}
