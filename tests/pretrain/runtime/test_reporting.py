"""Only the first process logs information that all processes have."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.data_tools.command import log
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.loop import Reporter, Trainer
from kinemae.pretrain.runtime.loss_guard import IncidentLog
from kinemae.pretrain.runtime.stragglers import Stragglers
from kinemae.pretrain.runtime.train_step import Report
from kinemae.pretrain.training import make_plan, training_clips

SmallConfig = Callable[..., PretrainConfig]


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_only_the_first_process_warns_of_a_skipped_step(
    small_config: SmallConfig,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    lines: int,
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    config = small_config()
    plan = make_plan(config)
    Path(config.run_dir).mkdir()
    clips = training_clips(plan, plan.split)
    trainer = Trainer(
        module=plan.model,
        groups=[],
        clips=clips,
        plan=plan.batch,
        config=config,
        steps=config.steps,
        processes=replace(plan.processes, rank=rank, world=2),
    )
    reporter = Reporter(
        trainer,
        RunState(),
        incidents=IncidentLog(Path(config.run_dir), clips, plan.batch),
        stragglers=Stragglers(["here", "there"], ratio=1.5),
    )
    line = {"step": 0, "loss": 1.0, "grad_norm": float("nan"), "skipped_clips": 0}
    reporter.add(Report(lines=[line], local_s=[1.0, 1.0], elapsed_s=1.0))
    reporter.close()
    assert len([message for message in caplog.messages if "step 0 was skipped" in message]) == lines
