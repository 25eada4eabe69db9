"""Opening of the model to export."""

from pathlib import Path

from kinemae.data_tools.command import log
from kinemae.data_tools.config import load_config
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.conversion.model_bundle import ModelBundle, load_bundle
from kinemae.finetune.export.options import ExportOptions
from kinemae.finetune.inference.load import load
from kinemae.finetune.inference.video_model import VideoModel
from kinemae.finetune.validation.scored_model import scored_folder
from kinemae.pretrain.exported_model import DESCRIPTION
from kinemae.pretrain.folder_kinds import FINETUNING, exported_in, kind_of_folder, kind_of_run


def exported_folder(path: Path) -> Path:
    """Return the exported model of a run, the scored one if it has scores; keep other paths."""
    if (path / DESCRIPTION).is_file() or exported_in(path) is None:
        return path
    folder = exported_in(path) or path
    if kind_of_run(path) == FINETUNING:
        folder = scored_folder(load_config(FinetuneConfig, path / "config.yaml", []), path)
    log.info("%s is %s: exporting %s", path, kind_of_folder(path), folder)
    return folder


def encoder_alone(model: VideoModel) -> VideoModel:
    """Return the encoder of a model without its head, pruning and merging."""
    model.encoder.merge_tokens(0)
    return VideoModel(model.encoder, model.description, source=model.source)


def open_bundle(path: str, options: ExportOptions) -> tuple[ModelBundle, Path]:
    """Load a model for a format of weights, and return its folder.

    Raises:
        CheckpointError: no exported model, or one with a task that other systems do not have.
    """
    folder = exported_folder(Path(path))
    bundle = load_bundle(folder, has_head=options.head)
    bundle.encoder.eval().merge_tokens(0)
    return bundle, folder


def open_program(path: str, options: ExportOptions) -> VideoModel:
    """Load a model for a format of programs.

    Raises:
        ValueError: the options do not fit the model, or it keeps different numbers of tokens.
    """
    model = load(path, frames=options.frames, size=options.size)
    if not options.head:
        model = encoder_alone(model)
    pruning = None if model.task_model is None else model.task_model.pruning
    if pruning is not None and options.keep is not None and pruning.keep != 1.0:
        pruning.keep = options.keep
    elif options.keep is not None:
        raise ValueError(
            f"keep: expected null, since {path} has no pruning, got {options.keep}; fix: remove it"
        )
    if pruning is not None and pruning.keep is None:
        raise ValueError(
            f"keep: expected the fraction of the tokens that {path} keeps, since its pruning keeps a "
            "different number for each clip and the shapes of a program are fixed, got null; fix: keep=0.5, "
            "near the kept_fraction of its result, or head=false for the encoder without pruning"
        )
    return model
