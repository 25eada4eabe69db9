"""`kinemae pretrain CONFIG [a.b=c]`: pretrain an encoder, or continue the run in its run_dir.

`kinemae pretrain advise SHARDS` proposes a config, `kinemae pretrain preview CONFIG` draws the model's input,
`kinemae pretrain cost CONFIG` counts FLOPs and memory, `kinemae pretrain visualize RUN VIDEO OUT` draws what
a trained model does with a video. A config file named `preview` is written `./preview`.
"""

import sys
from collections.abc import Sequence

from kinemae.data_tools.command import Command, Program, lazy, run_program
from kinemae.data_tools.config_files import lazy_with_config

_CONFIG = [("config", "a YAML file, or a name that `kinemae configs` lists")]


PROGRAM = Program(
    name="pretrain",
    description="Pretrain a video encoder on shards of video. The same command continues a stopped run.",
    commands=[
        Command(
            name="",
            help="",
            example="kinemae pretrain demo data.shards=SHARDS/train run_dir=RUN",
            run=lazy_with_config(
                "pretrain",
                "kinemae.pretrain.command",
                "run_pretrain",
                commands=("advise", "preview", "cost", "visualize"),
            ),
            positionals=_CONFIG,
            options=[
                ("--dry-run", "check the config and print the counts; start nothing"),
                ("--json", "with --dry-run: print only the counts, as JSON"),
            ],
        ),
        Command(
            name="advise",
            help="look at shards, propose a run with reasons, cost and warnings, and write its config",
            example="kinemae pretrain advise shards/train --hours 2",
            run=lazy("kinemae.pretrain.advise.command", "run_advise"),
            positionals=[("shards", "a folder or URL of shards")],
            options=[("--json", "print the advice as JSON")],
            value_options=[
                ("--hours", "H", "time for the training; default: as long as the measured runs"),
                ("--device", "NAME", "cpu, cuda or auto; default: auto"),
                ("--clips-per-s", "SPEED", "speed of the training; default: measured in a few steps"),
                ("--out", "FILE", "the config to write; default: advised.yaml"),
            ],
        ),
        Command(
            name="preview",
            help="pictures of the model's input, and the cost of a clip",
            example="kinemae pretrain preview demo data.shards=SHARDS/train",
            run=lazy_with_config("pretrain", "kinemae.pretrain.preview", "run_preview"),
            positionals=_CONFIG,
            options=[("--json", "print the counts as JSON")],
            value_options=[
                ("--out", "FOLDER", "folder of the pictures; default: RUN_DIR/preview"),
                ("--step", "N", "step of the clips, masks and noise; default: 0"),
            ],
        ),
        Command(
            name="cost",
            help="parameters, FLOPs and memory of a run, without shards or weights; input of `launch plan`",
            example="kinemae pretrain cost videomae_base --processes 64 --memory-gb 80",
            run=lazy_with_config("pretrain", "kinemae.pretrain.cost", "run_cost"),
            positionals=_CONFIG,
            options=[("--json", "print the JSON on one line")],
            value_options=[
                ("--memory-gb", "GB", "memory of a device: also estimate what it needs and which clips fit"),
                ("--processes", "N", "with --memory-gb: processes of the run; default: 1"),
                (
                    "--process-gb",
                    "GB",
                    "with --memory-gb: memory of an empty process; default: 1.5, CPU 0.87",
                ),
                ("--allocator-overhead", "X", "with --memory-gb: extra memory of activations; default: 0.1"),
            ],
        ),
        Command(
            name="visualize",
            help="pictures of a trained run on videos: attention, reconstruction, features, pruning, merging",
            example="kinemae pretrain visualize runs/mine video.mp4 views",
            run=lazy("kinemae.pretrain.visualize.command", "run_visualize"),
            positionals=[
                ("model", "a run, one of its checkpoints, or an exported encoder"),
                ("source", "a video, a folder or URL of videos, or a folder of shards"),
                ("out", "the folder to write"),
            ],
            options=[("--json", "print the names of the files as JSON")],
        ),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
