"""`kinemae data`: make, shard, index, check, show and measure data sets of videos."""

import sys
from collections.abc import Sequence

from kinemae.data_tools.command import Command, Program, lazy, run_program

_DRY_RUN = ("--dry-run", "check and count, write nothing")
_JSON = ("--json", "print the result as one line of JSON")


PROGRAM = Program(
    name="data",
    description="Make, shard, index, check, show and measure data sets of videos.",
    commands=(
        Command(
            name="synth",
            help="make synthetic H.264 videos whose classes differ only in motion",
            example="kinemae data synth videos unlabelled=200 scene.size=64",
            run=lazy("kinemae.data_tools.synth", "run_synth"),
            positionals=(("out", "folder to make"),),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="shard",
            help="make shards with an index from a collection of videos",
            example="kinemae data shard videos shards validation_fraction=0.1",
            run=lazy("kinemae.data_tools.sharding.command", "run_shard"),
            positionals=(
                ("source", "folder (CLASS/*.mp4, *.mp4, train/CLASS/*.mp4) or csv file (path,label[,split])"),
                ("out", "folder to make, one data set for each split in it"),
            ),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="list",
            help="list the videos of a collection once, for the parts of `shard` on many machines",
            example="kinemae data list s3_videos.csv videos.arrow validation_fraction=0.01",
            run=lazy("kinemae.data_tools.sharding.list_command", "run_list"),
            positionals=(("source", "as for `shard`"), ("out", "LIST.arrow, the file to write")),
            options=(_JSON,),
        ),
        Command(
            name="index",
            help="make an index for an existing WebDataset, which is then read in place",
            example="kinemae data index 's3://bucket/train-{0000..0099}.tar' indexes label=cls",
            run=lazy("kinemae.data_tools.indexing.command", "run_index"),
            positionals=(("shards", "folder of tars, one tar, or a pattern; a path or a URL"),),
            optional=("out", "folder for the index; default: the folder of the tars"),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="add",
            help="add samples of other data sets to a data set",
            example="kinemae data add shards more_shards videos=copy",
            run=lazy("kinemae.data_tools.editing.merge", "run_add"),
            variadic=("sources", "a data set or the folder of its splits, then those to add, then overrides"),
            options=(_DRY_RUN,),
        ),
        Command(
            name="merge",
            help="make one data set of several, or of the parts of `shard`",
            example="kinemae data merge part_1 part_2 merged classes=union",
            run=lazy("kinemae.data_tools.editing.parts", "run_merge"),
            variadic=(
                "sources",
                "data sets, folders of splits or OUT/parts, then the folder to make, then overrides",
            ),
            options=(_DRY_RUN,),
        ),
        Command(
            name="remove",
            help="remove samples: they are no longer read",
            example="kinemae data remove shards keys.txt",
            run=lazy("kinemae.data_tools.editing.remove", "run_remove"),
            positionals=(("shards", "a data set, or the folder that holds its splits"),),
            optional=("keys", "file with one key per line, - for standard input; or where='CONDITION'"),
            options=(_DRY_RUN,),
        ),
        Command(
            name="compact",
            help="delete the videos of removed samples",
            example="kinemae data compact shards",
            run=lazy("kinemae.data_tools.editing.compact", "run_compact"),
            positionals=(("shards", "a data set, or the folder that holds its splits"),),
            options=(_DRY_RUN,),
        ),
        Command(
            name="subset",
            help="make a data set of some samples of another one",
            example="kinemae data subset shards long 'where=duration_s >= 5'",
            run=lazy("kinemae.data_tools.editing.rewrite", "run_subset"),
            positionals=(
                ("shards", "a data set, or the folder that holds its splits"),
                ("out", "folder to make"),
            ),
            options=(_DRY_RUN,),
        ),
        Command(
            name="reshard",
            help="copy a data set to shards of another size",
            example="kinemae data reshard shards larger megabytes_per_shard=2000",
            run=lazy("kinemae.data_tools.editing.rewrite", "run_reshard"),
            positionals=(
                ("shards", "a data set, or the folder that holds its splits"),
                ("out", "folder to make"),
            ),
            options=(_DRY_RUN,),
        ),
        Command(
            name="report",
            help="write an HTML page about a data set",
            example="kinemae data report shards shards.html pictures=48",
            run=lazy("kinemae.data_tools.report.command", "run_report"),
            positionals=(("shards", "a data set, or the folder that holds its splits"),),
            optional=("out", "OUT.html, the page to write; default: report.html in SHARDS"),
            options=(_JSON,),
        ),
        Command(
            name="card",
            help="write a data card in markdown, from the index alone",
            example="kinemae data card shards license=cc-by-4.0 contact=data@example.org",
            run=lazy("kinemae.data_tools.curation.card", "run_card"),
            positionals=(("shards", "a data set, or the folder that holds its splits"),),
            optional=("out", "OUT.md, the file to write; default: README.md in SHARDS"),
            options=(_JSON,),
        ),
        Command(
            name="export",
            help="write the rows of a data set to a parquet file",
            example="kinemae data export shards shards.parquet",
            run=lazy("kinemae.data_tools.manifest.parquet_files", "run_export"),
            takes_overrides=False,
            positionals=(
                ("shards", "a data set, or the folder that holds its splits"),
                ("out", "OUT.parquet, the file to write"),
            ),
            options=(_JSON,),
        ),
        Command(
            name="duplicates",
            help="find near duplicates in a whole data set, and list the samples to remove",
            example="kinemae data duplicates shards duplicates bits=12",
            run=lazy("kinemae.data_tools.curation.duplicates", "run_duplicates"),
            positionals=(
                ("shards", "a data set, or the folder that holds its splits"),
                ("out", "folder for the lists"),
            ),
            options=(_JSON,),
        ),
        Command(
            name="bench",
            help="measure how fast training reads a data set on this machine, step by step",
            example="kinemae data bench shards/train clip.frames=32 data.views_per_video=4",
            run=lazy("kinemae.data_tools.benchmark", "run_bench"),
            positionals=(("shards", "a data set, such as shards/train"),),
            options=(_JSON,),
        ),
        Command(
            name="show",
            help="print a summary of a data set",
            example="kinemae data show shards/train",
            run=lazy("kinemae.data_tools.show", "run_show"),
            takes_overrides=False,
            positionals=(("shards", "folder of shards with an index"),),
            options=(_JSON,),
        ),
        Command(
            name="verify",
            help="compare shards with their index",
            example="kinemae data verify shards --full workers=8",
            run=lazy("kinemae.data_tools.verify.command", "run_verify"),
            positionals=(("shards", "a data set, or the folder that holds its splits; a path or a URL"),),
            options=(("--full", "also decode every video to its end, as in training"), _JSON),
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
