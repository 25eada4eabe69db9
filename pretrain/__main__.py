"""`kinemae pretrain CONFIG [a.b=c]`: pretrain an encoder, or continue the run in its run_dir.

`kinemae pretrain preview CONFIG` draws the model's input, `kinemae pretrain cost CONFIG` counts FLOPs and
memory. A config file named `preview` is written `./preview`.
"""

import argparse
import sys
from collections.abc import Sequence

from kinemae.data_tools.command import Command, Program, run_program
from kinemae.data_tools.config_files import find_config

_COMMANDS = ("preview", "cost")


def _pretrain(arguments: argparse.Namespace) -> None:
    arguments.config = find_config(arguments.config, "pretrain", commands=_COMMANDS)
    from kinemae.pretrain.command import run_pretrain

    run_pretrain(arguments)


def _preview(arguments: argparse.Namespace) -> None:
    arguments.config = find_config(arguments.config, "pretrain")
    from kinemae.pretrain.preview import run_preview

    run_preview(arguments)


def _cost(arguments: argparse.Namespace) -> None:
    arguments.config = find_config(arguments.config, "pretrain")
    from kinemae.pretrain.cost import run_cost

    run_cost(arguments)


PROGRAM = Program(
    name="pretrain",
    description="Pretrain a video encoder on shards of video. The same command continues a stopped run.",
    commands=[
        Command(
            name="",
            help="",
            example="kinemae pretrain demo data.shards=SHARDS/train run_dir=RUN",
            run=_pretrain,
            positionals=[("config", "a YAML file, or a name that `kinemae configs` lists")],
            options=[
                ("--dry-run", "check the config and print the counts; start nothing"),
                ("--json", "with --dry-run: print only the counts, as JSON"),
            ],
        ),
        Command(
            name="preview",
            help="pictures of the model's input, and the cost of a clip",
            example="kinemae pretrain preview demo data.shards=SHARDS/train",
            run=_preview,
            positionals=[("config", "a YAML file, or a name that `kinemae configs` lists")],
            options=[("--json", "print the counts as JSON")],
            value_options=[
                ("--out", "FOLDER", "folder of the pictures; default: RUN_DIR/preview"),
                ("--step", "N", "step of the clips, masks and noise; default: 0"),
            ],
        ),
        Command(
            name="cost",
            help="FLOPs, memory and traffic of a run, without shards or weights; input of `launch plan`",
            example="kinemae pretrain cost videomae_base --json",
            run=_cost,
            positionals=[("config", "a YAML file, or a name that `kinemae configs` lists")],
            options=[("--json", "on one line")],
        ),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
