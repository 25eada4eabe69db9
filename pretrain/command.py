"""`kinemae pretrain CONFIG [a.b=c]`: check everything, then train, or with `--dry-run` print the counts."""

import argparse
import json
import sys
from pathlib import Path

from kinemae.data_tools.config import load_config, to_yaml
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.abort import abort_on_error
from kinemae.pretrain.runtime.run_folder import run_lock
from kinemae.pretrain.training import make_plan, run_pretraining


def run_pretrain(arguments: argparse.Namespace) -> None:
    """Train, or with `--dry-run` print the plan of the training."""
    config = load_config(PretrainConfig, arguments.config, arguments.overrides)
    plan = make_plan(config)
    if arguments.dry_run:
        text = json.dumps(plan.summary(), indent=1)
        sys.stdout.write(text if arguments.json else f"{to_yaml(config)}\n{text}")
        sys.stdout.write("\n")
        return
    with abort_on_error(plan.processes), run_lock(Path(config.run_dir), plan.processes, config.timeouts):
        run_pretraining(plan)
