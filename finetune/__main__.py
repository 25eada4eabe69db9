"""`kinemae finetune`: train on labelled videos, score, compare; import and export checkpoints."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kinemae.data_tools.command import Command, Program, run_program
from kinemae.data_tools.config_files import find_config
from kinemae.finetune.run_checks import check_finished_run

_DRY_RUN = ("--dry-run", "resolve, check, count and say what would be done; start nothing")
_JSON = ("--json", "print the result as json")


def _train(arguments: argparse.Namespace) -> None:
    arguments.config = find_config(arguments.config, "finetune")
    from kinemae.finetune.train import run_train

    run_train(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    check_finished_run(Path(arguments.run_dir))
    from kinemae.finetune.evaluate import run_evaluate

    run_evaluate(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    from kinemae.finetune.compare import run_compare

    run_compare(arguments)


def _import(arguments: argparse.Namespace) -> None:
    from kinemae.finetune.conversion.command import run_import

    run_import(arguments)


def _export(arguments: argparse.Namespace) -> None:
    from kinemae.finetune.conversion.command import run_export

    run_export(arguments)


PROGRAM = Program(
    name="finetune",
    about="Fine-tune an exported encoder (or one from scratch) on labelled videos, and score it.",
    commands=(
        Command(
            name="train",
            help="train on labelled shards, save the model, score it; the same command again continues",
            example="kinemae finetune train configs/finetune/demo.yaml encoder=runs/mine/encoder",
            run=_train,
            positionals=(("config", "a YAML file, or a name in configs/finetune"),),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="evaluate",
            help="score a finished run again, for example with more views",
            example="kinemae finetune evaluate runs/tuned evaluate.temporal_clips=5 engine.precision=bf16",
            run=_evaluate,
            positionals=(("run_dir", "the run's folder"),),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="compare",
            help="print the scores of several runs side by side",
            example="kinemae finetune compare runs/tuned runs/from_scratch",
            run=_compare,
            options=(_JSON,),
            more=("runs", "run folders; the first is what the others are compared with"),
        ),
        Command(
            name="import",
            help="read a checkpoint of VideoMAE V1 or V2, of transformers' VideoMAE or of MAE-ST",
            example="kinemae finetune import checkpoint.pth imported frames=16 stride=4 size=224",
            run=_import,
            positionals=(
                ("path", "a file of weights, or a folder as transformers writes it"),
                ("out", "the folder to write: `encoder=OUT` fine-tunes it"),
            ),
            options=(_DRY_RUN, _JSON, ("--allow-partial", "leave out what is not known or not whole")),
        ),
        Command(
            name="export",
            help="write an encoder with its decoder, or a fine-tuned model, as another system's checkpoint",
            example="kinemae finetune export runs/mine/encoder mine.pth --to videomae",
            run=_export,
            positionals=(
                ("folder", "an exported encoder, a fine-tuned model, or the run that has one"),
                ("out", "the file (videomae) or the folder (huggingface) to write"),
            ),
            options=(_DRY_RUN, _JSON),
            settings=(("--to", "SYSTEM", "whose checkpoint to write: videomae or huggingface"),),
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
