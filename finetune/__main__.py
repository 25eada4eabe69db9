"""Command line of `kinemae finetune`: train, evaluate, compare, import and export."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kinemae.data_tools.command import CheckpointError, Command, Program, lazy, run_program
from kinemae.data_tools.config_files import lazy_with_config
from kinemae.data_tools.overrides import as_override
from kinemae.pretrain.folder_kinds import (
    ENCODER,
    EXTERNAL,
    FINETUNING,
    MODEL,
    PRETRAINING,
    exported_in,
    kind_of_folder,
)

_DRY_RUN = ("--dry-run", "check the config and the data, print the plan, and start nothing")
_JSON = ("--json", "print the result as JSON")


def _evaluate(arguments: argparse.Namespace) -> None:
    check_finished_run(Path(arguments.run_dir))
    lazy("kinemae.finetune.evaluate", "run_evaluate")(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    lazy("kinemae.finetune.compare", "run_compare")(arguments)
    if arguments.html:
        lazy("kinemae.finetune.report.command", "run_comparison")(arguments)


def _probe(function: str) -> Callable[[argparse.Namespace], None]:
    """Return the function of a command that needs overrides, a config or both."""

    def run(arguments: argparse.Namespace) -> None:
        if not arguments.config and not arguments.overrides:
            raise ValueError("expected a config or overrides, got neither; fix: see the example of --help")
        lazy("kinemae.finetune.probe.command", function)(arguments)

    return run


def check_finished_run(run_dir: Path) -> None:
    """Reject a folder that `finetune evaluate` cannot score. Does not import torch.

    Raises:
        CheckpointError: the folder is neither a finished fine-tuning run nor a fine-tuned model.
    """
    kind = kind_of_folder(run_dir)
    if kind == MODEL or (kind == FINETUNING and exported_in(run_dir) is not None):
        return
    if kind == FINETUNING:
        fix = "repeat its `finetune train`, which continues it"
        kind = "a fine-tuning run without a model"
    elif kind in (PRETRAINING, ENCODER):
        encoder = run_dir / "encoder" if kind == PRETRAINING else run_dir
        fix = f"fine-tune it first, kinemae finetune train CONFIG {as_override('encoder', encoder)}"
    elif kind == EXTERNAL:
        fix = f"import it first, kinemae finetune import {shlex.quote(str(run_dir))} OUT"
    else:
        fix = "give the run_dir of a `finetune train`"
    raise CheckpointError(f"{run_dir}: expected a fine-tuning run, got {kind}; fix: {fix}")


PROGRAM = Program(
    name="finetune",
    description="Fine-tune a pretrained video encoder on labelled videos and score it.",
    commands=(
        Command(
            name="train",
            help="train on labelled shards, save the model and score it; the same command continues a run",
            example="kinemae finetune train demo encoder=runs/mine/encoder",
            run=lazy_with_config("finetune", "kinemae.finetune.train", "run_train"),
            positionals=(("config", "a YAML file, or a name that `kinemae configs` lists"),),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="plan",
            help="look at labelled shards and propose probe, LoRA or full fine-tuning with all settings",
            example="kinemae finetune plan shards/train encoder=runs/mine/encoder",
            run=lazy("kinemae.finetune.plan.command", "run_plan"),
            positionals=(("train", "folder of labelled shards"),),
            options=(_JSON,),
        ),
        Command(
            name="sweep",
            help="try several values of keys, with successive halving; the same command continues a sweep",
            example="kinemae finetune sweep demo 'optim.lr=[3e-4, 1e-3, 3e-3]' run_dir=runs/sweep",
            run=lazy_with_config("finetune", "kinemae.finetune.sweep.command", "run_sweep"),
            positionals=(("config", "a YAML file, or a name that `kinemae configs` lists"),),
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
            name="predict",
            help="scores over time of videos, a folder, a URL, shards, a camera or a stream, with an mp4",
            example="kinemae finetune predict runs/tuned video.mp4 predictions overlap=0.5",
            run=lazy("kinemae.finetune.predict.command", "run_predict"),
            positionals=(
                (
                    "model",
                    "a fine-tuning run, the folder of its model, or OWNER/NAME on the Hugging Face hub",
                ),
                ("source", "a video, a folder, a URL, a folder of shards, camera:0, or - for standard input"),
                ("out", "the folder to write; the same command continues a prediction"),
            ),
            options=(_JSON,),
        ),
        Command(
            name="report",
            help="write one HTML page about a run: curves, classes, mistakes, calibration, cost",
            example="kinemae finetune report runs/tuned",
            run=lazy("kinemae.finetune.report.command", "run_report"),
            positionals=(("run_dir", "the run's folder"),),
            optional=("out", "the page to write (default: RUN/report.html)"),
            options=(_JSON,),
        ),
        Command(
            name="probe",
            help="score a frozen encoder: encode once, then train a grid of heads on the features",
            example="kinemae finetune probe encoder=runs/mine/encoder data.train=shards/train "
            "data.validation=shards/validation run_dir=runs/probe",
            run=_probe("run_probe"),
            optional=("config", "a YAML file with keys of the probe"),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="knn",
            help="score a frozen encoder by its nearest neighbours: a probe with method=knn",
            example="kinemae finetune knn encoder=runs/mine/encoder data.train=shards/train "
            "data.validation=shards/validation run_dir=runs/probe",
            run=_probe("run_knn"),
            optional=("config", "a YAML file with keys of the probe"),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="features",
            help="write the features of videos: one vector per window, per time slice or per video",
            example="kinemae finetune features runs/mine/encoder videos features.parquet overlap=0.5",
            run=lazy("kinemae.finetune.features.command", "run_features"),
            positionals=(
                ("encoder", "a run, an exported encoder, a fine-tuned model, or OWNER/NAME on the hub"),
                ("source", "a video, a folder of videos, a folder of shards, or a URL of one of them"),
                (
                    "out",
                    "FEATURES.parquet or FEATURES.npz, or a folder for ActionFormer and OpenTAD",
                ),
            ),
            options=(_DRY_RUN, _JSON),
        ),
        Command(
            name="search",
            help="find the nearest neighbours of a video in a file of features, or near duplicates",
            example="kinemae finetune search features.parquet video.mp4 k=5",
            run=lazy("kinemae.finetune.features.search", "run_search"),
            positionals=(("features", "FEATURES.parquet or FEATURES.npz"),),
            optional=("query", "a video, a key of the features, or another file of features"),
            options=(("--duplicates", "list pairs and groups of near duplicates; needs no query"), _JSON),
        ),
        Command(
            name="map",
            help="draw features in a plane with thumbnails, or export them to TensorBoard's projector",
            example="kinemae finetune map features.parquet map.html method=umap",
            run=lazy("kinemae.finetune.features.map", "run_map"),
            positionals=(
                ("features", "FEATURES.parquet or FEATURES.npz"),
                ("out", "a page, MAP.html, or a folder of logs for TensorBoard"),
            ),
            options=(_JSON,),
        ),
        Command(
            name="visualize",
            help="pictures of a model on videos: attention and its pooling, pruning, merging, features",
            example="kinemae finetune visualize runs/tuned video.mp4 views",
            run=lazy("kinemae.finetune.visualize", "run_visualize"),
            positionals=(
                ("model", "a run, an exported model or encoder, or OWNER/NAME on the Hugging Face hub"),
                ("source", "a video, a folder or URL of videos, or a folder of shards"),
                ("out", "the folder to write"),
            ),
            options=(("--json", "print the names of the files as JSON"),),
        ),
        Command(
            name="compare",
            help="print a table of the scores of several runs",
            example="kinemae finetune compare runs/tuned runs/from_scratch",
            run=_compare,
            options=(_JSON,),
            value_options=(("--html", "OUT.html", "also write a page with curves and paired differences"),),
            variadic=("runs", "run folders; differences are relative to the first"),
        ),
        Command(
            name="import",
            help="import a checkpoint of VideoMAE, UMT, MAE-ST, V-JEPA 2, InternVideo2, or an image model",
            example="kinemae finetune import checkpoint.pth imported frames=16 stride=4 size=224",
            run=lazy("kinemae.finetune.conversion.command", "run_import"),
            positionals=(
                ("path", "a file of weights, or a folder written by transformers"),
                ("out", "the folder to write; `encoder=OUT` fine-tunes it"),
            ),
            options=(
                _DRY_RUN,
                _JSON,
                ("--allow-partial", "skip unknown tensors, and an incomplete decoder or head"),
            ),
        ),
        Command(
            name="export",
            help="export an encoder or a fine-tuned model to ONNX, torch.export or other systems, and check "
            "its outputs",
            example="kinemae finetune export runs/tuned tuned-onnx --to onnx",
            run=lazy("kinemae.finetune.export.command", "run_export"),
            positionals=(
                ("folder", "an exported encoder, a fine-tuned model, or a run that has one"),
                ("out", "the folder to write, or the file (videomae)"),
            ),
            options=(_DRY_RUN, _JSON),
            value_options=(
                ("--to", "FORMAT", "kinemae, videomae, huggingface, onnx, onnx-int8 or torch-export"),
            ),
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
