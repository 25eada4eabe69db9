"""Pretraining as a command, `kinemae pretrain CONFIG [a.b=c]`, and as a function, `kinemae.pretrain(...)`."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinemae.data_tools.call_config import call_config, restored_environment
from kinemae.data_tools.config import load_config, to_yaml
from kinemae.data_tools.files import read_jsonl, to_json_lines
from kinemae.data_tools.stream.worker_setup import server_ended_on_error
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.folder_kinds import ENCODER_FOLDER
from kinemae.pretrain.runtime.abort import abort_on_error
from kinemae.pretrain.runtime.run_folder import run_lock
from kinemae.pretrain.training import Plan, make_plan, run_pretraining


def run_pretrain(arguments: argparse.Namespace) -> None:
    """Train, or with `--dry-run` print the plan of the training."""
    config = load_config(PretrainConfig, arguments.config, arguments.overrides)
    with server_ended_on_error():
        plan = make_plan(config, prepares_loader=not arguments.dry_run)
    if arguments.dry_run:
        text = to_json_lines(plan.with_micro_batch(must_fit=False).summary())
        sys.stdout.write(text if arguments.json else f"{to_yaml(config)}\n{text}")
        return
    _train(plan)


@restored_environment()
def pretrain(config: str | Path | Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Pretrain an encoder, or continue the run in its `run_dir`, as `kinemae pretrain` does.

    Args:
        config: path of a config, its name, or its keys as a nested mapping.
        settings: keys that replace those of the config, such as `steps=100` or `data={"shards": FOLDER}`.

    Returns:
        The counts of `--dry-run`, "encoder" with the folder of the encoder, and "metrics" of the last logged
        step.

    Raises:
        ValueError, DataError, CheckpointError, Diverged, Stopped: the errors of the command.
    """
    found = call_config(PretrainConfig, "pretrain", config, settings).config
    plan = _train(make_plan(found, prepares_loader=True))
    run_dir = Path(plan.config.run_dir)
    metrics = list(read_jsonl(run_dir / "metrics.jsonl"))
    return {**plan.summary(), "encoder": str(run_dir / ENCODER_FOLDER), "metrics": metrics[-1]}


def _train(plan: Plan) -> Plan:
    config = plan.config
    with abort_on_error(plan.processes), run_lock(Path(config.run_dir), plan.processes, config.timeouts):
        return run_pretraining(plan)
