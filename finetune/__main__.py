"""`python -m finetune`: train on labelled videos, score, compare; import and export checkpoints."""

import argparse
import json
import sys

from data_tools.command import Command, Program, run_program
from finetune.compare import read_results, table
from finetune.evaluate import run_evaluate
from finetune.kinship.command import SYSTEMS, run_export, run_import
from finetune.train import run_train

_DRY_RUN = ("--dry-run", "resolve, check, count and say what would be done; start nothing")
_JSON = ("--json", "print the result as json")


def run_compare(arguments: argparse.Namespace) -> None:
    """`python -m finetune compare RUN RUN ...`."""
    results = read_results(arguments.runs)
    sys.stdout.write(json.dumps(results, ensure_ascii=False) if arguments.json else table(results))
    sys.stdout.write("\n")


PROGRAM = Program(
    name="finetune",
    about="Fine-tune an exported encoder (or one from scratch) on labelled videos, and score it.",
    commands=(
        Command(
            name="train",
            help="train on labelled shards, save the model, score it; the same command again continues",
            example="python -m finetune train configs/finetune/demo.yaml encoder=runs/mine/encoder",
            run=run_train,
            positionals=(("config", "a YAML file, as in configs/finetune"),),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="evaluate",
            help="score a finished run again, for example with more views",
            example="python -m finetune evaluate runs/tuned evaluate.temporal_clips=5 engine.precision=bf16",
            run=run_evaluate,
            positionals=(("run_dir", "the run's folder"),),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="compare",
            help="print the scores of several runs side by side",
            example="python -m finetune compare runs/tuned runs/from_scratch",
            run=run_compare,
            options=(_JSON,),
            more=("runs", "run folders; the first is what the others are compared with"),
        ),
        Command(
            name="import",
            help="read a checkpoint of VideoMAE V1 or V2, of transformers' VideoMAE or of MAE-ST",
            example="python -m finetune import checkpoint.pth imported frames=16 stride=4 size=224",
            run=run_import,
            positionals=(
                ("path", "a file of weights, or a folder as transformers writes it"),
                ("out", "the folder to write: `encoder=OUT` fine-tunes it"),
            ),
            options=(_DRY_RUN, _JSON, ("--allow-partial", "leave out what is not known or not whole")),
        ),
        Command(
            name="export",
            help="write an encoder with its decoder, or a fine-tuned model, as another system's checkpoint",
            example="python -m finetune export runs/mine/encoder mine.pth --to videomae",
            run=run_export,
            positionals=(
                ("folder", "an exported encoder, or the model of a fine-tuning run"),
                ("out", "the file (videomae) or the folder (huggingface) to write"),
            ),
            options=(_DRY_RUN, _JSON),
            settings=(("--to", "SYSTEM", f"whose checkpoint to write: {' or '.join(SYSTEMS)}"),),
        ),
    ),
)

if __name__ == "__main__":
    sys.exit(run_program(PROGRAM))
