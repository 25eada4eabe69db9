"""Speed, steps, time and FLOPs of an advised run."""

import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import to_yaml
from kinemae.data_tools.files import read_jsonl
from kinemae.pretrain.advise.facts import Facts
from kinemae.pretrain.advise.rule_table import Advice
from kinemae.pretrain.advise.rules import DEFAULT_EPOCHS, FEWEST_CLIPS, MOST_EPOCHS, MOUTHS, VIDEOMAE
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import memory_cost
from kinemae.pretrain.runtime.memory import Machine, largest_micro_batch

_STEPS, _REPORT_STEPS = 12, 3  # of the measurement
_FEWEST_COMPARED = 2  # clips of a step that targets such as views need
_MOST_CPU_FLOPS = 1e12  # of the measurement: about 20 s of one core


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Cost of a run.

    Attributes:
        clips_per_s: speed of training.
        is_measured: whether the speed was measured here.
        data_wait: fraction of the time in which the measured steps waited for videos.
        clips_per_step: `batch.global_clips`.
        steps: of the run.
        epochs: how often each video is seen, once for all of its views.
        hours: expected time.
        clip_flops, flops: training FLOPs of a clip, with its part of an update, and of the run.
        unused_hours: hours that the user gave and the run does not need.
    """

    clips_per_s: float
    is_measured: bool
    data_wait: float
    clips_per_step: int
    steps: int
    epochs: float
    hours: float
    clip_flops: int
    flops: float
    unused_hours: float = 0.0

    def hours_of(self, steps: int) -> float:
        """Hours of another number of steps."""
        return steps * self.clips_per_step / self.clips_per_s / 3600

    def summary(self) -> dict[str, Any]:
        """Return the budget as JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training speed in clips per second.

    Attributes:
        data_wait: fraction of the time that waits for videos.
    """

    clips_per_s: float
    is_measured: bool
    data_wait: float = 0.0


def micro_batch(config: PretrainConfig, facts: Facts) -> int:
    """The largest power of two of clips that fits a GPU's memory, at most the batch; the batch on a CPU."""
    batch, views = config.batch.global_clips, config.data.views_per_video
    if facts.memory_gb is None:
        return batch
    machine = Machine(processes=1, memory_gb=facts.memory_gb, is_cpu=False)
    cost, engine = memory_cost(config), config.engine
    recomputes = engine.activation_checkpointing
    most = largest_micro_batch(cost, machine, stage=engine.zero_stage, recomputes=recomputes)
    return max(views, min(batch, 1 << max(1, most).bit_length() - 1))


def measure_speed(config: PretrainConfig, clip_flops: int, *, device: str) -> Speed:
    """Train a few steps in another process, as the run itself would.

    Each step has one micro-batch, and on a CPU at most as many clips as keep the measurement short.

    Raises:
        DataError: the steps failed; the message is that of the run.
    """
    views = config.data.views_per_video
    clips = min(config.batch.fixed_clips, config.batch.global_clips)
    if device == "cpu":
        clips = min(clips, max(_FEWEST_COMPARED, int(_MOST_CPU_FLOPS / (_STEPS * clip_flops))))
    clips = max(clips // views, 1) * views
    with TemporaryDirectory() as folder:
        path, run_dir = Path(folder, "config.yaml"), Path(folder, "run")
        path.write_text(to_yaml(config), encoding="utf-8")
        short = [f"steps={_STEPS}", f"save_every_steps={_STEPS}", f"log.every_steps={_REPORT_STEPS}"]
        batch = [f"batch.global_clips={clips}", f"batch.clips_per_device={clips}"]
        quiet = ["pictures.every_steps=0", "monitor.every_steps=0", f"run_dir={run_dir}"]
        # Settings for the length of the whole run; unreadable videos cause a warning of the advice.
        free = ["optim.warmup_steps=null", "keep_every_steps=0", "data.max_bad_fraction=1"]
        program = [sys.executable, "-P", "-m", "kinemae", "pretrain"]
        command = [*program, str(path), *short, *batch, *quiet, *free]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            message = (ran.stderr.strip().splitlines() or ["no message"])[-1].partition(" ERROR ")
            raise DataError(
                f"the measured steps failed: {message[2] or message[0]}; or give the speed, --clips-per-s"
            )
        reports = [line for line in read_jsonl(run_dir / "metrics.jsonl") if "clips_per_s" in line][1:]
    return Speed(
        clips_per_s=statistics.median(line["clips_per_s"] for line in reports),
        is_measured=True,
        data_wait=statistics.median(line["data_wait_fraction"] for line in reports),
    )


def plan_budget(
    config: PretrainConfig, facts: Facts, speed: Speed, clip_flops: int, steps: int | None = None
) -> tuple[Budget, Advice]:
    """Choose the number of steps, and compute time and FLOPs.

    Args:
        steps: chosen by the user; None for the number that the hours allow, or the default.
    """
    batch, views = config.batch.global_clips, config.data.views_per_video
    clips_of_epoch = facts.videos * views
    why = f"{DEFAULT_EPOCHS} epochs, and at least {FEWEST_CLIPS:,} clips, as in the measured runs"
    source, unused = MOUTHS, 0.0
    if steps is None and facts.hours is None:
        steps = round(max(DEFAULT_EPOCHS * clips_of_epoch, FEWEST_CLIPS) / batch)
    elif steps is None:
        assert facts.hours is not None
        possible = max(1, int(facts.hours * 3600 * speed.clips_per_s / batch))
        most = max(1, MOST_EPOCHS * clips_of_epoch // batch)
        steps = min(possible, most)
        unused = facts.hours * (1 - steps / possible)
        why = f"as many as {facts.hours:g} hours allow, at most {MOST_EPOCHS:,} epochs"
        source = f"the measured speed; {VIDEOMAE}: UCF101 3,200 epochs"
    budget = Budget(
        clips_per_s=speed.clips_per_s,
        is_measured=speed.is_measured,
        data_wait=speed.data_wait,
        clips_per_step=batch,
        steps=steps,
        epochs=round(steps * batch / clips_of_epoch, 2),
        hours=steps * batch / speed.clips_per_s / 3600,
        clip_flops=clip_flops,
        flops=float(steps * batch * clip_flops),
        unused_hours=unused,
    )
    return budget, Advice(topic="length", settings={"steps": steps}, why=why, source=source)
