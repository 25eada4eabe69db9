"""`RUN/incidents/step-00001234.json`: which clips were on show when the numbers went bad, and what was done.

A run that was killed between a roll-back and its next checkpoint reads here which steps it had left out.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kinemae.data_tools.command import log
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.stream.mixture import locate_sample
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.pretrain.runtime.checkpoint import RunState


class Incidents:
    """The folder of a run. Only the first process writes and reads; a full disk is warned of.

    Args:
        clips: they know the keys of all processes' clips without reading a video.
    """

    def __init__(self, run_dir: Path, clips: TrainingClips, plan: BatchPlan):
        self._folder = run_dir / "incidents"
        self._clips = clips
        self._plan = plan

    def write(self, steps: Iterable[int], reason: str, *, omitted: Iterable[int] = ()) -> None:
        """Note an incident under its first step.

        Args:
            omitted: steps whose update is left out from now on.
        """
        steps = list(steps)
        found = {
            "step": steps[0],
            "reason": reason,
            "omitted": list(omitted),
            "keys": {str(step): self._keys(step) for step in steps},
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self._folder / f"step-{steps[0]:08d}.json", json.dumps(found, indent=1))
        except OSError as error:
            log.warning("cannot write the incident of step %d to %s (%s)", steps[0], self._folder, error)

    def recall(self, state: RunState) -> RunState:
        """The state with what was rolled back after its checkpoint."""
        for path in sorted(self._folder.glob("step-*.json")):
            new = set(json.loads(path.read_text(encoding="utf-8"))["omitted"]) - set(state.omitted)
            if new:
                omitted = sorted(new | set(state.omitted))
                state = replace(state, omitted=omitted, rollbacks=state.rollbacks + 1)
        return state

    def _keys(self, step: int) -> list[str]:
        """Of each clip of the step, over all processes, in the order of the run."""
        first = step * self._plan.global_clips
        positions = [clip // self._clips.views for clip in range(first, first + self._plan.global_clips)]
        key_of = {
            position: locate_sample(self._clips.index, seed=self._clips.seed, position=position).key
            for position in set(positions)
        }
        return [key_of[position] for position in positions]
