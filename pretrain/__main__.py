"""`python -m pretrain CONFIG [a.b=c]`: pretrain an encoder, or go on with the run in its run_dir.

`python -m pretrain preview CONFIG [a.b=c]` shows what it would be given. A config file that is itself named
`preview` is written `./preview`.
"""

import argparse
import json
import sys
from pathlib import Path

from data_tools.command import Command, Program, run_program
from data_tools.config import load_config, to_yaml
from pretrain.config import PretrainConfig
from pretrain.preview import run_preview
from pretrain.runtime.ending import ending_together
from pretrain.runtime.run_lock import run_lock
from pretrain.training import make_plan, run_pretraining


def pretrain(arguments: argparse.Namespace) -> None:
    """The command: check everything, then train unless only asked what would happen."""
    config = load_config(PretrainConfig, arguments.config, arguments.overrides)
    plan = make_plan(config)
    if arguments.dry_run:
        text = json.dumps(plan.summary(), indent=1)
        sys.stdout.write(text if arguments.json else f"{to_yaml(config)}\n{text}")
        sys.stdout.write("\n")
        return
    with ending_together(plan.processes), run_lock(Path(config.run_dir), plan.processes, config.watch):
        run_pretraining(plan)


PROGRAM = Program(
    name="pretrain",
    about="Pretrain a video encoder on shards of video. The same command goes on with a stopped run.",
    commands=[
        Command(
            name="",
            help="",
            example="python -m pretrain configs/pretrain/demo.yaml data.shards=SHARDS/train run_dir=RUN",
            run=pretrain,
            positionals=[("config", "a YAML file, as in configs/pretrain")],
            options=[
                ("--dry-run", "resolve, check, count and print; start nothing"),
                ("--json", "with --dry-run: print the counts alone, as JSON"),
            ],
        ),
        Command(
            name="preview",
            help="pictures of real clips as the model gets them, and what a clip costs",
            example="python -m pretrain preview configs/pretrain/demo.yaml data.shards=SHARDS/train",
            run=run_preview,
            positionals=[("config", "a YAML file, as in configs/pretrain")],
            options=[("--json", "print the counts as JSON")],
            settings=[
                ("--out", "FOLDER", "where the pictures go; RUN_DIR/preview where not given"),
                (
                    "--step",
                    "N",
                    "of which step the clips, masks and strength of noise are; 0 where not given",
                ),
            ],
        ),
    ],
)

if __name__ == "__main__":
    sys.exit(run_program(PROGRAM))
