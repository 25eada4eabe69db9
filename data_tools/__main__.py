"""`python -m data_tools`: make, shard and show data sets of videos."""

import sys

from data_tools.command import Command, Program, run_program
from data_tools.shard import run_shard
from data_tools.show import run_show
from data_tools.synth import run_synth

_DRY_RUN = ("--dry-run", "check and count, write nothing")
_JSON = ("--json", "print the result as one line of JSON")

PROGRAM = Program(
    name="data_tools",
    about="Data sets of videos: make a synthetic one, shard your own, look at what is there.",
    commands=(
        Command(
            name="synth",
            help="make real H.264 videos in which only motion tells the class",
            example="python -m data_tools synth videos unlabelled=200 scene.size=64",
            run=run_synth,
            positionals=(("out", "folder to make"),),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="shard",
            help="turn a collection of videos into shards with an index",
            example="python -m data_tools shard videos shards validation_share=0.1",
            run=run_shard,
            positionals=(
                ("source", "folder (CLASS/*.mp4, *.mp4, train/CLASS/*.mp4) or csv file (path,label[,split])"),
                ("out", "folder to make, one data set for each split in it"),
            ),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="show",
            help="print what a data set holds",
            example="python -m data_tools show shards/train",
            run=run_show,
            positionals=(("shards", "folder of shards with an index"),),
            options=(_JSON,),
        ),
    ),
)

if __name__ == "__main__":
    sys.exit(run_program(PROGRAM))
