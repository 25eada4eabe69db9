"""`kinemae data`: make, shard and show data sets of videos."""

import argparse
import sys
from collections.abc import Sequence

from kinemae.data_tools.command import Command, Program, run_program

_DRY_RUN = ("--dry-run", "check and count, write nothing")
_JSON = ("--json", "print the result as one line of JSON")


def _synth(arguments: argparse.Namespace) -> None:
    from kinemae.data_tools.synth import run_synth

    run_synth(arguments)


def _shard(arguments: argparse.Namespace) -> None:
    from kinemae.data_tools.sharding.command import run_shard

    run_shard(arguments)


def _index(arguments: argparse.Namespace) -> None:
    from kinemae.data_tools.indexing.command import run_index

    run_index(arguments)


def _report(arguments: argparse.Namespace) -> None:
    from kinemae.data_tools.report.command import run_report

    run_report(arguments)


def _bench(arguments: argparse.Namespace) -> None:
    from kinemae.data_tools.benchmark import run_bench

    run_bench(arguments)


def _show(arguments: argparse.Namespace) -> None:
    from kinemae.data_tools.show import run_show

    run_show(arguments)


def _verify(arguments: argparse.Namespace) -> None:
    from kinemae.data_tools.verify.command import run_verify

    run_verify(arguments)


PROGRAM = Program(
    name="data",
    description="Data sets of videos: make a synthetic one, shard your own, look at what is there.",
    commands=(
        Command(
            name="synth",
            help="make real H.264 videos in which only motion tells the class",
            example="kinemae data synth videos unlabelled=200 scene.size=64",
            run=_synth,
            positionals=(("out", "folder to make"),),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="shard",
            help="turn a collection of videos into shards with an index",
            example="kinemae data shard videos shards validation_fraction=0.1",
            run=_shard,
            positionals=(
                ("source", "folder (CLASS/*.mp4, *.mp4, train/CLASS/*.mp4) or csv file (path,label[,split])"),
                ("out", "folder to make, one data set for each split in it"),
            ),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="index",
            help="make the index for anybody's WebDataset, which is then read in place",
            example="kinemae data index 's3://bucket/train-{0000..0099}.tar' indexes label=cls",
            run=_index,
            positionals=(("shards", "folder of tars, one tar, or a pattern; here or behind a URL"),),
            optional=("out", "folder for the index; default: the folder of the tars"),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="report",
            help="write one HTML page that shows what a data set holds",
            example="kinemae data report shards shards.html pictures=48",
            run=_report,
            positionals=(("shards", "a data set, or the folder that holds its splits"),),
            optional=("out", "OUT.html, the page to write; default: report.html in SHARDS"),
            options=(_JSON,),
        ),
        Command(
            name="bench",
            help="measure how fast training reads a data set on this machine, and what takes the time",
            example="kinemae data bench shards/train clip.stride=2 data.views_per_video=4",
            run=_bench,
            positionals=(("shards", "a data set, such as shards/train"),),
            options=(_JSON,),
        ),
        Command(
            name="show",
            help="print what a data set holds",
            example="kinemae data show shards/train",
            run=_show,
            positionals=(("shards", "folder of shards with an index"),),
            options=(_JSON,),
        ),
        Command(
            name="verify",
            help="compare shards with their index, byte by byte",
            example="kinemae data verify shards --full workers=8",
            run=_verify,
            positionals=(("shards", "a data set, or the folder that holds its splits; here or at a URL"),),
            options=(("--full", "also decode every video to its end, as training would"), _JSON),
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
